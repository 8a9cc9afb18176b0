"""What went wrong, in words for people who only wanted to know a sound."""

from __future__ import annotations

_WORDS: dict[str, tuple[str, str]] = {
    "empty_audio": (
        "There is no sound in it",
        "The file is empty. Choose another one, or record for a second.",
    ),
    "undecodable_audio": (
        "This file is damaged",
        "It looks like a sound file, but nothing in it can be played. Try to export or download it again.",
    ),
    "not_finite_audio": (
        "This file has broken samples",
        "Some of its values are no numbers. Export it again, as 16-bit WAV or FLAC.",
    ),
    "bad_option": ("That choice is not possible", "Choose another class, or load the page again."),
    "bad_base64": ("The sound did not arrive whole", "Please try it again."),
    "audio_too_long": (
        "This recording is too long",
        "Ten minutes are the most here. Cut it, or give long recordings to the batch job.",
    ),
    "too_many_channels": ("Too many channels", "Eight are the most. Mix it down to mono or stereo."),
    "sample_rate_out_of_range": (
        "An odd sample rate",
        "No sound card has the rate that this file claims; it may be damaged. Export it again at 44.1 kHz.",
    ),
    "unsupported_format": (
        "I cannot read this kind of file",
        "WAV, FLAC, Ogg, MP3, M4A and WebM work. Is it a sound file at all?",
    ),
    "upload_too_large": ("This file is too large", "Cut it, or save it as MP3, Ogg or FLAC."),
    "upload_timeout": ("The upload took too long", "Check the connection, then try it again."),
    "sound_gone": (
        "The sound is not here any more",
        "What you give is deleted after a few minutes. Give it again.",
    ),
    "not_found": ("There is nothing here", "Load the page again."),
    "unauthorized": ("A key is needed", "Load the page again and type in your key."),
    "forbidden_origin": (
        "This address may not ask",
        "The operator can allow it: ALLOWED_ORIGINS must have the address in your address bar.",
    ),
    "misdirected_request": (
        "This name is not known here",
        "The operator can allow it: ALLOWED_HOSTS must have the name in your address bar.",
    ),
    "rate_limited": ("That was fast", "You have asked as often as you may. Wait a little, then go on."),
    "busy": ("Many people are asking", "All places are taken. Try it again in a moment."),
    "storage_full": (
        "The server's disk is full",
        "Try it again in a minute. If it stays so, tell the operator of this server.",
    ),
    "not_ready": ("The model is still waking up", "Try it again in a few seconds."),
    "server_unreachable": ("The model does not answer", "It may be starting. Try it again in a few seconds."),
    "server_failed": ("The model stumbled", "It starts again by itself. Try once more in a moment."),
    "token_refused": ("The model refused us", "Its key has changed: tell the operator of this server."),
    "request_refused": ("The model is not there", "Tell the operator: the server does not know this model."),
    "microphone_refused": (
        "No permission for the microphone",
        "Allow it in the address bar of the browser, then start again.",
    ),
    "microphone_missing": ("No microphone found", "Connect one, then start again."),
    "microphone_insecure": (
        "The browser keeps the microphone shut",
        "It opens it for https:// addresses and for localhost only.",
    ),
    "connection_lost": ("The connection was lost", "Start again when the server is back."),
    "idle": ("It was quiet for too long", "The stream was closed. Start again whenever you like."),
    "internal_error": (
        "Something went wrong here",
        "It is not your fault. Try it again; its log has the reason.",
    ),
}


def friendly(code: str) -> tuple[str, str]:
    """A title and an advice for an error code; for one that is not known, words that fit all."""
    return _WORDS.get(code, _WORDS["internal_error"])


def all_words() -> dict[str, tuple[str, str]]:
    """Every code with its words, for the script of the live tab."""
    return dict(_WORDS)
