"""Public clients against a real gateway in front of a real TorchServe, and the same answer by all ways."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from audiocnn import audio
from audiocnn.classifier import Classifier
from audiocnn.client.client import Client
from audiocnn.gateway import openapi
from audiocnn.gateway.tensor_models import float_wav
from tests.helpers.clients import examples, run_client
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.paths import ROOT, STORE
from tests.helpers.scripted_server import script
from tests.helpers.servers import Server
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone

BELLS = (ROOT / "samples" / "church_bells.wav").read_bytes()
AUDIO, WAVEFORM = "/v2/models/audiocnn/infer", "/v2/models/audiocnn-waveform/infer"
HF = "/hf/audio-classification"


def samples(content: bytes) -> np.ndarray:
    return audio.decode(content, sample_rate=SAMPLE_RATE).waveform


def audio_request(*files: bytes, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(content).decode() for content in files]
    shape = [len(files), 1]
    return {"inputs": [{"name": "audio", "shape": shape, "datatype": "BYTES", "data": data}], **more}


def post_waveforms(gateway: RunningGateway, rows: np.ndarray, **more: Any) -> httpx.Response:
    """Float32 rows as binary tensors."""
    data = rows.astype("<f4").tobytes()
    tensor = {"name": "waveform", "shape": rows.shape, "datatype": "FP32"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}], **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return gateway.post(WAVEFORM, content=head + data, headers=headers)


def scores(reply: httpx.Response) -> dict[str, float]:
    """Class and score of the first row of a JSON response."""
    assert reply.status_code == 200, reply.text
    outputs = {output["name"]: output for output in reply.json()["outputs"]}
    columns = outputs["label"]["shape"][1]
    return dict(zip(outputs["label"]["data"][:columns], outputs["score"]["data"][:columns], strict=True))


def error(reply: httpx.Response) -> tuple[int, str]:
    """Status and message; checks that the error has the protocol's shape."""
    assert set(reply.json()) == {"error"}
    assert isinstance(reply.json()["error"], str)
    assert reply.headers["X-Request-Id"]
    return reply.status_code, reply.json()["error"]


def confidences(answer: dict[str, Any]) -> dict[str, float]:
    return {row["class"]: row["confidence"] for row in answer["predictions"]}


# --- one clip, one answer ---


def test_the_same_clip_has_the_same_answer_by_all_ways(
    gateway: RunningGateway, server: Server, classifier: Classifier
) -> None:
    data, top = base64.b64encode(BELLS).decode(), {"top_k": 50}
    with Client(server.inference) as client:
        torchserve = client.predict(BELLS, top)
    library = classifier.predict(BELLS)
    hugging_face = gateway.post(HF, json={"inputs": data, "parameters": top}).json()
    ways = {
        "torchserve": confidences(torchserve),
        "library": dict(zip(classifier.config.class_names, map(float, library.probs), strict=True)),
        "form": confidences(gateway.post("/predict", files={"file": BELLS}, data=top).json()),
        "raw body": confidences(gateway.post("/predict?top_k=50", content=BELLS).json()),
        "json": confidences(gateway.post("/inference", json={"data": data, **top}).json()),
        "batch": confidences(
            gateway.post("/predict_batch", files={"files": BELLS}, data=top).json()["results"][0]
        ),
        "v2 bytes": scores(gateway.post(AUDIO, json=audio_request(BELLS, parameters=top))),
        "v2 floats": scores(post_waveforms(gateway, samples(BELLS)[None], parameters=top)),
        "hugging face": {row["label"]: row["score"] for row in hugging_face},
    }
    for way, answer in ways.items():
        assert set(answer) == set(classifier.config.class_names), way
        worst = max(abs(answer[name] - ways["torchserve"][name]) for name in answer)
        assert worst <= 0.01, (way, worst)


def test_a_public_server_of_the_waveform_file_answers_as_float32_does(kserve: int, tmp_path: Path) -> None:
    float32 = Classifier.load(STORE / "audiocnn.onnx").predict(BELLS)
    np.save(tmp_path / "waveform.npy", samples(BELLS)[None])
    program = f"""
import json
import tritonclient.http as triton

waveform = triton.np.load("waveform.npy")
tensor = triton.InferInput("waveform", waveform.shape, "FP32")
tensor.set_data_from_numpy(waveform)
outputs = [triton.InferRequestedOutput("probs")]
client = triton.InferenceServerClient("127.0.0.1:{kserve}")
answer = client.infer("audiocnn-waveform", [tensor], outputs=outputs, request_id="1")
print(json.dumps(answer.as_numpy("probs")[0].tolist()))
"""
    probs = json.loads(run_client(["python", "-c", program], folder=tmp_path))
    np.testing.assert_allclose(probs, float32.probs, atol=0.01)


