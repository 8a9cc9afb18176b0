"""Branches of decoding that an input reaches: `benchmarks.fuzz` counts them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from audiocnn.audio.parts import FileParts
from audiocnn.audio.source import Part
from audiocnn.errors import AudioError

# What the warnings and errors of an answer say.
_SENTENCES = {
    "truncated file": "is truncated",
    "damaged spots": "The file is damaged",
    "recording not used": "was not used",
    "unknown bytes": "no sound that is known",
    "length not written": "The header gives no length",
    "cancelling channels": "The channels cancel each other",
    "later track": "Audio track ",
    "unread codec": "The codec ",
    "no audio container": "no known audio container",
    "clipped samples": "times full scale",
}
_FROM_PARTS = ("rebuilt header", "several recordings", "damaged bytes left out", "PyAV")
BRANCHES = (*_SENTENCES, *_FROM_PARTS)


def branches_of_answer(answer: Mapping[str, Any]) -> set[str]:
    """The branches that an answer or an error, as in the API's JSON, tells of."""
    sentences = [*answer.get("warnings", ()), (answer.get("error") or {}).get("message", "")]
    return {name for name, text in _SENTENCES.items() if any(text in each for each in sentences)}


def branches_of_file(data: bytes) -> set[str]:
    """The branches that the structure of a file leads to."""
    parts: list[Part] = []
    with contextlib.suppress(AudioError):
        parts.extend(FileParts(_BytesSource(data), max_seconds=600.0))
    reached = (
        any(isinstance(piece, bytes) for part in parts for piece in part.pieces),
        len(parts) > 1,
        any(part.damaged_bytes for part in parts),
        any(part.demuxer for part in parts),
    )
    return {name for name, is_reached in zip(_FROM_PARTS, reached, strict=True) if is_reached}


class _BytesSource(io.BytesIO):
    """A file in memory as `audiocnn.audio.source.Source`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)

    def between(self, start: int, end: int) -> bytes:
        """The bytes there, or as many as there are."""
        return self.getvalue()[max(0, start) : max(0, end)]

    def check(self) -> None:
        """Nothing can go wrong."""
