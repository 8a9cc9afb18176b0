"""The stream of the Environmental-Audio project: `/compat/environmental-audio/ws/predict`.

    -> {"sample_rate": 48000, "duration": 4.0, "n_mels": 128}     optional
    -> float32 samples, mono                                       binary frames
    <- {"top_prediction", "top_k", "spectrogram", "spectrograms"}  once `duration` seconds have come
    -> reset                                                       forgets the sound
    <- {"error": "text"}                                           the stream goes on

The newest sound is answered; frames that arrive meanwhile are in the next answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket

from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.auth import key_in
from audiocnn.gateway.compat_shapes import SPECTROGRAM, SpectrogramParameters, to_reply
from audiocnn.gateway.stream_audio import RingBuffer
from audiocnn.gateway.stream_protocol import (
    RefusedError,
    StreamState,
    read_json,
    receive_before,
    run_together,
    say_goodbye,
    send_before,
)
from audiocnn.gateway.stream_session import AHEAD_SECONDS
from audiocnn.gateway.streaming import Streams

_TOP_K = 4


async def serve_stream(streams: Streams, socket: WebSocket) -> None:
    """One connection; its places, turns, keys and limits are those of `/ws/predict`."""

    async def converse(socket: WebSocket, state: StreamState) -> None:
        streams.admit(socket, key_in(socket.headers))
        with streams.place("num_open"):
            await _Stream(streams, socket, state).run()

    await streams.serve(socket, converse, _end)


async def _end(socket: WebSocket, refusal: RefusedError) -> None:
    await say_goodbye(socket, refusal, {"error": str(refusal)})


class _Stream:
    """One stream that is open."""

    def __init__(self, streams: Streams, socket: WebSocket, state: StreamState) -> None:
        self._streams, self._socket, self._state = streams, socket, state
        self._frontend = streams.model.frontend
        self._due = asyncio.Event()
        self._due_at = 0.0  # loop time of the first frame that is not answered
        self._seconds = 0.0  # of sound since the stream began
        self._set(SpectrogramParameters())

    def _set(self, parameters: SpectrogramParameters) -> None:
        """Begin with an empty buffer."""
        self._parameters = parameters
        self._window_seconds = min(parameters.duration, self._frontend.clip_seconds)
        self._sound = RingBuffer(
            input_rate=parameters.sample_rate,
            sample_rate=self._frontend.sample_rate,
            window_seconds=self._window_seconds,
        )
        self._due.clear()

    async def run(self) -> None:
        """Until the caller leaves."""
        await run_together(self._receive(), self._answer_frames())

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            frame = await receive_before(self._socket, self._streams.settings.stream_idle_seconds)
            try:
                self._text(frame) if isinstance(frame, str) else self._push(frame)
            except ValueError as error:
                await self._send({"error": str(error)})
            await asyncio.sleep(max(0.0, self._seconds - (loop.time() - began) - AHEAD_SECONDS))

    def _text(self, text: str) -> None:
        """Settings or `reset`; raises `ValueError`."""
        if text.strip() == "reset":
            self._set(self._parameters)
            return
        try:
            self._set(SpectrogramParameters.model_validate(read_json(text)))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "settings"
            raise ValueError(f"{where}: {problem['msg']}") from None

    def _push(self, frame: bytes) -> None:
        before = self._sound.seconds
        self._sound.push(frame)
        self._seconds += self._sound.seconds - before
        if self._sound.seconds >= self._window_seconds:
            if not self._due.is_set():
                self._due_at = asyncio.get_running_loop().time()
            self._due.set()

    async def _answer_frames(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            async with self._streams.turns:
                reply = await self._answer()
            await self._send(reply)

    async def _answer(self) -> dict[str, Any]:
        self._state.hops += 1
        due_at = self._due_at
        request_id = f"{self._state.request_id}-{self._state.hops}"
        options = {"top_k": _TOP_K, "windows": True, **SPECTROGRAM}
        try:
            answer = await self._streams.client.predict(
                self._sound.wav() or b"", options, request_id=request_id, trace=self._state.trace
            )
        except (AudioError, ServerError) as error:
            self._streams.metrics.hop(skipped=0, lag_seconds=None)
            self._streams.metrics.failure(error)
            return {"error": str(error)}
        self._streams.metrics.hop(skipped=0, lag_seconds=asyncio.get_running_loop().time() - due_at)
        return to_reply(answer, self._frontend, image=False)

    async def _send(self, content: dict[str, Any]) -> None:
        await send_before(self._socket, content, self._streams.settings.stream_idle_seconds)
