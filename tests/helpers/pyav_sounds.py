"""Sound files in the containers and codecs of PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def encoded(
    waveform: np.ndarray,
    container: str,
    codec: str,
    *,
    rate: int = 48_000,
    channels: int = 1,
    path: Path | None = None,
    title: str = "",
    **options: str,
) -> bytes:
    """`(num_samples,)` in every one of the channels, in a file of this kind."""
    file = io.BytesIO() if path is None else path
    with av.open(file, "w", format=container, options=options) as writer:
        writer.metadata.update({"title": title} if title else {})
        stream = writer.add_stream(
            codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
        )
        frame = av.AudioFrame.from_ndarray(
            np.repeat(waveform.astype(np.float32), channels)[None], format="flt", layout=stream.layout.name
        )
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            writer.mux(packet)
    return file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
