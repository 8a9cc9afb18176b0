"""A live stream that has begun: sound in, an answer for every hop of it out.

One task receives, one answers, so that inference never keeps sound waiting. The one that answers takes
the newest window when its turn comes: hops that passed meanwhile are counted in `skipped`, not queued.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

from audiocnn.config import Config
from audiocnn.detections import window_seconds
from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.errors import body_of
from audiocnn.gateway.model_info import ALL_CLASSES
from audiocnn.gateway.stream_audio import BadSoundError, ExponentialAverage, RingBuffer
from audiocnn.gateway.stream_detections import StreamDetector
from audiocnn.gateway.stream_protocol import (
    BAD_DATA,
    BAD_START,
    RefusedError,
    Start,
    StreamState,
    read_json,
    receive_before,
    run_together,
    send_before,
)
from audiocnn.labels import describe

if TYPE_CHECKING:
    from audiocnn.gateway.streaming import Streams

AHEAD_SECONDS = 10.0  # of sound that may come faster than real time before we stop reading
EVENTS_AHEAD_SECONDS = 4.0  # with detections: every window of it is answered


class StreamSession:
    """One stream that has begun."""

    def __init__(
        self,
        streams: Streams,
        socket: WebSocket,
        start: Start,
        state: StreamState,
        config: Config | None = None,
    ) -> None:
        """`config` of the served model, if events are to be sent."""
        frontend = streams.model.frontend
        self._streams = streams
        self._socket = socket
        self._start = start
        self._state = state
        self._sound = RingBuffer(
            input_rate=start.sample_rate,
            sample_rate=frontend.sample_rate,
            window_seconds=frontend.clip_seconds,
            kept_seconds=2 * EVENTS_AHEAD_SECONDS + window_seconds(config) if config else 0.0,
        )
        self._ahead_seconds = EVENTS_AHEAD_SECONDS if config else AHEAD_SECONDS
        self._events = StreamDetector(config, self._sound, self._ask, self._send) if config else None
        self._window_seconds = frontend.clip_seconds
        self._smoothed = ExponentialAverage(streams.settings.stream_smoothing_seconds)
        self._due = asyncio.Event()
        self._is_ending = False
        self._hop = self._answered_hop = 0  # the last one that is due, and that was answered
        self._due_at = 0.0  # loop time at which the last hop became due
        self._answered_at = 0.0  # seconds of sound at the last answer

    async def run(self) -> None:
        """Until the caller ends the stream or leaves."""
        await self._send(
            {
                "type": "ready",
                "request_id": self._state.request_id,
                **self._start.model_dump(exclude={"api_key"}),
                "window_seconds": self._window_seconds,
            }
        )
        events = [self._events.run()] if self._events else []
        await run_together(self._receive_sound(), self._answer_hops(), *events)

    async def _receive_sound(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            frame = await receive_before(self._socket, self._streams.settings.stream_idle_seconds)
            if isinstance(frame, str):
                self._end(frame)
                return
            try:
                self._sound.push(frame)
            except BadSoundError as error:
                raise RefusedError(
                    BAD_DATA, "not_finite_audio" if "NaN" in str(error) else "bad_frame", str(error)
                ) from None
            if self._events:
                self._events.sound_came()
            hop = int(self._sound.seconds / self._start.hop_seconds + 1e-9)
            if hop > self._hop:
                self._hop, self._due_at = hop, loop.time()
                self._due.set()
            # The socket is left unread for a while: TCP tells a sender that is too fast.
            ahead = self._sound.seconds - (loop.time() - began)
            await asyncio.sleep(max(0.0, ahead - self._ahead_seconds))

    def _end(self, text: str) -> None:
        """Answer what is left, if it is more than the last answer covered."""
        if read_json(text) != {"end": True}:
            raise RefusedError(BAD_START, "bad_frame", 'After the first frame comes sound, or {"end": true}.')
        self._is_ending = True
        self._sound.finish()
        if self._events:
            self._events.end()
        if self._sound.seconds > self._hop * self._start.hop_seconds + 1e-9:
            self._hop, self._due_at = self._hop + 1, asyncio.get_running_loop().time()
        self._due.set()

    async def _answer_hops(self) -> None:
        while not (self._is_ending and self._answered_hop == self._hop):
            await self._due.wait()
            self._due.clear()
            if self._hop == self._answered_hop:
                continue
            async with self._streams.turns:
                answer = await self._answer()
            await self._send(answer)  # the turn is over: a caller that does not read delays no other

    async def _answer(self) -> dict[str, Any]:
        """The answer to the newest window, or why there is none; the stream goes on."""
        hop, due_at, end = self._hop, self._due_at, self._sound.seconds
        level, wav = self._sound.take_level(), self._sound.wav()
        state, metrics = self._state, self._streams.metrics
        passed = hop - self._answered_hop - 1
        state.hops, state.skipped = hop, state.skipped + passed
        self._answered_hop = hop
        head = {"hop": hop, "start": round(max(0.0, end - self._window_seconds), 3), "end": round(end, 3)}
        try:
            answer = await self._streams.client.predict(
                wav or b"",
                {"top_k": ALL_CLASSES},
                request_id=f"{state.request_id}-{hop}",
                trace=state.trace,
            )
        except (AudioError, ServerError) as error:
            state.skipped += 1
            metrics.hop(skipped=passed, lag_seconds=None)
            metrics.failure(error)
            return {"type": "error", **head, **body_of(error), "skipped": state.skipped}
        confidences = self._smoothed.update(answer["predictions"], end - self._answered_at)
        self._answered_at = end
        warnings = answer["warnings"]
        if self._sound.is_too_loud:
            warnings = [*warnings, "Samples are beyond full scale, which is 1; they were clipped."]
        lag_seconds = asyncio.get_running_loop().time() - due_at
        metrics.hop(skipped=passed, lag_seconds=lag_seconds)
        return {
            "type": "answer",
            **head,
            "predictions": [
                {"class": name, "confidence": round(confidence, 6), "emoji": describe(name).emoji}
                for name, confidence in confidences[: self._start.top_k]
            ],
            "is_unknown": answer["is_unknown"],
            "is_silent": answer["is_silent"],
            "warnings": warnings,
            "level_dbfs": round(level, 1),
            "lag_seconds": round(lag_seconds, 3),
            "skipped": state.skipped,
        }

    async def _ask(self, wav: bytes, suffix: str) -> dict[str, Any]:
        """All classes of a window of the events; counts its failure."""
        request_id = f"{self._state.request_id}-{suffix}"
        options = {"top_k": ALL_CLASSES}
        try:
            async with self._streams.turns:
                return await self._streams.client.predict(
                    wav, options, request_id=request_id, trace=self._state.trace
                )
        except (AudioError, ServerError) as error:
            self._streams.metrics.failure(error)
            raise

    async def _send(self, content: dict[str, Any]) -> None:
        await send_before(self._socket, content, self._streams.settings.stream_idle_seconds)
