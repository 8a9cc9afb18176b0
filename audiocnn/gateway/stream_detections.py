"""Events of a stream: the windows that `/predict` makes of a file, one by one, as their sound arrives.

    <- {"type": "detection", "class": "siren", "start": 12.5, "end": null, ...}    when an event begins
    <- {"type": "detection", "class": "siren", "start": 12.5, "end": 15.25, ...}   when it is over

An event is over when `MERGE_GAP_SECONDS` without it have passed. Windows are at fixed places of the sound, so
the events do not depend on when the sound arrives. A server that falls far behind loses windows: the oldest
ones, whose sound is no longer kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.config import MIN_TAIL_SECONDS, Config
from audiocnn.detections import HOP_SECONDS, Detection, Detector, window_seconds
from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.errors import body_of
from audiocnn.gateway.stream_audio import RingBuffer, wav_of

Ask = Callable[[bytes, str], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Span = tuple[int, int]


class StreamDetector:
    """Takes windows from the sound of one stream and sends its events."""

    def __init__(self, config: Config, sound: RingBuffer, ask: Ask, send: Send) -> None:
        """`ask(wav, suffix)`: all classes of a WAV file; `suffix` is for the request's id."""
        self._names = config.class_names
        self._detector = Detector(config)
        self._sound, self._ask, self._send = sound, ask, send
        self._rate = sound.sample_rate
        self._window = round(window_seconds(config) * self._rate)
        self._hop = round(min(HOP_SECONDS, window_seconds(config) / 2) * self._rate)
        self._next = 0  # first sample of the next window
        self._due = asyncio.Event()
        self._is_ending = self._has_tail = False

    def sound_came(self) -> None:
        """There is more sound."""
        self._due.set()

    def end(self) -> None:
        """There will be no more sound."""
        self._is_ending = self._has_tail = True
        self._due.set()

    async def run(self) -> None:
        """Until all events are sent after `end`."""
        while True:
            await self._due.wait()
            self._due.clear()
            while span := self._take():
                await self._answer(span)
            if self._is_ending and not self._has_tail:
                await self._tell(self._detector.finish())
                return

    def _take(self) -> Span | None:
        """First and last sample of the next window whose sound is there."""
        passed = -(-max(0, self._sound.start - self._next) // self._hop)
        self._next += passed * self._hop
        if self._next + self._window <= self._sound.end:
            self._next += self._hop
            return self._next - self._hop, self._next - self._hop + self._window
        return self._take_tail() if self._has_tail else None

    def _take_tail(self) -> Span | None:
        """What is left at the end, by the rule of `audiocnn.audio.windows`."""
        self._has_tail = False
        end, covered = self._sound.end, self._next - self._hop + self._window
        if not self._next:
            return (0, end) if end else None
        return (end - self._window, end) if end - covered >= MIN_TAIL_SECONDS * self._rate else None

    async def _answer(self, span: Span) -> None:
        start, end = (place / self._rate for place in span)
        wav = wav_of(self._sound.part(*span), self._rate)
        try:
            answer = await self._ask(wav, f"d{span[0]}")
        except (AudioError, ServerError) as error:
            await self._send(
                {"type": "error", "start": round(start, 3), "end": round(end, 3), **body_of(error)}
            )
            return
        await self._tell(self._detector.update(start, end, self._probabilities(answer)))

    def _probabilities(self, answer: dict[str, Any]) -> FloatArray:
        """`(num_classes,)`; 0 for a class that a rollout has taken away."""
        rows = {row["class"]: row["confidence"] for row in answer["predictions"]}
        return np.array([rows.get(name, 0.0) for name in self._names], np.float32)

    async def _tell(self, found: list[Detection]) -> None:
        for one in found:
            await self._send({"type": "detection", **one.to_dict()})
