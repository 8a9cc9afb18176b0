"""Waveforms and sound files."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 44_100


def sound_file(waveform: np.ndarray, *, sample_rate: int = SAMPLE_RATE, **options: str) -> bytes:
    """A sound file of `(num_samples,)` or `(num_samples, channels)`; WAV, 16 bit unless told."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, **({"format": "WAV", "subtype": "PCM_16"} | options))
    return file.getvalue()


def tone(seconds: float, *, hz: float = 1000.0, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A sine at half of full scale: float32 `(num_samples,)`."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def beep(hz: float, seed: int) -> bytes:
    """A sound file of 2 s: a noisy tone near a frequency."""
    rng = np.random.default_rng(seed)
    waveform = tone(2.0, hz=hz * rng.uniform(0.95, 1.05)) * rng.uniform(0.3, 1)
    return sound_file(waveform + 0.003 * rng.standard_normal(len(waveform)).astype(np.float32))


def write_class(folder: Path, name: str, hz: float, count: int = 5, *, first_seed: int = 0) -> None:
    """`folder/name/N.wav`: so many `beep`."""
    for number in range(count):
        path = folder / name / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(beep(hz, first_seed + number))


def damaged(data: bytes, rounds: int) -> Iterator[bytes]:
    """The file with 20 random bytes, and as much of it as a random length: twice as many as `rounds`."""
    random = np.random.default_rng(1)
    for _ in range(rounds):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 20):
            changed[place] = random.integers(0, 256)
        yield bytes(changed)
        yield bytes(changed[: random.integers(1, len(data))])


def ogg_page(content: bytes, *, flags: int, number: int) -> bytes:
    """One page with one packet, or a part of it: 255 full segments where it goes on."""
    whole, rest = divmod(len(content), 255)
    lengths = b"\xff" * whole + (bytes([rest]) if whole < 255 else b"")
    head = b"OggS\0" + struct.pack("<BqIII", flags, 0, 1, number, 0) + bytes([len(lengths)]) + lengths
    checksum = 0
    for byte in head + content:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    return head[:22] + struct.pack("<I", checksum) + head[26:] + content
