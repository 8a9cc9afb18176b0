"""Live streams: real WebSockets to a real gateway in front of a real TorchServe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from audiocnn.audio.decoder import decode
from audiocnn.config import Config
from audiocnn.gateway.stream_audio import SILENCE_DBFS
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import script
from tests.helpers.servers import Server
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import SLOWEST

RATE = 44_100

PREDICTION = {"predictions": [{"class": "dog", "confidence": 0.9}], "warnings": [], "is_silent": False}


@pytest.fixture(scope="module")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """As it comes, but for the times to wait."""
    settings = {"stream_idle_seconds": 4, "stream_start_seconds": 2}
    with running_gateway(tmp_path_factory.mktemp("gateway"), server.inference, **settings) as running:
        yield running


def sample(name: str, sample_rate: int = RATE) -> np.ndarray:
    return decode((ROOT / "samples" / f"{name}.wav").read_bytes(), sample_rate=sample_rate).waveform


def start(**fields: object) -> str:
    return json.dumps({"sample_rate": RATE} | fields)


async def send_sound(socket: ClientConnection, waveform: np.ndarray, size: int = 1 << 16) -> None:
    """As fast as it goes, in frames of `size` samples."""
    for place in range(0, len(waveform), size):
        await socket.send(waveform[place : place + size].astype("<f4").tobytes())


async def received(socket: ClientConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    return answer


async def to_the_end(socket: ClientConnection) -> list[dict[str, Any]]:
    """All frames until the gateway closes."""
    answers = []
    try:
        while True:
            answers.append(await received(socket))
    except ConnectionClosed:
        return answers


def with_stream(
    gateway: RunningGateway, scene: Callable[[ClientConnection], Awaitable[Any]], **more: Any
) -> Any:
    """Open a stream, play the scene, and give back what it returns."""

    async def play() -> Any:
        async with connect(gateway.stream, proxy=None, **more) as socket:
            return await scene(socket)

    return asyncio.run(play())


# --- answers ---


def test_an_answer_for_every_hop(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(hop_seconds=1.0, top_k=2))
        ready = await received(socket)
        assert ready["type"] == "ready"
        assert (ready["sample_rate"], ready["hop_seconds"], ready["top_k"]) == (RATE, 1.0, 2)
        assert ready["window_seconds"] == 5.0
        answers = []
        for second in np.split(sample("siren"), 5):
            await socket.send(second.tobytes())
            answers.append(await received(socket))
        return answers

    answers = with_stream(gateway, scene)
    assert [row["hop"] for row in answers] == [1, 2, 3, 4, 5]
    assert [row["end"] for row in answers] == [1.0, 2.0, 3.0, 4.0, 5.0]
    for row in answers:
        assert [set(prediction) for prediction in row["predictions"]] == [
            {"class", "confidence", "emoji"}
        ] * 2
        assert row["predictions"][0]["class"] == "siren"
        assert row["predictions"][0]["emoji"] == "🚨"
        assert 0 < row["lag_seconds"] < 2
        assert row["skipped"] == 0
        assert not row["is_silent"]


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 48_000, 192_000])
def test_a_stream_may_have_any_usual_sample_rate(gateway: RunningGateway, sample_rate: int) -> None:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(sample_rate=sample_rate, hop_seconds=5.0))
        await send_sound(socket, sample("church_bells", sample_rate))
        await socket.send('{"end": true}')
        return await to_the_end(socket)

    answers = with_stream(gateway, scene)
    assert answers[-1]["predictions"][0]["class"] == "church_bells"


def test_level_and_silence(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start())
        await received(socket)
        answers = []
        for second in (tone(1.0), np.zeros(RATE, np.float32), 10 * tone(1.0)):
            await socket.send(second.tobytes())
            answers.append(await received(socket))
        return answers

    loud, silent, clipped = with_stream(gateway, scene)
    assert loud["level_dbfs"] == pytest.approx(-9.0, abs=0.1)  # a sine at half of full scale
    assert silent["level_dbfs"] == SILENCE_DBFS
    assert clipped["level_dbfs"] == pytest.approx(11.0, abs=0.1)
    assert "full scale" in clipped["warnings"][0]


def test_silence_is_said(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> dict[str, Any]:
        await socket.send(start())
        await received(socket)
        await socket.send(bytes(4 * RATE))
        return await received(socket)

    assert with_stream(gateway, scene)["is_silent"] is True


def test_what_is_left_is_answered_at_the_end(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
        await socket.send(start(hop_seconds=2.0))
        await send_sound(socket, sample("rain")[: RATE // 2])
        await socket.send('{"end": true}')
        return await to_the_end(socket), socket.close_code

    answers, close_code = with_stream(gateway, scene)
    assert [row["type"] for row in answers] == ["ready", "answer"]
    assert answers[1]["end"] == 0.5
    assert close_code == 1000


def test_when_behind_the_newest_window_wins(tmp_path: Path) -> None:
    """A TorchServe that takes 0.7 s an answer, 0.1 s a hop."""

    def slow(_: Any) -> Any:
        time.sleep(0.7)
        return 200, {}, json.dumps(PREDICTION | {"is_unknown": False})

    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(hop_seconds=0.1))
        for _ in range(30):
            await socket.send(tone(0.1).tobytes())
            await asyncio.sleep(0.1)
        await socket.send('{"end": true}')
        return (await to_the_end(socket))[1:]

    with script(*[slow] * 50) as torchserve, running_gateway(tmp_path, torchserve.url) as gateway:
        answers = with_stream(gateway, scene)
    hops = [row["hop"] for row in answers]
    assert hops[-1] == 30
    assert len(hops) <= 7
    assert answers[-1]["skipped"] == 30 - len(hops)
    assert all(row["end"] == pytest.approx(0.1 * row["hop"], abs=0.11) for row in answers)
    assert all(row["lag_seconds"] < 1.0 * SLOWEST for row in answers)  # 20 s if hops were queued


def test_a_failing_server_does_not_end_the_stream(tmp_path: Path) -> None:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start())
        await received(socket)
        answers = []
        for _ in range(2):
            await socket.send(tone(1.0).tobytes())
            answers.append(await received(socket))
        return answers

    died = (500, {}, json.dumps({"code": 500, "type": "InternalServerException", "message": "Worker died."}))
    fine = (200, {}, json.dumps(PREDICTION | {"is_unknown": False}))
    with script(died, died, fine) as torchserve, running_gateway(tmp_path, torchserve.url) as gateway:
        first, second = with_stream(gateway, scene)
    assert (first["type"], first["error"]["code"], first["skipped"]) == ("error", "server_failed", 1)
    assert (second["type"], second["skipped"]) == ("answer", 1)


def test_a_sender_that_is_too_fast_is_held_back(gateway: RunningGateway) -> None:
    """20 s of sound at once: half of it is taken, the rest waits at the sender's."""

    async def scene(socket: ClientConnection) -> None:
        await socket.send(start(sample_rate=192_000, hop_seconds=10.0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await send_sound(socket, np.zeros(60 * 192_000, np.float32))
        socket.transport.abort()

    with_stream(gateway, scene)


# --- events ---


def scene_with_events(sample_rate: int = RATE) -> np.ndarray:
    """A clock from 3 to 8 s and an alarm from 12 to 17 s, in silence of 20.4 s."""
    sound = np.zeros(round(20.4 * sample_rate), np.float32)
    for name, second in (("clock_tick", 3), ("clock_alarm", 12)):
        part = sample(name, sample_rate)
        sound[second * sample_rate :][: len(part)] = part
    return sound


def frames_of_events(gateway: RunningGateway, sample_rate: int, size: int) -> list[dict[str, Any]]:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(sample_rate=sample_rate, hop_seconds=5.0, detections=True))
        assert (await received(socket))["detections"] is True
        sending = asyncio.create_task(send_sound(socket, scene_with_events(sample_rate), size))
        frames = []
        while not sending.done() or not frames:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    frames.append(json.loads(await socket.recv()))
        await socket.send('{"end": true}')
        return frames + await to_the_end(socket)

    frames: list[dict[str, Any]] = with_stream(gateway, scene)
    return frames


def test_events_are_told_when_they_begin_and_end(gateway: RunningGateway) -> None:
    """Those of `/predict` for the same sound, within a hop. Streams take seconds: both are sent at once."""
    wav = sound_file(scene_with_events())
    expected = gateway.post("/predict?detections=true", content=wav).json()["detections"]
    assert {"clock_tick", "clock_alarm"} <= {row["class"] for row in expected}
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(frames_of_events, gateway, *kind) for kind in ((RATE, 4096), (48_000, 1 << 17))]
        for stream in sent:
            check_events(stream.result(), expected)


def check_events(frames: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert {frame["type"] for frame in frames} == {"answer", "detection"}
    events = [frame for frame in frames if frame["type"] == "detection"]
    begun = [(row["class"], row["start"]) for row in events if row["end"] is None]
    over = [row for row in events if row["end"] is not None]
    assert begun == [(row["class"], row["start"]) for row in sorted(over, key=lambda row: row["start"])]
    first = next(n for n, row in enumerate(events) if row["end"] is not None)
    assert events[first]["class"] == "clock_tick"
    assert "clock_alarm" not in [row["class"] for row in events[:first]]  # it was over long before
    assert sorted(row["class"] for row in over) == sorted(row["class"] for row in expected)
    for row in expected:
        (own,) = [each for each in over if each["class"] == row["class"]]
        assert (own["start"], own["end"]) == pytest.approx((row["start"], row["end"]), abs=0.5)
        assert own["peak_confidence"] == pytest.approx(row["peak_confidence"], abs=0.05)


def test_events_of_a_short_stream(gateway: RunningGateway) -> None:
    """Shorter than a window: it is one, as a file is."""

    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(hop_seconds=5.0, detections=True))
        await send_sound(socket, sample("clock_alarm")[: RATE * 3 // 2])
        await socket.send('{"end": true}')
        return await to_the_end(socket)

    events = [frame for frame in with_stream(gateway, scene) if frame["type"] == "detection"]
    assert [(row["class"], row["start"], row["end"]) for row in events] == [
        ("clock_alarm", 0.0, None),
        ("clock_alarm", 0.0, 1.5),
    ]


def test_windows_that_the_server_fails_at_are_left_out(tmp_path: Path) -> None:
    """The stream goes on, and says which."""
    died = (500, {}, json.dumps({"code": 500, "type": "InternalServerException", "message": "Worker died."}))
    info = {
        "predictions": [{"class": "dog", "confidence": 1.0}],
        "model": {"name": "a", "version": "1.0", "sha256": "0"},
        "model_info": Config(class_names=("dog",)).public_dict(),
        "warnings": [],
        "is_silent": False,
        "is_unknown": False,
    }

    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        await socket.send(start(hop_seconds=10.0, detections=True))
        await received(socket)
        await send_sound(socket, tone(2.4))
        failed = await received(socket)
        await send_sound(socket, tone(2.0))
        await socket.send('{"end": true}')
        return [failed, *await to_the_end(socket)]

    fine = (200, {}, json.dumps(info))
    with (
        script(fine, died, died, *[fine] * 20) as torchserve,
        running_gateway(tmp_path, torchserve.url) as gateway,
    ):
        failed, *frames = with_stream(gateway, scene)
    assert (failed["type"], failed["error"]["code"]) == ("error", "server_failed")
    assert (failed["start"], failed["end"]) == (0.0, 2.0)
    over = [row for row in frames if row["type"] == "detection" and row["end"]]
    assert [(row["class"], row["start"], row["end"]) for row in over] == [("dog", 0.5, 4.4)]


# --- what is refused ---


def refusal(gateway: RunningGateway, *frames: str | bytes, **more: Any) -> tuple[int | None, str]:
    """Close code and error code. The gateway may close while a frame is still being sent."""

    async def scene(socket: ClientConnection) -> tuple[int | None, str]:
        with contextlib.suppress(ConnectionClosed):
            for frame in frames:
                await socket.send(frame)
        answers = await to_the_end(socket)
        return socket.close_code, answers[-1].get("error", {}).get("code", "") if answers else ""

    result: tuple[int | None, str] = with_stream(gateway, scene, **more)
    return result


@pytest.mark.parametrize(
    "first",
    [
        "{",
        "[]",
        "{}",
        b"\0\0\0\0",
        start(sample_rate=0),
        start(sample_rate=7_999),
        start(sample_rate=10**9),
        start(sample_rate="many"),
        start(hop_seconds=0.01),
        start(hop_seconds=1e9),
        '{"sample_rate": 44100, "hop_seconds": NaN}',
        start(top_k=0),
        start(volume=11),
        start(api_key="x" * 10_000),
    ],
)
def test_a_start_that_makes_no_sense(gateway: RunningGateway, first: str | bytes) -> None:
    assert refusal(gateway, first) == (4400, "bad_start")


def test_options_in_the_query_are_refused_by_name(gateway: RunningGateway) -> None:
    async def ask() -> tuple[int | None, dict[str, Any]]:
        async with connect(gateway.stream + "?top_k=3", proxy=None) as socket:
            answers = await to_the_end(socket)
            return socket.close_code, answers[-1]["error"]

    close_code, error = asyncio.run(ask())
    assert (close_code, error["code"]) == (4400, "bad_start")
    assert "top_k" in error["message"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(gateway: RunningGateway, value: float) -> None:
    sound = np.array([0, value, 0], np.float32)
    assert refusal(gateway, start(), sound.tobytes()) == (1007, "not_finite_audio")


@pytest.mark.parametrize("frame", [b"\0\0\0", '{"stop": true}', "x" * 5000])
def test_frames_that_are_no_sound(gateway: RunningGateway, frame: str | bytes) -> None:
    close_code, code = refusal(gateway, start(), frame)
    assert code == "bad_frame"
    assert close_code in (1007, 4400)


def test_a_frame_that_is_too_large(gateway: RunningGateway) -> None:
    assert refusal(gateway, start(), bytes((1 << 20) + 4))[0] == 1009


def test_nothing_comes(gateway: RunningGateway) -> None:
    with ThreadPoolExecutor(2) as pool:
        refused = [pool.submit(refusal, gateway, *frames) for frames in ((), (start(),))]
        assert [each.result() for each in refused] == [(4408, "idle")] * 2


def test_keys_and_origins(server: Server, tmp_path: Path) -> None:
    settings = {"api_keys": KEY, "allowed_origins": "https://sounds.example"}
    with running_gateway(tmp_path, server.inference, **settings) as gateway:
        assert refusal(gateway, start()) == (4401, "unauthorized")
        assert refusal(gateway, start(api_key="x" * 40)) == (4401, "unauthorized")
        headers = {"X-API-Key": KEY}
        end = '{"end": true}'
        assert refusal(gateway, start(), end, additional_headers=headers) == (1000, "")
        assert refusal(gateway, start(api_key=KEY), end, origin="https://sounds.example") == (1000, "")
        with pytest.raises(InvalidStatus) as caught:
            refusal(gateway, start(api_key=KEY), origin="https://evil.example")
        assert caught.value.response.status_code == 403


def test_too_many_streams(server: Server, tmp_path: Path) -> None:
    async def scene(gateway: RunningGateway) -> None:
        async with (
            connect(gateway.stream, proxy=None),
            connect(gateway.stream, proxy=None),
            connect(gateway.stream, proxy=None) as third,
        ):
            answers = await to_the_end(third)
            assert (third.close_code, answers[0]["error"]["code"]) == (1013, "busy")
        async with connect(gateway.stream, proxy=None) as later:
            await later.send(start())
            assert (await received(later))["type"] == "ready"

    with running_gateway(tmp_path, server.inference, max_streams=2) as gateway:
        asyncio.run(scene(gateway))


# --- many, and the end ---


def test_hundreds_of_idle_connections_are_harmless(server: Server, tmp_path: Path) -> None:
    async def scene(gateway: RunningGateway) -> None:
        process = psutil.Process(gateway.process.pid)
        async with connect(gateway.stream, proxy=None) as first:
            await first.send(start())
            before = process.memory_info().rss
            idle = await asyncio.gather(*(connect(gateway.stream, **patient) for _ in range(400)))
            for socket in idle:
                await socket.send(start(sample_rate=48_000))
            await received(first)
            await first.send(sample("siren").tobytes())
            answer = await received(first)
            assert answer["predictions"][0]["class"] == "siren"
            assert process.memory_info().rss - before < 60 << 20
            await asyncio.gather(*(socket.close() for socket in idle))

    patient: Any = {"proxy": None, "open_timeout": 10 * SLOWEST}
    # The last connection is open before the first one sends its start.
    with running_gateway(tmp_path, server.inference, stream_start_seconds=10 * SLOWEST) as gateway:
        asyncio.run(scene(gateway))


def test_a_stop_closes_the_streams(server: Server, tmp_path: Path) -> None:
    async def scene(gateway: RunningGateway) -> int | None:
        async with connect(gateway.stream, proxy=None) as socket:
            await socket.send(start())
            await received(socket)
            gateway.process.terminate()
            await to_the_end(socket)
            return socket.close_code

    with running_gateway(tmp_path, server.inference) as gateway:
        assert asyncio.run(scene(gateway)) in (1001, 1012)
        assert gateway.process.wait(timeout=120) == 0


def listen(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "audiocnn", "listen", *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_listen_plays_a_file_in_real_time(gateway: RunningGateway) -> None:
    began = time.monotonic()
    result = listen("samples/clock_tick.wav", "--url", gateway.url, "--json")
    assert time.monotonic() - began > 5
    assert result.returncode == 0, result.stderr
    _, *answers = map(json.loads, result.stdout.splitlines())
    assert [row["hop"] for row in answers] == [1, 2, 3, 4, 5]
    assert answers[-1]["predictions"][0]["class"] == "clock_tick"


def test_listen_says_what_is_wrong(gateway: RunningGateway) -> None:
    for words, status, message in (
        (("README.md",), 2, "no known audio container"),
        (("samples/rain.wav", "--url", "ws://127.0.0.1:1"), 1, "no stream at"),
        (("samples/rain.wav", "--url", gateway.stream, "--top-k", "0"), 1, "top_k"),
    ):
        result = listen(*words)
        assert result.returncode == status
        assert message in result.stderr
        assert "Traceback" not in result.stderr
