"""The gateway in front of servers of the Open Inference Protocol: a second gateway, and KServe's server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from audiocnn import audio
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.model import openvino_graph
from audiocnn.options import Options
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.kserve import LOG_MEL
from tests.helpers.paths import CHECKPOINT, ROOT, STORE
from tests.helpers.servers import Server
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone

BELLS = (ROOT / "samples" / "church_bells.wav").read_bytes()
NAMES = json.loads((CHECKPOINT / "config.json").read_text())["class_names"]
ALL = {"top_k": 50}
Ask = Callable[[bytes, dict[str, Any]], dict[str, Any]]


@dataclass
class Pair:
    """A gateway, and what answers the same without it."""

    gateway: RunningGateway
    expected: Ask


@pytest.fixture(scope="module")
def before_gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """In front of the waveform model of a gateway that asks for a key; both are the served file."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    with (
        running_gateway(folders[0], server.inference, api_keys=KEY) as first,
        running_gateway(folders[1], "", backend="v2", v2_url=first.url, v2_token=KEY) as second,
    ):

        def expected(content: bytes, options: dict[str, Any]) -> dict[str, Any]:
            key = {"X-API-Key": KEY}
            reply = first.post("/predict", files={"file": content}, data=options, headers=key)
            answer: dict[str, Any] = reply.json()
            return answer

        yield Pair(second, expected)


