"""A short sound for health checks. Imports neither torch nor numpy."""

from __future__ import annotations

import functools
import io
import math
import struct
import wave


@functools.cache
def probe_wav() -> bytes:
    """A WAV file of 0.1 s with a 440 Hz tone: enough for a real prediction."""
    sample_rate = 16_000
    samples = [round(8000 * math.sin(2 * math.pi * 440 * n / sample_rate)) for n in range(sample_rate // 10)]
    return pcm_wav(struct.pack(f"<{len(samples)}h", *samples), sample_rate)


def pcm_wav(frames: bytes, sample_rate: int) -> bytes:
    """A WAV file of 16-bit mono samples, little-endian."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(frames)
    return file.getvalue()
