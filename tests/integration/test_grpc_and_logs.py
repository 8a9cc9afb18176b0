"""gRPC streams end, and TorchServe logs no audio."""

from __future__ import annotations

import grpc
import requests

from audiocnn.audio import synthetic
from tests.helpers.servers import Server
from tests.helpers.waiting import wait_until

_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    size, length = b"", len(content)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def prediction_request(clip: bytes) -> bytes:
    """`PredictionsRequest {model_name = 1; map<string, bytes> input = 3}`."""
    entry = field(1, b"data") + field(2, clip)
    return field(1, b"audiocnn") + field(3, entry)


def workers(server: Server) -> dict[int, str]:
    """Process id and status of each."""
    (model,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    return {worker["pid"]: worker["status"] for worker in model["workers"]}


def test_a_grpc_stream_has_one_answer_and_hurts_no_worker(server: Server) -> None:
    assert wait_until(lambda: set(workers(server).values()) == {"READY"}, 60)
    before = workers(server)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_stream(_SERVICE + "StreamPredictions")
        replies = list(call(prediction_request(synthetic.wav("rain")), timeout=120))
        assert len(replies) == 1
        assert b'"rain"' in replies[0]
        single = channel.unary_unary(_SERVICE + "Predictions")
        assert b'"siren"' in single(prediction_request(synthetic.wav("siren")), timeout=120)
    reply = requests.post(server.predictions, data=synthetic.wav("rain"), timeout=120)
    assert reply.json()["predictions"][0]["class"] == "rain"
    assert workers(server) == before


def test_a_clip_that_is_taken_for_a_form_is_not_logged(server: Server) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    requests.post(server.predictions, data=synthetic.wav("rain"), headers=form, timeout=120)
    logs = sorted(server.logs.glob("*.log"))
    assert logs
    for path in logs:
        for line in path.read_text(errors="replace").splitlines():
            assert len(line) < 10_000, (path.name, line[:200])