# --- public clients ---


@pytest.mark.parametrize("name", sorted(set(examples()) - {"audio_cnn_serve_client"}))
def test_an_example_of_the_document_prints_what_it_says(gateway: RunningGateway, name: str) -> None:
    program, expected = examples()[name]
    printed = run_client(["python", "-c", program.replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}")])
    check_printed(printed, expected)


def test_a_generated_client_classifies_a_file_with_a_key(strict: RunningGateway, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(strict.get("/openapi.json").text)
    printed = run_client(
        ["openapi-python-client", "generate", "--path", document, "--meta", "none"], folder=tmp_path
    )
    assert "Unable to parse" not in printed
    program, expected = examples()["audio_cnn_serve_client"]
    assert KEY in program
    program = program.replace("127.0.0.1:8000", f"127.0.0.1:{strict.port}")
    check_printed(run_client(["python", "-c", program], path=tmp_path), expected)


def check_printed(printed: str, expected: str) -> None:
    """The same text; scores within 0.1: int8 is rounded differently by ONNX Runtime and OpenVINO."""
    number = r"\d+\.\d+"
    assert re.sub(number, "_", printed) == re.sub(number, "_", expected)
    ours, theirs = ([float(x) for x in re.findall(number, text)] for text in (printed, expected))
    np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_hugging_face_sends_the_function_to_apply(gateway: RunningGateway) -> None:
    program = f"""
from huggingface_hub import InferenceClient

client = InferenceClient(base_url="{gateway.url}{HF}")
for function in ("softmax", "sigmoid"):
    try:
        rows = client.audio_classification("samples/church_bells.wav", top_k=1, function_to_apply=function)
        print(rows[0].label)
    except Exception as error:
        print(error.response.status_code, error.response.text)
"""
    softmax, sigmoid = run_client(["python", "-c", program]).splitlines()
    assert softmax == "church_bells"
    assert sigmoid.startswith("400 ")
    assert "bad_option: function_to_apply=sigmoid" in sigmoid


def test_a_public_client_reads_health_metadata_and_errors(strict: RunningGateway) -> None:
    program = f"""
import json
import tritonclient.http as triton

client = triton.InferenceServerClient("127.0.0.1:{strict.port}")
key = {{"X-API-Key": "{KEY}"}}
found = [client.is_server_live(), client.is_server_ready()]
found.append(client.is_model_ready("audiocnn", "1.0", headers=key))
found += [client.get_server_metadata(headers=key), client.get_model_metadata("audiocnn", headers=key)]
found.append(client.get_model_config("audiocnn-waveform", headers=key))
audio = triton.InferInput("audio", [1, 1], "BYTES")
audio.set_data_from_numpy(triton.np.array([[b"no sound"]], dtype=object))
for model, headers in (("audiocnn", key), ("audiocnn", {{}}), ("dogs", key)):
    try:
        client.infer(model, [audio], headers=headers)
    except triton.InferenceServerException as error:
        found.append([error.status(), error.message()])
print(json.dumps(found))
"""
    live, ready, model_ready, server, model, config, *errors = json.loads(
        run_client(["python", "-c", program])
    )
    assert live
    assert ready
    assert model_ready
    assert "binary_tensor_data" in server["extensions"]
    assert (model["versions"], model["inputs"][0]["datatype"]) == (["1.0"], "BYTES")
    assert config["input"] == [{"name": "waveform", "data_type": "TYPE_FP32", "dims": [-1]}]
    described = {name: value["string_value"] for name, value in config["parameters"].items()}
    assert (described["sample_rate"], described["version"]) == ("44100", "1.0")
    assert json.loads(described["class_names"])[0] == "dog"
    assert [status for status, _ in errors] == ["415", "401", "404"]
    assert "unsupported_format: " in errors[0][1]
    assert "audiocnn and audiocnn-waveform" in errors[2][1]


# --- the protocol ---


def test_outputs_that_are_asked_for_as_bytes(gateway: RunningGateway, classifier: Classifier) -> None:
    outputs = [
        {"name": "probs", "parameters": {"binary_data": True}},
        {"name": "label"},
        {"name": "embedding"},
    ]
    reply = gateway.post(AUDIO, json=audio_request(BELLS, BELLS, id="mine", outputs=outputs))
    length = int(reply.headers["Inference-Header-Content-Length"])
    head = json.loads(reply.content[:length])
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", "audiocnn", "1.0")
    probs, label, embedding = head["outputs"]
    assert (probs["shape"], label["shape"], embedding["shape"]) == ([2, 50], [2, 5], [2, 256])
    expected = classifier.predict(BELLS).embedding
    np.testing.assert_allclose(embedding["data"][256:], expected, atol=0.05 * np.abs(expected).max())
    values = np.frombuffer(reply.content[length:], "<f4").reshape(2, 50)
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-3)
    assert classifier.config.class_names[values[1].argmax()] == label["data"][5] == "church_bells"


def test_waveforms_as_json_and_longer_than_a_window(gateway: RunningGateway) -> None:
    rows = np.stack([tone(0.5), samples(BELLS)[: SAMPLE_RATE // 2]])
    tensor = {"name": "waveform", "shape": rows.shape, "datatype": "FP32", "data": rows.ravel().tolist()}
    as_json = gateway.post(WAVEFORM, json={"inputs": [tensor]}).json()["outputs"]
    assert as_json == post_waveforms(gateway, rows).json()["outputs"]
    long = np.tile(samples(BELLS), 3)
    form = gateway.post("/predict", files={"file": float_wav(long, SAMPLE_RATE)})
    assert scores(post_waveforms(gateway, long[None])) == pytest.approx(confidences(form.json()), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (AUDIO, audio_request(b""), 400, "empty_audio: "),
        (AUDIO, audio_request(BELLS, b"no sound"), 415, "unsupported_format: Row 1: "),
        (AUDIO, audio_request(*[BELLS[:100]] * 65), 400, "1 to 64 rows"),
        (AUDIO, audio_request(BELLS, parameters={"top_k": 0}), 400, "bad_option: parameters.top_k"),
        (AUDIO, audio_request(BELLS, parameters={"topk": 1}), 400, "bad_option: parameters.topk"),
        (AUDIO, audio_request(BELLS, outputs=[{"name": "logits"}]), 400, "label, score, probs"),
        (WAVEFORM, audio_request(BELLS), 400, "waveform, FP32"),
        ("/v2/models/audiocnn/versions/9/infer", audio_request(BELLS), 404, "1.0 is served"),
        ("/v2/models/dogs/infer", audio_request(BELLS), 404, "audiocnn and audiocnn-waveform"),
        ("/v2/nothing", {}, 404, "not_found"),
        (HF, {"inputs": "%"}, 400, "bad_base64: "),
        (HF, {"inputs": "AAAA"}, 415, "unsupported_format: "),
        (HF, {"data": "AAAA"}, 400, "bad_option: inputs"),
        (HF, {"inputs": "AAAA", "parameters": {"function_to_apply": "sigmoid"}}, 400, "or send softmax"),
        (HF, {"inputs": "AAAA", "parameters": {"function_to_apply": "none"}}, 400, "function_to_apply"),
        (HF, {"inputs": "AAAA", "parameters": {"top_k": -1}}, 400, "top_k"),
    ],
)
def test_errors_are_one_text(
    gateway: RunningGateway, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    got = error(gateway.post(path, json=body))
    assert got[0] == status
    assert message in got[1]


@pytest.mark.parametrize(("rows", "status"), [(np.zeros((1, 0)), 400), (np.full((1, 100), np.nan), 400)])
def test_waveforms_that_are_no_sound(gateway: RunningGateway, rows: np.ndarray, status: int) -> None:
    assert error(post_waveforms(gateway, rows))[0] == status


def test_compressed_bodies(gateway: RunningGateway) -> None:
    body = json.dumps(audio_request(BELLS)).encode()
    for path, content, kind in ((AUDIO, body, "application/json"), (HF, BELLS, "audio/wav")):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        reply = gateway.post(path, content=gzip.compress(content), headers=headers)
        assert reply.json() == gateway.post(path, content=content, headers={"Content-Type": kind}).json()
        got = error(gateway.post(path, content=content, headers=headers | {"Content-Encoding": "deflate"}))
        assert got[0] == 415
        assert "deflate" in got[1]


def test_options_in_the_query_are_obeyed_or_refused(gateway: RunningGateway) -> None:
    assert len(gateway.post(f"{HF}?top_k=2", content=BELLS).json()) == 2
    assert len(gateway.post(HF, content=BELLS, headers={"X-Top-K": "2"}).json()) == 2
    for path, body in (
        (f"{HF}?pool=max", {"content": BELLS}),
        (f"{AUDIO}?top_k=2", {"json": audio_request(BELLS)}),
    ):
        got = error(gateway.post(path, **body))
        assert got[0] == 400
        assert path.partition("?")[2].partition("=")[0] in got[1]


def test_what_is_no_file_is_refused_by_name(gateway: RunningGateway) -> None:
    status, message = error(gateway.post(HF, files={"file": BELLS}))
    assert status == 415
    assert "multipart/form-data" in message


def test_limits_and_keys_hold_here_too(strict: RunningGateway) -> None:
    key = {"X-API-Key": KEY}
    sound = sound_file(tone(2.0))
    sound += bytes((1 << 20) - len(sound))
    posts: list[Callable[[bytes], httpx.Response]] = [
        lambda content: strict.post(AUDIO, json=audio_request(content), headers=key),
        lambda content: strict.post(HF, content=content, headers=key),
        lambda content: strict.post(HF, json={"inputs": base64.b64encode(content).decode()}, headers=key),
    ]
    for post in posts:
        assert post(sound).status_code == 200
        assert error(post(sound + b"x"))[0] == 413
    half = sound[: 1 << 19]
    assert error(strict.post(AUDIO, json=audio_request(half, half, half), headers=key))[0] == 413
    for path in (AUDIO, HF):
        assert error(strict.post(path, json=audio_request(BELLS)))[0] == 401
        foreign = key | {"Origin": "https://evil.example"}
        assert error(strict.post(path, json=audio_request(BELLS), headers=foreign))[0] == 403
    assert error(strict.get("/v2"))[0] == 401
    assert strict.get("/v2/health/ready").status_code == strict.get("/v2/health/live").status_code == 200


def test_a_batch_counts_as_its_rows(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference, rate_limit_per_minute=30) as gateway:
        assert gateway.post(AUDIO, json=audio_request(*[BELLS] * 10)).status_code == 200
        assert error(gateway.get("/v2"))[0] == 429


def test_without_torchserve(tmp_path: Path) -> None:
    with running_gateway(tmp_path, "http://127.0.0.1:1", deadline_seconds=1) as gateway:
        assert gateway.get("/v2/health/live").json() == {"live": True}
        assert error(gateway.get("/v2/health/ready"))[0] == 503
        status, message = error(gateway.post(AUDIO, json=audio_request(BELLS)))
        assert (status, message.partition(":")[0]) == (503, "server_unreachable")


def test_a_model_that_changes_between_two_answers(tmp_path: Path) -> None:
    def reply(name: str) -> tuple[int, dict[str, str], str]:
        rows = [{"class": name, "confidence": 1.0}]
        return 200, {}, json.dumps({"predictions": rows, "model": {"version": "1.0"}})

    with (
        script(reply("dog"), reply("cat")) as torchserve,
        running_gateway(tmp_path, torchserve.url) as gateway,
    ):
        assert gateway.get("/labels").json()["labels"][0]["name"] == "dog"
        asked = audio_request(BELLS) | {"outputs": [{"name": "probs"}]}
        status, message = error(gateway.post(AUDIO, json=asked))
        assert (status, message.partition(":")[0]) == (503, "not_ready")


def test_routes_have_one_label_in_the_metrics(gateway: RunningGateway) -> None:
    gateway.get("/v2/models/anything")
    gateway.get("/v2/models/else")
    metrics = gateway.get("/metrics").text
    assert 'route="/v2/models/{name}"' in metrics
    assert "anything" not in metrics


# --- the document ---


@pytest.fixture(scope="module")
def document(gateway: RunningGateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_operation_ids_are_names(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert {"predict", "predict_batch", "inference", "v2_infer", "hf_audio_classification"} <= set(ids)


def test_every_example_is_as_its_schema_says(document: dict[str, Any]) -> None:
    count = 0
    for path, operation in operations(document):
        replies = [reply.get("content", {}) for reply in operation["responses"].values()]
        for content in [*replies, operation.get("requestBody", {}).get("content", {})]:
            described = content.get("application/json", {})
            if "example" in described:
                schema = described["schema"] | {"components": document["components"]}
                jsonschema.Draft202012Validator(schema).validate(described["example"])
                count += 1
        assert all("example" in reply["application/json"] for reply in replies[1:] if reply), path
    assert count > 50


def test_examples_are_what_is_answered(gateway: RunningGateway) -> None:
    expected = openapi.ANSWERS["predict"]
    answer = gateway.post("/predict", files={"file": BELLS}, data={"top_k": 2}).json()
    assert set(answer) == set(expected)
    assert list(confidences(answer)) == list(confidences(expected))
    infer = gateway.post(AUDIO, json=audio_request(BELLS, parameters={"top_k": 2})).json()
    shown = openapi.ANSWERS["v2_infer"]
    assert infer.keys() == shown.keys()
    assert infer["outputs"][0] == shown["outputs"][0]
    assert (
        gateway.post(HF, content=BELLS).json()[0].keys()
        == openapi.ANSWERS["hf_audio_classification"][0].keys()
    )


@pytest.mark.parametrize("name", ["gateway", "strict"])
def test_a_key_is_optional_unless_keys_are_set(request: pytest.FixtureRequest, name: str) -> None:
    running: RunningGateway = request.getfixturevalue(name)
    document = running.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"ApiKey", "Bearer"}
    assert ({} in document["security"]) == (name == "gateway")
    for path, operation in operations(document):
        is_open = running.get(path).status_code != 401
        assert (operation.get("security") == []) == is_open or name == "gateway"
