"""Speech and music of no class, rendered by `espeak-ng` and `fluidsynth` if these are installed."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from audiocnn import audio
from audiocnn.audio import windows
from audiocnn.config import FrontendConfig

ShortArray = npt.NDArray[np.int16]

_FONT_FOLDERS = (Path("/usr/share/sounds/sf2"), Path("/usr/share/soundfonts"))
_VOICES = ("en", "en-us", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "tr", "sv")
_VARIANTS = ("", "+f2", "+f4", "+m3", "+m5", "+m7")
_WORDS = """
time person year way day thing man world life hand part child eye woman place work week case point company
number group problem fact be have do say get make go know take see come think look want give use find tell
ask seem feel try leave call good new first last long great little own other old right big high different
"""
_PROGRAMS = 112  # of General MIDI, without its sound effects: nature, telephone, helicopter, applause
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
_TICKS = 480  # a quarter note


def available() -> list[str]:
    """Programs that are installed, `fluidsynth` only with a sound font."""
    names = ["espeak-ng"] if shutil.which("espeak-ng") else []
    return [*names, "fluidsynth"] if shutil.which("fluidsynth") and sound_font() else names


def sound_font() -> Path | None:
    """A General MIDI sound font of the system, or None."""
    return next((path for folder in _FONT_FOLDERS for path in sorted(folder.glob("*.sf2"))), None)


def render(config: FrontendConfig, *, each: int = 96, seed: int = 0, quiet: bool = False) -> ShortArray:
    """`each` windows of speech and of music: int16 `(m, window_samples)`, m = 0 without the programs."""
    makers: dict[str, Callable[[random.Random], bytes]] = {"espeak-ng": speech, "fluidsynth": music}
    rows = []
    with tqdm(total=each * len(available()), desc="background", unit="sound", disable=quiet) as bar:
        for name in available():
            rng = random.Random(f"{seed} {name}")  # noqa: S311  not for secrets
            for _ in range(each):
                waveform = audio.decode(makers[name](rng), sample_rate=config.sample_rate).waveform
                rows.append((windows.cut(waveform, config)[0] * 32767).round().astype(np.int16))
                bar.update()
    return np.stack(rows) if rows else np.zeros((0, config.window_samples), np.int16)


def speech(rng: random.Random) -> bytes:
    """A WAV file of 3 to 10 s: words and numbers, spoken by a random voice."""
    words = _WORDS.split()
    text = [rng.choice(words) if rng.random() < 0.6 else str(rng.randrange(1000)) for _ in range(16)]
    voice = rng.choice(_VOICES) + rng.choice(_VARIANTS)
    speed, pitch = str(rng.randint(110, 220)), str(rng.randint(15, 85))
    command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "--stdout", " ".join(text)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def music(rng: random.Random) -> bytes:
    """A WAV file of about 8 s: two instruments, with drums half of the time."""
    font = sound_font()
    assert font, "see available()"
    with tempfile.TemporaryDirectory() as folder:
        song, sound = Path(folder, "song.mid"), Path(folder, "song.wav")
        song.write_bytes(midi(rng))
        command = ["fluidsynth", "-ni", "-q", "-F", str(sound), "-r", "44100", str(font), str(song)]
        subprocess.run(command, capture_output=True, check=True)
        return sound.read_bytes()


def midi(rng: random.Random) -> bytes:
    """A standard MIDI file: random notes of a scale, 8 s at 60 to 160 beats a minute."""
    beats_a_minute = rng.randint(60, 160)
    length = round(8 * beats_a_minute / 60 * _TICKS)
    events = [(0, bytes([0xFF, 0x51, 3]) + (60_000_000 // beats_a_minute).to_bytes(3, "big"))]
    scale, root = rng.choice(_SCALES), rng.randint(36, 60)
    for channel in (0, 1):
        events.append((0, bytes([0xC0 | channel, rng.randrange(_PROGRAMS)])))
        step = rng.choice((_TICKS // 2, _TICKS, 2 * _TICKS))
        for start in range(0, length, step):
            for _ in range(rng.choice((1, 1, 3))):
                note = root + 12 * channel + 12 * rng.randrange(2) + rng.choice(scale)
                events += _note(channel, note, start, round(step * rng.uniform(0.5, 2)), rng)
    if rng.random() < 0.5:
        for start in range(0, length, _TICKS // 2):
            events += _note(9, rng.choice((35, 38, 42, 46)), start, _TICKS // 4, rng)
    return _file(events)


def _note(channel: int, note: int, start: int, ticks: int, rng: random.Random) -> list[tuple[int, bytes]]:
    velocity = rng.randint(50, 110)
    return [
        (start, bytes([0x90 | channel, note, velocity])),
        (start + ticks, bytes([0x80 | channel, note, 0])),
    ]


def _file(events: list[tuple[int, bytes]]) -> bytes:
    """A MIDI file of one track, from events with their absolute ticks."""
    track, now = b"", 0
    for tick, event in sorted(events, key=lambda pair: pair[0]):
        track += _variable_length(tick - now) + event
        now = tick
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(number: int) -> bytes:
    """MIDI's variable-length quantity: seven bits a byte, the high bit set in all bytes but the last."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | number & 0x7F)
    return bytes(reversed(groups))