@pytest.fixture(scope="module")
def before_kserve(kserve: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """In front of KServe's server with the float32 waveform file; the library with the float32 network."""
    folder, url = tmp_path_factory.mktemp("v2"), f"http://127.0.0.1:{kserve}"
    with running_gateway(folder, "", backend="v2", v2_url=url) as running:
        yield Pair(running, asking(Classifier.load(STORE / "audiocnn.onnx")))


@pytest.fixture(scope="module")
def before_log_mel(kserve: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """In front of KServe's server with the served file, which takes log-mels; the library with that file.

    Both run it in ONNX Runtime.
    """
    folder, url = tmp_path_factory.mktemp("v2"), f"http://127.0.0.1:{kserve}"
    with running_gateway(folder, "", backend="v2", v2_url=url, v2_model=LOG_MEL) as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(openvino_graph.VARIABLE, "onnxruntime")
            classifier = Classifier.load(STORE / "audiocnn-int8.onnx")
        yield Pair(running, asking(classifier))


def asking(classifier: Classifier) -> Ask:
    """The library's answers."""

    def ask(content: bytes, options: dict[str, Any]) -> dict[str, Any]:
        return classifier.predict(content, Options.parse(options, classifier.config)).to_dict()

    return ask


@pytest.fixture(params=["before_gateway", "before_kserve", "before_log_mel"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


def confidences(answer: dict[str, Any]) -> dict[str, float]:
    return {row["class"]: row["confidence"] for row in answer["predictions"]}


def long_clip() -> bytes:
    """13 seconds of three sounds; 0.6 MB as FLAC, so within any limit of the tests."""
    parts = [
        audio.decode((ROOT / "samples" / f"{name}.wav").read_bytes(), sample_rate=SAMPLE_RATE).waveform
        for name in ("siren", "church_bells", "rain")
    ]
    return sound_file(np.concatenate(parts)[: 13 * SAMPLE_RATE], format="FLAC")


# --- the same answers ---


def test_the_same_clip_has_the_same_answer_by_all_ways(pair: Pair) -> None:
    data, expected = base64.b64encode(BELLS).decode(), confidences(pair.expected(BELLS, ALL))
    assert len(expected) == 50
    post = pair.gateway.post
    tensor = {"name": "audio", "shape": [1], "datatype": "BYTES", "data": [data]}
    infer = post("/v2/models/audiocnn/infer", json={"inputs": [tensor], "parameters": ALL}).json()
    labels, scores = (output["data"] for output in infer["outputs"])
    hugging_face = post("/hf/audio-classification", json={"inputs": data, "parameters": ALL}).json()
    ways = {
        "form": confidences(post("/predict", files={"file": BELLS}, data=ALL).json()),
        "raw body": confidences(post("/predict?top_k=50", content=BELLS).json()),
        "json": confidences(post("/inference", json={"data": data, **ALL}).json()),
        "batch": confidences(post("/predict_batch", files={"files": BELLS}, data=ALL).json()["results"][0]),
        "v2": dict(zip(labels, scores, strict=True)),
        "hugging face": {row["label"]: row["score"] for row in hugging_face},
    }
    for way, answer in ways.items():
        assert answer == pytest.approx(expected, abs=0.01), way


def test_windows_and_detections_of_a_long_clip(pair: Pair) -> None:
    options = {"detections": True, "windows_top_k": 2, "hop_seconds": 1, "pool": "max", "start": 1, "end": 12}
    answer = pair.gateway.post("/predict", files={"file": long_clip()}, data=options).json()
    expected = pair.expected(long_clip(), options)
    assert len(answer["windows"]) == len(expected["windows"]) > 5
    for row, other in zip(answer["windows"], expected["windows"], strict=True):
        assert (row["start"], row["end"], row["class"]) == (other["start"], other["end"], other["class"])
        assert row["confidence"] == pytest.approx(other["confidence"], abs=0.01)
    assert "rain" in {row["class"] for row in expected["detections"]}
    assert len(answer["detections"]) == len(expected["detections"])
    for event, other in zip(answer["detections"], expected["detections"], strict=True):
        assert event == pytest.approx(other, abs=0.01)


def test_everything_else_of_an_answer(pair: Pair) -> None:
    options = {
        "spectrogram": True,
        "clip_spectrogram": True,
        "waveform": True,
        "embedding": True,
        "windows": True,
    }
    answer = pair.gateway.post("/predict", files={"file": BELLS}, data=options).json()
    expected = pair.expected(BELLS, options)
    assert answer.keys() - {"request_id"} == expected.keys() - {"request_id"}
    for name in ("duration", "is_unknown", "is_silent", "warnings", "waveform", "representative_window"):
        assert answer[name] == expected[name]
    for name in ("input_spectrogram", "clip_spectrogram"):
        values, others = (np.array(each[name]["values"]) for each in (answer, expected))
        np.testing.assert_allclose(values, others, atol=0.11)  # dB have one decimal
    scale = np.abs(expected["embedding"]).max()
    np.testing.assert_allclose(answer["embedding"], expected["embedding"], atol=0.01 * scale)
    assert pair.gateway.post("/spectrogram?format=png", files={"file": BELLS}).content[:4] == b"\x89PNG"


def test_silence_and_a_short_sound(pair: Pair) -> None:
    for waveform in (np.zeros(SAMPLE_RATE), tone(0.4)):
        content = sound_file(waveform)
        answer = pair.gateway.post("/predict", files={"file": content}, data=ALL).json()
        expected = pair.expected(content, ALL)
        assert confidences(answer) == pytest.approx(confidences(expected), abs=0.01)
        assert answer["is_silent"] == expected["is_silent"] == (not waveform.any())


def test_a_stream(pair: Pair) -> None:
    waveform = audio.decode(BELLS, sample_rate=SAMPLE_RATE).waveform

    async def play() -> dict[str, Any]:
        async with connect(pair.gateway.stream) as socket:
            await socket.send(json.dumps({"sample_rate": SAMPLE_RATE, "hop_seconds": 5, "top_k": 50}))
            assert json.loads(await socket.recv())["type"] == "ready"
            await socket.send(waveform[:200_000].tobytes())
            await socket.send(waveform[200_000:].tobytes())
            answer: dict[str, Any] = json.loads(await socket.recv())
            return answer

    answer = asyncio.run(play())
    assert answer["type"] == "answer"
    window = sound_file(np.round(waveform * 32_767).astype(np.int16))  # as a stream asks about it
    assert confidences(answer) == pytest.approx(confidences(pair.expected(window, ALL)), abs=0.01)


def test_many_at_once_are_answered_each_for_itself(pair: Pair) -> None:
    files = [synthetic.wav(name) for name in synthetic.SOUNDS]
    files += [sound_file(tone(3.0, hz=hz), format="OGG", subtype="VORBIS") for hz in (300, 3000)]
    expected = [confidences(pair.expected(file, ALL)) for file in files]

    def ask(number: int) -> dict[str, float]:
        reply = pair.gateway.post("/predict", files={"file": files[number % len(files)]}, data=ALL)
        assert reply.status_code == 200, reply.text
        return confidences(reply.json())

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(4 * len(files))))
    for number, answer in enumerate(answers):
        assert answer == pytest.approx(expected[number % len(files)], abs=0.01)


def test_what_a_waveform_model_cannot_give(pair: Pair) -> None:
    for options in ({"feature_maps": "png"}, {"evidence": True}, {"layers": "conv1"}):
        reply = pair.gateway.post("/predict", files={"file": BELLS}, data=options)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_option")
    data = {"data": base64.b64encode(BELLS).decode()}
    everything = pair.gateway.post("/inference", json=data).json()
    assert {"input_spectrogram", "waveform"} <= everything.keys()
    assert "visualization" not in everything
    assert pair.gateway.post("/inference", json=data | {"feature_maps": "json"}).status_code == 400


@pytest.mark.parametrize(
    "content", [b"", b"no sound", sound_file(np.full(100, np.nan), subtype="FLOAT"), BELLS[:44]]
)
def test_bad_audio_has_the_same_error(before_gateway: Pair, content: bytes) -> None:
    reply = before_gateway.gateway.post("/predict", files={"file": content})
    assert 400 <= reply.status_code < 500
    assert reply.json()["error"] == before_gateway.expected(content, {})["error"]


def test_the_model_is_described(pair: Pair, request: pytest.FixtureRequest) -> None:
    config = pair.gateway.get("/config").json()
    assert (config["num_classes"], config["has_feature_maps"]) == (50, False)
    assert [row["name"] for row in pair.gateway.get("/labels").json()["labels"]] == NAMES
    assert pair.gateway.get("/ready").json() == {"status": "ready"}
    model = pair.gateway.post("/predict", files={"file": BELLS}).json()["model"]
    if "before_gateway" in request.fixturenames:  # it tells; KServe does not
        assert model == pair.expected(BELLS, {})["model"]
    assert (model["name"], model["version"]) == ("audiocnn", "1.0")


# --- failures ---


class Scripted(BaseHTTPRequestHandler):
    """A server whose model has the right metadata; `infer` answers what it is told to."""

    protocol_version = "HTTP/1.1"
    reply: tuple[int, bytes] = (500, b"")
    classes = NAMES
    is_slow = threading.Event()

    def do_GET(self) -> None:
        config = {"parameters": {"class_names": {"string_value": json.dumps(self.classes)}}}
        self._send(200, json.dumps(config if self.path.endswith("/config") else {}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.reply[0] == 0:
            self.is_slow.wait(30)
        self._send(*self.reply)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(status: int, body: bytes, classes: list[str] = NAMES) -> Iterator[str]:
    """Its address."""
    with listening(type("Handler", (Scripted,), {"reply": (status, body), "classes": classes})) as url:
        yield url


@contextmanager
def listening(handler: type[Scripted]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def output(shape: list[int], value: object = 0.02) -> bytes:
    data = [value] * int(np.prod(shape))
    return json.dumps(
        {"outputs": [{"name": "probs", "datatype": "FP32", "shape": shape, "data": data}]}
    ).encode()


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, type[Scripted]]]:
    """A gateway, and the server behind it, whose `reply` a test sets."""
    handler = type("Handler", (Scripted,), {})
    with (
        listening(handler) as url,
        running_gateway(
            tmp_path_factory.mktemp("failing"), "", backend="v2", v2_url=url, deadline_seconds=2
        ) as gateway,
    ):
        yield gateway, handler


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, output([1, 49]), (502, "server_failed")),
        (200, output([2, 50]), (502, "server_failed")),
        (200, output([1, 50], None), (502, "server_failed")),
        (200, output([1, 50], "a"), (502, "server_failed")),
        (200, output([1, 50]).replace(b"probs", b"other"), (502, "server_failed")),
        (200, b"{}", (502, "server_failed")),
        (200, b"\x00", (502, "server_failed")),
        (500, b'{"error": "out of memory"}', (502, "server_failed")),
        (404, b'{"error": "no such model"}', (502, "request_refused")),
        (400, b'{"error": "unexpected shape"}', (502, "request_refused")),
        (401, b"", (502, "token_refused")),
        (503, b'{"error": "overloaded"}', (503, "busy")),
        (0, b"", (503, "server_unreachable")),
    ],
)
def test_a_server_that_fails(
    failing: tuple[RunningGateway, type[Scripted]], status: int, body: bytes, expected: tuple[int, str]
) -> None:
    gateway, server = failing
    server.reply = status, body
    check_refusal(gateway, *expected)


