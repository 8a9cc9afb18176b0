"""Clips with distinguishable answers."""

from __future__ import annotations

from typing import Any

from audiocnn.audio import synthetic


def numbered_clips(count: int) -> list[bytes]:
    """The synthetic sounds, each with a tail of its own, so that an answer can be told from another's."""
    sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
    return [sounds[number % len(sounds)] + bytes([number % 256]) * number for number in range(count)]


def classes(results: list[tuple[Any, Any]]) -> list[str]:
    for _, result in results:
        if isinstance(result, Exception):
            raise result
    return [result["predictions"][0]["class"] for _, result in results]
