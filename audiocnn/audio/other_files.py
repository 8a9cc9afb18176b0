"""Files that are not read, by their first bytes: other formats of sound, and what is no sound."""

from __future__ import annotations

import re

_UNPACK = "Unpack it and send the sound file in it."
_KINDS = (
    (re.compile(rb"\x1f\x8b"), f"gzip. {_UNPACK}"),
    (re.compile(rb"PK\x03\x04"), f"a ZIP archive. {_UNPACK}"),
    (re.compile(rb"7z\xbc\xaf|Rar!|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd"), f"a compressed archive. {_UNPACK}"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "a web page. Send the sound file itself."),
    (re.compile(rb"\s*[{\[]\s*[\"}\[]"), "JSON. Send it with Content-Type: application/json."),
    (re.compile(rb"--[^\r\n]+\r?\n"), "a form. Send it with Content-Type: multipart/form-data; boundary=..."),
    (re.compile(rb"data:[\w/+.-]*[;,]"), "a data: URL. Send the bytes of the file, or JSON with base64."),
    (
        re.compile(rb"(UklGR|T2dnU|ZkxhQ|SUQz|//[suMF]|AAAA[A-Za-z0-9+/]{2}Z0eX)[A-Za-z0-9+/\s]{8}"),
        "base64. Send the bytes of the file, or JSON with base64.",
    ),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF"), "a picture or a document. Send a sound file."),
)
HEAD_BYTES = 192
_FORMATS = (
    (rb"RIFF.{4}AVI ", "AVI"),
    (rb"caff", "CAF"),
    (rb"\.snd", "AU"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF (WMA, WMV)"),
    (rb"wvpk", "WavPack"),
    (rb"MAC ", "Monkey's Audio"),
    (rb"TTA1", "True Audio"),
    (rb"MPCK|MP\+", "Musepack"),
    (rb"DSD |FRM8", "DSD"),
    (rb"#!AMR", "AMR"),
    (rb"MThd", "MIDI"),
    (rb"FLV\x01", "FLV"),
    (rb"\.RMF|\.ra\xfd", "RealMedia"),
    (rb"Creative Voice File", "VOC"),
    (rb"\x0b\x77", "AC-3"),
    (rb"\x7f\xfe\x80\x01", "DTS"),
    (rb"\x00\x00\x01\xba", "an MPEG program stream"),
    (rb"\x47.{187}\x47", "an MPEG transport stream"),
)


def name_file(head: bytes) -> str | None:
    """What a file is by its first `HEAD_BYTES`, and what to do; None if that is not known."""
    for pattern, name in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return f"{name}, which is not read. Send WAV, FLAC, Ogg, MP3, M4A or WebM."
    return next((name for kind, name in _KINDS if kind.match(head)), None)