def test_an_option_that_is_not_ascii_is_named_as_it_was_sent(tmp_path: Path) -> None:
    with (
        scripted(200, output([1, 50])) as url,
        running_gateway(tmp_path, "", backend="v2", v2_url=url) as gateway,
    ):
        reply = gateway.post("/predict", files={"file": BELLS}, data={"classes": "gr\u00fcn"})
        assert reply.json()["error"]["code"] == "bad_option"
        assert "gr\u00fcn" in reply.json()["error"]["message"]
        reply = gateway.post("/predict", files={"file": BELLS}, data={"classes": 'rain,"dog"'})
        assert {row["class"] for row in reply.json()["predictions"]} == {"rain", "dog"}


def check_refusal(gateway: RunningGateway, status: int, code: str) -> None:
    """The error of a request; the gateway goes on, and does not call itself ready."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.post, "/predict", files={"file": BELLS})
        assert gateway.get("/health").json() == {"status": "ok"}
        reply = asked.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert (reply.headers.get("Retry-After") is not None) == (status == 503)
    assert gateway.get("/ready").json()["error"]["code"] == "not_ready"


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with running_gateway(
        tmp_path, "", backend="v2", v2_url="http://127.0.0.1:1", deadline_seconds=1
    ) as gateway:
        check_refusal(gateway, 503, "server_unreachable")


def test_a_log_mel_is_computed_with_the_arrays_of_the_checkpoint(kserve: int, tmp_path: Path) -> None:
    """Without them the model is refused."""
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text())
    settings = {"v2_model": LOG_MEL, "model_config_file": tmp_path / "config.json"}
    url = f"http://127.0.0.1:{kserve}"
    with running_gateway(tmp_path, "", backend="v2", v2_url=url, **settings) as gateway:
        check_refusal(gateway, 502, "request_refused")


def test_a_server_with_other_classes(tmp_path: Path) -> None:
    with (
        scripted(200, output([1, 50]), NAMES[::-1]) as url,
        running_gateway(tmp_path, "", backend="v2", v2_url=url, deadline_seconds=2) as gateway,
    ):
        check_refusal(gateway, 502, "request_refused")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"V2_URL": ""}, "V2_URL: "),
        ({"MODEL_CONFIG_FILE": "nothing.json"}, "BACKEND: Value error, v2 needs MODEL_CONFIG_FILE"),
        ({"BACKEND": "triton"}, "BACKEND: "),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], message: str) -> None:
    environment = os.environ | {"BACKEND": "v2", "V2_URL": "http://127.0.0.1:1"} | settings
    command = [sys.executable, "-m", "audiocnn", "gateway"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr
