"""The API of the Environmental-Audio project: a real gateway in front of a real TorchServe."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

from audiocnn.audio.decoder import decode
from audiocnn.labels import ESC50
from tests.helpers.gateways import RunningGateway
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone

BASE = "/compat/environmental-audio"
RAIN = (ROOT / "samples" / "rain.wav").read_bytes()
SPECTROGRAM = {
    "image",
    "features",
    "shape",
    "time_ticks",
    "freq_ticks",
    "db_ticks",
    "sample_rate",
    "hop_length",
    "n_mels",
}


def post(gateway: RunningGateway, path: str, audio: bytes = RAIN, **query: object) -> Any:
    files = {"file": ("clip.wav", audio, "audio/wav")}
    return gateway.post(BASE + path, files=files, params=query)


def check_spectrogram(shown: dict[str, Any], seconds: float, *, has_image: bool = True) -> None:
    assert set(shown) - {"window_start", "window_end", "warnings"} == SPECTROGRAM
    values = np.array(shown["features"])
    assert list(values.shape) == shown["shape"]
    assert shown["shape"][0] == shown["n_mels"] == 128
    assert shown["time_ticks"][0] == 0
    assert shown["time_ticks"][-1] == pytest.approx(seconds, abs=0.1)
    assert len(shown["time_ticks"]) == len(shown["freq_ticks"]) == 5
    assert shown["freq_ticks"] == sorted(shown["freq_ticks"], reverse=True)
    assert shown["db_ticks"][0] == pytest.approx(values.max(), abs=0.1)
    assert shown["db_ticks"][2] == pytest.approx(values.min(), abs=0.1)
    assert shown["hop_length"] * shown["shape"][1] / shown["sample_rate"] == pytest.approx(seconds, abs=0.1)
    if not has_image:
        assert shown["image"] == ""
        return
    picture = Image.open(io.BytesIO(base64.b64decode(shown["image"])))
    assert (picture.mode, picture.format) == ("RGB", "PNG")
    assert picture.size == (shown["shape"][1], shown["shape"][0])


def test_health_labels_and_config(gateway: RunningGateway) -> None:
    assert gateway.get(BASE + "/health").json() == {"status": "ok"}
    assert gateway.get(BASE + "/labels").json() == {"labels": [label.name for label in ESC50]}
    expected = {"duration": 5.0, "n_mels": 128, "stream_duration": None, "stream_n_mels": None}
    assert gateway.get(BASE + "/config").json() == expected


def test_predict(gateway: RunningGateway) -> None:
    reply = post(gateway, "/predict").json()
    assert reply["top_prediction"]["label"] == "rain"
    assert reply["top_prediction"] == reply["top_k"][0]
    assert [set(row) for row in reply["top_k"]] == [{"label", "confidence"}] * 3
    check_spectrogram(reply["spectrogram"], 5.0)
    (window,) = reply["spectrograms"]
    assert (window["window_start"], window["window_end"]) == (0.0, 5.0)
    ours = gateway.post("/predict", files={"file": ("clip.wav", RAIN)}).json()["predictions"][0]
    assert reply["top_prediction"]["confidence"] == pytest.approx(ours["confidence"], abs=1e-6)


def test_predict_gives_a_spectrogram_for_every_window(gateway: RunningGateway) -> None:
    long = sound_file(np.concatenate([tone(5.0, hz=300.0), tone(5.0, hz=3000.0)]))
    reply = post(gateway, "/predict", long, top_k=2).json()
    assert len(reply["top_k"]) == 2
    assert [row["window_start"] for row in reply["spectrograms"]] == [0.0, 2.5, 5.0]
    for shown in reply["spectrograms"]:
        check_spectrogram(shown, 5.0)
    loudest = [int(np.array(shown["features"]).mean(axis=1).argmax()) for shown in reply["spectrograms"]]
    assert loudest[0] < loudest[2]


def test_predict_without_spectrograms(gateway: RunningGateway) -> None:
    reply = post(gateway, "/predict", reduce_payload="true").json()
    assert reply["spectrogram"] is None
    assert reply["spectrograms"] == []
    assert reply["top_prediction"]["label"] == "rain"


def test_spectrogram(gateway: RunningGateway) -> None:
    check_spectrogram(post(gateway, "/spectrogram").json(), 5.0)


def test_parameters_that_the_model_does_not_use_are_named(gateway: RunningGateway) -> None:
    assert post(gateway, "/predict", n_mels=128, duration=5).json()["warnings"] == []
    (warning,) = post(gateway, "/predict", n_mels=64).json()["warnings"]
    assert "n_mels=64" in warning
    assert "128" in warning


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/predict", {"top_k": 21}),
        ("/predict", {"sample_rate": 7999}),
        ("/predict", {"duration": 31}),
        ("/predict", {"duration": "nan"}),
        ("/spectrogram", {"n_mels": 8}),
    ],
)
def test_parameters_out_of_range(gateway: RunningGateway, path: str, query: dict[str, Any]) -> None:
    reply = post(gateway, path, **query)
    assert reply.status_code == 422
    assert next(iter(query)) in reply.json()["detail"]


def test_requests_are_counted_by_address_and_methods_are_named(gateway: RunningGateway) -> None:
    reply = gateway.send("PUT", f"{BASE}/predict")
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
    assert gateway.get(f"{BASE}/health").status_code == 200
    assert f'route="{BASE}/health"' in gateway.get("/metrics").text


def test_errors_have_a_detail(gateway: RunningGateway) -> None:
    reply = post(gateway, "/predict", b"not a sound")
    assert reply.status_code == 400
    assert set(reply.json()) == {"detail"}
    reply = gateway.post(BASE + "/predict", files={"clip": ("a.wav", RAIN)})
    assert reply.status_code == 400
    assert "file" in reply.json()["detail"]


# --- the stream ---

Scene = Callable[[ClientConnection], Awaitable[Any]]


def with_stream(gateway: RunningGateway, scene: Scene) -> Any:
    async def play() -> Any:
        url = f"ws://127.0.0.1:{gateway.port}{BASE}/ws/predict"
        async with connect(url, proxy=None, max_size=None) as socket:
            return await scene(socket)

    return asyncio.run(asyncio.wait_for(play(), 120))


async def send_sound(socket: ClientConnection, name: str, sample_rate: int) -> None:
    """Frames of 4,096 samples, as that page sends them."""
    sound = samples(name, sample_rate)
    for place in range(0, len(sound), 4 * 4096):
        await socket.send(sound[place : place + 4 * 4096])


def samples(name: str, sample_rate: int) -> bytes:
    waveform = decode((ROOT / "samples" / f"{name}.wav").read_bytes(), sample_rate=sample_rate).waveform
    return waveform.astype("<f4").tobytes()


async def received(socket: ClientConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await socket.recv())
    return answer


def test_a_stream_answers_once_a_window_is_full(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> dict[str, Any]:
        await socket.send(json.dumps({"sample_rate": 16_000, "duration": 3.0, "n_mels": 128}))
        sound = samples("siren", 16_000)
        second = 4 * 16_000
        for number in range(3):
            await socket.send(sound[number * second : (number + 1) * second])
        return await received(socket)

    answer = with_stream(gateway, scene)
    assert set(answer) == {"top_prediction", "top_k", "spectrogram", "spectrograms"}
    assert answer["top_prediction"]["label"] == "siren"
    assert len(answer["top_k"]) == 4
    check_spectrogram(answer["spectrogram"], 3.0, has_image=False)


def test_settings_are_optional_and_reset_forgets(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> list[dict[str, Any]]:
        answers = []
        for name in ("rain", "siren"):
            await send_sound(socket, name, 22_050)
            answers.append(await received(socket))
            await socket.send("reset")
            with contextlib.suppress(TimeoutError):  # answers to frames that were under way
                while True:
                    await asyncio.wait_for(socket.recv(), 1)
        return answers

    answers = with_stream(gateway, scene)
    assert [answer["top_prediction"]["label"] for answer in answers] == ["rain", "siren"]


def test_a_window_of_less_than_a_sample(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> dict[str, Any]:
        await socket.send(json.dumps({"sample_rate": 44_100, "duration": 1e-5}))
        await socket.send(samples("rain", 44_100)[:4000])
        return await received(socket)

    assert "top_prediction" in with_stream(gateway, scene)


def test_a_fault_is_told_and_the_stream_goes_on(gateway: RunningGateway) -> None:
    async def scene(socket: ClientConnection) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        faults = []
        for bad in (b"abc", "no JSON", json.dumps({"n_mels": 1}), b"\x00\x00\xc0\x7f"):
            await socket.send(bad)
            faults.append(await received(socket))
        await socket.send(samples("rain", 22_050))
        return faults, await received(socket)

    faults, answer = with_stream(gateway, scene)
    assert all(set(fault) == {"error"} for fault in faults)
    assert "n_mels" in faults[2]["error"]
    assert answer["top_prediction"]["label"] == "rain"
