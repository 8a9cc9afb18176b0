"""The gateway's REST side: a real gateway in front of a real TorchServe."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from audiocnn.classifier import Classifier
from audiocnn.client.client import Client
from audiocnn.datasets import LabelledClip
from audiocnn.gateway.schemas import ConfigReply, PredictReply
from audiocnn.labels import ESC50
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.pyav_sounds import encoded
from tests.helpers.scripted_server import BUSY, OK, script, torchserve_error
from tests.helpers.servers import Server
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

RAIN = (ROOT / "samples" / "rain.wav").read_bytes()

SIREN = (ROOT / "samples" / "siren.wav").read_bytes()


def code(reply: httpx.Response) -> str:
    """The error's code; checks what every error has."""
    body = reply.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    assert body["request_id"] == reply.headers["X-Request-Id"]
    return str(body["error"]["code"])


# --- what it is ---


def test_health_readiness_and_labels(gateway: RunningGateway) -> None:
    assert gateway.get("/health").json() == {"status": "ok"}
    assert gateway.get("/ready").json() == {"status": "ready"}
    labels = gateway.get("/labels").json()["labels"]
    assert [row["name"] for row in labels] == [label.name for label in ESC50]
    assert labels[0] == {"name": "dog", "emoji": "🐕", "group": "Animals"}


def test_config_names_the_model_its_front_end_and_the_limits(gateway: RunningGateway) -> None:
    config = gateway.get("/config").json()
    answer = gateway.post("/predict", files={"file": RAIN}).json()
    assert config["model"] == answer["model"]
    assert config["num_classes"] == 50
    assert config["embedding_size"] == 256
    assert config["has_feature_maps"] is True
    assert config["frontend"]["sample_rate"] == 44_100
    assert config["limits"]["max_upload_mb"] == 40
    assert config["stream"]["window_seconds"] == 5


def test_config_says_what_the_model_can_give(gateway: RunningGateway, server: Server) -> None:
    """By the model itself: no configuration file is needed."""
    config = gateway.get("/config").json()
    ConfigReply.model_validate(config | {"request_id": "0"})
    assert (config["embedding_size"], config["has_feature_maps"]) == (256, True)
    assert set(config["thresholds"]) == {label.name for label in ESC50}
    with Client(server.inference) as client:
        info = client.predict(RAIN, {"model_info": True})["model_info"]
    assert config["thresholds"] == info["thresholds"]
    assert config["frontend"] == info["frontend"]
    assert all(one["off"] < one["on"] and one["precision"] > 0 for one in config["thresholds"].values())
    assert "provenance" not in info


def test_detections_are_as_documented(gateway: RunningGateway) -> None:
    query = "detections=true&windows_top_k=2&windows=true&embedding=true"
    answer = gateway.post(f"/predict?{query}", content=RAIN).json()
    reply = PredictReply.model_validate(answer)
    assert reply.detections
    assert (reply.detections[0].class_, reply.detections[0].start) == ("rain", 0.0)
    properties = gateway.get("/openapi.json").json()["components"]["schemas"]["Detection"]["properties"]
    assert set(properties) == set(answer["detections"][0])


def test_documentation_is_there(gateway: RunningGateway) -> None:
    page = gateway.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert all(gateway.get(source).status_code == 200 for source in sources)  # none from another server
    paths = gateway.get("/openapi.json").json()["paths"]
    expected = {"/health", "/ready", "/labels", "/config"}
    expected |= {"/predict", "/spectrogram", "/inference", "/predict_batch", "/embed"}
    assert {path for path in paths if not path.startswith(("/v2", "/hf/"))} == expected


# --- predict ---


def test_an_answer_is_torchserves(gateway: RunningGateway, server: Server) -> None:
    reply = gateway.post(
        "/predict",
        files={"file": ("clip.wav", RAIN)},
        data={"top_k": "2", "evidence": "true", "class": "dog", "windows": "true"},
        headers={"X-Request-Id": "of-mine"},
    )
    with Client(server.inference) as client:
        direct = client.predict(
            RAIN,
            {"top_k": 2, "evidence": True, "class": "dog", "windows": True},
            request_id="of-mine",
        )
    assert reply.json() == direct
    assert reply.headers["X-Request-Id"] == "of-mine"


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "kind",
    [
        "audio/wav",
        "Audio/X-Anything; rate=1",
        "video/webm",
        "application/octet-stream",
        "BINARY/OCTET-STREAM",
        None,
    ],
)
def test_the_body_is_the_file(gateway: RunningGateway, method: str, kind: str | None) -> None:
    reply = gateway.send(method, "/predict", content=RAIN, headers={"Content-Type": kind} if kind else {})
    by_form = gateway.post("/predict", files={"file": RAIN}).json()
    assert reply.json() == by_form | {"request_id": reply.headers["X-Request-Id"]}


def test_curl_sends_a_file(gateway: RunningGateway) -> None:
    result = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", "-T", "samples/rain.wav", f"{gateway.url}/predict?top_k=1"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert [row["class"] for row in json.loads(result.stdout)["predictions"]] == ["rain"]


def test_options_come_in_the_query_in_headers_and_in_fields(gateway: RunningGateway) -> None:
    def count(**request: Any) -> int:
        return len(gateway.post("/predict", **request).json()["predictions"])

    header = {"X-Top-K": "4"}
    assert count(content=RAIN, params={"top_k": 2}) == 2
    assert count(content=RAIN, headers=header) == 4
    assert count(content=RAIN, headers=header, params={"top_k": 2}) == 2  # the query wins over headers
    assert count(files={"file": RAIN}, headers=header) == 4
    form = {"files": {"file": RAIN}, "data": {"top_k": "1"}}
    assert count(**form, headers=header, params={"top_k": 2}) == 1  # and fields over both


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("topk=1", ["topk"]),
        ("topk=1&x&top_k=2", ["topk", "x"]),
        ("key=1", ["key"]),
        ("=1", ["''"]),
        ("top_k=1&top_k=2", ["top_k"]),
        ("top_k=", ["top_k"]),
        ("spectrogram=gif", ["spectrogram", "gif"]),
        ("start=-1", ["start"]),
    ],
)
def test_a_query_that_is_no_option_is_named(gateway: RunningGateway, query: str, named: list[str]) -> None:
    for body in ({"content": RAIN}, {"files": {"file": RAIN}}):
        reply = gateway.post(f"/predict?{query}", **body)
        assert (reply.status_code, code(reply)) == (400, "bad_option")
        assert all(name in reply.json()["error"]["message"] for name in named)


def test_predictions_are_the_same_whatever_pictures_are_asked_for(
    gateway: RunningGateway, fold4: list[LabelledClip]
) -> None:
    pictures = {"feature_maps": "png", "evidence": "true", "spectrogram": "png", "waveform": "true"}
    for clip in fold4[::10]:
        sound = clip.path.read_bytes()
        alone = gateway.post("/predict", content=sound).json()
        with_all = gateway.post("/predict", content=sound, params=pictures).json()
        assert with_all["predictions"] == alone["predictions"]
        assert with_all["precision"] == {"predictions": "int8", "pictures": "float32"}
        assert "precision" not in alone


def test_pictures_of_any_window(gateway: RunningGateway) -> None:
    sound = sound_file(np.concatenate([tone(5.0, hz=300.0), tone(5.0, hz=3000.0)]))
    windows = gateway.post("/predict", content=sound).json()["windows"]
    assert len(windows) == 3
    for window, hz in ((windows[0], 300), (windows[-1], 3000)):
        part = {"start": window["start"], "end": window["end"]}
        query = {"spectrogram": "true", "evidence": "true"} | part
        answer = gateway.post("/predict", content=sound, params=query).json()
        shown = answer["input_spectrogram"]
        loudest = int(np.array(shown["values"]).mean(axis=1).argmax())
        assert answer["representative_window"] == part
        assert (answer["evidence"]["start"], shown["seconds"][0]) == (part["start"], part["start"])
        assert shown["hz"][loudest] == pytest.approx(hz, rel=0.06)


def test_an_option_that_is_a_space_is_the_callers_fault(gateway: RunningGateway) -> None:
    reply = gateway.post("/predict", files={"file": RAIN}, data={"top_k": " "})
    assert (reply.status_code, code(reply)) == (400, "bad_option")  # no server error, which is retried


@pytest.mark.parametrize("name", ["request_id", "trace", "clip", "self"])
def test_an_option_named_like_an_argument_of_ours(gateway: RunningGateway, name: str) -> None:
    audio = base64.b64encode(RAIN).decode()
    replies = [
        gateway.post("/predict", files={"file": RAIN}, data={name: "x"}),
        gateway.post("/predict_batch", files={"files": RAIN}, data={name: "x"}),
        gateway.post("/inference", json={"data": audio, name: "x"}),
    ]
    assert [(reply.status_code, code(reply)) for reply in replies] == [(400, "bad_option")] * 3
    assert all(name in reply.json()["error"]["message"] for reply in replies)


def test_reduced_payload_is_predictions_and_nothing_else(gateway: RunningGateway) -> None:
    reply = gateway.post(
        "/predict", files={"file": RAIN}, data={"reduce_payload": "true", "feature_maps": "json"}
    )
    assert set(reply.json()) == {"predictions", "request_id"}


@pytest.mark.parametrize(
    ("audio", "options", "status", "expected"),
    [
        (b"", {}, 400, "empty_audio"),
        (b"no sound", {}, 415, "unsupported_format"),
        (b"RIFF\0\0\0\0WAVE", {}, 400, "undecodable_audio"),
        (sound_file(tone(0.1), subtype="FLOAT").replace(b"data", b"data"), {"top_k": "0"}, 400, "bad_option"),
        (RAIN, {"topk": "1"}, 400, "bad_option"),
        (RAIN, {"classes": "grün"}, 400, "bad_option"),
        (sound_file(np.zeros((100, 9))), {}, 413, "too_many_channels"),
        (sound_file(np.zeros(100), sample_rate=500), {}, 413, "sample_rate_out_of_range"),
    ],
)
def test_errors_come_through_with_their_codes(
    gateway: RunningGateway, audio: bytes, options: dict[str, str], status: int, expected: str
) -> None:
    reply = gateway.post("/predict", files={"file": audio}, data=options)
    assert (reply.status_code, code(reply)) == (status, expected)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus")])
def test_recordings_of_phones_and_browsers(gateway: RunningGateway, container: str, codec: str) -> None:
    sound = encoded(tone(2.0, sample_rate=48_000), container, codec)
    reply = gateway.post("/predict", files={"file": sound})
    assert reply.json()["duration"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("request_options", "status", "expected"),
    [
        ({"content": RAIN, "headers": {"Content-Type": "text/plain"}}, 415, "wrong_media_type"),
        ({"json": {"data": "AAAA"}}, 415, "wrong_media_type"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 415, "wrong_media_type"),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            400,
            "bad_request",
        ),
        ({"files": {"sound": RAIN}}, 400, "bad_request"),
        ({"files": [("file", RAIN), ("file", RAIN)]}, 400, "bad_request"),
        ({"data": {"file": "clip.wav"}, "files": {}}, 415, "wrong_media_type"),
        ({"files": {"file": RAIN}, "data": {"top_k": "9" * 70_000}}, 400, "bad_request"),
        ({"files": {"file": RAIN}, "data": {f"o{n}": "1" for n in range(50)}}, 400, "bad_request"),
    ],
)
def test_a_body_of_another_kind(
    gateway: RunningGateway, request_options: dict[str, Any], status: int, expected: str
) -> None:
    reply = gateway.post("/predict", **request_options)
    assert (reply.status_code, code(reply)) == (status, expected)


def test_addresses_and_methods_that_do_not_exist(gateway: RunningGateway) -> None:
    assert code(gateway.get("/nothing")) == "not_found"
    reply = gateway.get("/predict")
    assert (reply.status_code, code(reply)) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == "POST, PUT"


# --- the page ---


PAGE = sorted(
    path.name for path in (ROOT / "audiocnn/gateway/page").iterdir() if path.suffix not in ("", ".py")
)


@pytest.mark.parametrize("path", ["/", "/favicon.ico", *(f"/page/{name}" for name in PAGE)])
def test_files_of_the_page_are_kept_until_they_change(strict: RunningGateway, path: str) -> None:
    """They need no key; a browser asks again for each, and gets 304."""
    reply = strict.get(path)
    assert (reply.status_code, reply.headers["Cache-Control"]) == (200, "no-cache")
    again = strict.get(path, headers={"If-None-Match": f'"old", W/{reply.headers["ETag"]}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", reply.headers["ETag"])
    assert strict.get(path, headers={"If-None-Match": '"old"'}).content == reply.content
    head = strict.send("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(reply.content))


def test_the_page_may_run_its_own_files_only(gateway: RunningGateway) -> None:
    policy = gateway.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert gateway.get("/labels").headers["Content-Security-Policy"].count("'none'") == 4
    assert "script-src 'self' 'unsafe-inline'" in gateway.get("/docs").headers["Content-Security-Policy"]


@pytest.mark.parametrize(("path", "target"), [("/ui", "./"), ("/ui/", "../")])
def test_the_old_address_of_the_page_leads_to_the_new_one(
    gateway: RunningGateway, path: str, target: str
) -> None:
    assert gateway.get(path).headers["Location"] == target  # relative: also under a path prefix
    assert gateway.get(path, follow_redirects=True).content == gateway.get("/").content


def test_examples_of_classes_that_the_model_knows(gateway: RunningGateway) -> None:
    names = gateway.get("/config").json()["examples"]
    assert names == ["church_bells", "clock_alarm", "clock_tick", "rain", "siren"]
    assert gateway.get("/examples/rain.wav").content == RAIN
    reply = gateway.get("/examples/nothing.wav")
    assert (reply.status_code, code(reply)) == (404, "not_found")


# --- spectrogram, inference, batch ---


def test_the_spectrogram_has_axes(gateway: RunningGateway) -> None:
    high = gateway.post("/spectrogram", files={"file": sound_file(tone(5.0, hz=3000.0))}).json()
    shown = high["input_spectrogram"]
    values = np.array(shown["values"])
    assert list(values.shape) == shown["shape"] == [len(shown["hz"]), len(shown["seconds"])]
    assert shown["hz"][int(values.mean(axis=1).argmax())] == pytest.approx(3000, rel=0.05)
    assert 4.9 < shown["seconds"][-1] <= 5.0


def test_the_spectrogram_as_a_picture(gateway: RunningGateway) -> None:
    sound = sound_file(tone(5.0, hz=300.0))
    reply = gateway.post("/spectrogram?format=png", files={"file": sound})
    assert reply.headers["Content-Type"] == "image/png"
    picture = Image.open(io.BytesIO(reply.content))
    assert picture.size == (251, 128)
    assert np.asarray(picture).mean(axis=1).argmax() > 96  # a low tone is near the bottom
    assert picture.text["seconds"].startswith("0 to ")
    bad = gateway.post("/spectrogram?format=gif", files={"file": sound})
    assert (bad.status_code, code(bad)) == (400, "bad_option")
    by_field = gateway.post("/spectrogram", files={"file": sound}, data={"format": "png"})
    assert by_field.content == reply.content


@pytest.mark.parametrize("key", ["audio_data", "data"])
@pytest.mark.parametrize("prefix", ["", "data:audio/wav;base64,"])
def test_inference_gives_what_the_seeds_front_ends_read(
    gateway: RunningGateway, key: str, prefix: str
) -> None:
    audio = prefix + base64.b64encode(RAIN).decode()
    reply = gateway.post("/inference", json={key: audio}).json()
    assert [set(row) for row in reply["predictions"]] == [{"class", "confidence"}] * 3
    assert reply["predictions"][0]["class"] == "rain"
    main = [name for name in reply["visualization"] if "." not in name]
    assert main == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert any(name.startswith("layer1.") for name in reply["visualization"])
    for item in reply["visualization"].values():
        values = np.array(item["values"])
        assert list(values.shape) == item["shape"]
        assert np.abs(values).max() == 1
    assert reply["input_spectrogram"]["shape"] == [128, 251]
    assert np.array(reply["input_spectrogram"]["values"]).shape == (128, 251)
    assert reply["waveform"]["sample_rate"] == 44_100
    assert reply["waveform"]["duration"] == 5.0
    assert len(reply["waveform"]["values"]) <= 8000


def test_inference_draws_the_whole_of_a_long_clip(gateway: RunningGateway) -> None:
    """Waveform and spectrogram are of the clip; the answer says which window the maps are of."""
    audio = base64.b64encode(
        sound_file(np.concatenate([tone(5.0, hz=300.0), tone(10.0, hz=3000.0)]))
    ).decode()
    reply = gateway.post("/inference", json={"data": audio}).json()
    shown = reply["input_spectrogram"]
    assert reply["waveform"]["duration"] == 15.0
    assert shown["seconds"][-1] == pytest.approx(15.0, abs=0.05)
    values = np.array(shown["values"])
    for column, hz in ((len(values[0]) // 6, 300.0), (-len(values[0]) // 3, 3000.0)):
        assert shown["hz"][int(values[:, column].argmax())] == pytest.approx(hz, rel=0.05)
    spans = [{name: row[name] for name in ("start", "end")} for row in reply["windows"]]
    assert reply["representative_window"] in spans


def test_inference_takes_options(gateway: RunningGateway) -> None:
    audio = base64.b64encode(RAIN).decode()
    reply = gateway.post("/inference", json={"data": audio, "top_k": 1, "reduce_payload": True}).json()
    assert set(reply) == {"predictions", "request_id"}
    pictures = {"feature_maps": "png", "layers": ["conv1"], "spectrogram": False}
    reply = gateway.post("/inference", json={"data": audio, **pictures}).json()
    assert list(reply["visualization"]) == ["conv1"]
    assert "png" in reply["visualization"]["conv1"]
    assert "input_spectrogram" not in reply


@pytest.mark.parametrize("value", ["PNG", " png ", ["png"]])
def test_inference_takes_a_picture_in_any_spelling(gateway: RunningGateway, value: object) -> None:
    reply = gateway.post("/inference", json={"data": base64.b64encode(RAIN).decode(), "spectrogram": value})
    assert reply.status_code == 200, reply.text
    assert reply.json()["input_spectrogram"]["png"].startswith("iVBOR")


def test_inference_names_the_option_that_is_wrong(gateway: RunningGateway) -> None:
    reply = gateway.post("/inference", json={"data": base64.b64encode(RAIN).decode(), "spectrogram": "maybe"})
    assert (reply.status_code, code(reply)) == (400, "bad_option")
    assert reply.json()["error"]["message"].startswith("spectrogram=")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", "bad_option"),
        (b"[]", "bad_option"),
        (b"{}", "empty_audio"),
        (b'{"data": 3}', "bad_base64"),
        (b'{"data": "%%%"}', "bad_base64"),
        (b'{"data": "AAAA", "top_k": {}}', "bad_option"),
        (b'{"data": "AAAA", "topk": 3}', "bad_option"),
        (b"[" * 100_000, "bad_option"),
    ],
)
def test_inference_says_what_is_wrong(gateway: RunningGateway, body: bytes, expected: str) -> None:
    reply = gateway.post("/inference", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, code(reply)) == (400, expected)


def test_a_batch_answers_each_file(gateway: RunningGateway) -> None:
    files = [("files", (f"{n}.wav", clip)) for n, clip in enumerate([RAIN, b"no sound", SIREN, b""])]
    reply = gateway.post("/predict_batch", files=files, data={"top_k": "1"})
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert [row["file"] for row in results] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert [row["predictions"][0]["class"] for row in results[::2]] == ["rain", "siren"]
    assert [row["error"]["code"] for row in results[1::2]] == ["unsupported_format", "empty_audio"]


def test_a_bad_option_of_a_batch_is_one_error(gateway: RunningGateway) -> None:
    reply = gateway.post("/predict_batch", files=[("files", RAIN)] * 2, data={"top_k": "0"})
    assert (reply.status_code, code(reply)) == (400, "bad_option")


# --- keys and rate limits ---


def test_embeddings_are_those_of_the_model(gateway: RunningGateway, classifier: Classifier) -> None:
    twice = sound_file(np.concatenate([tone(5.0, hz=3000.0), tone(5.0, hz=300.0)]))
    expected = classifier.predict(twice)
    assert expected.embedding is not None
    assert expected.window_embeddings is not None
    reply = gateway.post("/embed?windows=true", files={"file": twice}).json()
    np.testing.assert_allclose(reply["embedding"], expected.embedding, atol=0.02)
    assert reply["dimension"] == len(reply["embedding"]) == 256
    assert reply["model"]["name"] == "audiocnn"
    assert reply["duration"] == 10
    assert [(row["start"], row["end"]) for row in reply["windows"]] == expected.spans
    rows = [row["embedding"] for row in reply["windows"]]
    np.testing.assert_allclose(rows, expected.window_embeddings, atol=0.02)


def test_embeddings_take_the_same_bodies(gateway: RunningGateway) -> None:
    form = gateway.post("/embed", files={"file": SIREN}, data={"end": "2"}).json()
    raw = gateway.post("/embed?end=2", content=SIREN, headers={"Content-Type": "audio/wav"}).json()
    put = gateway.send("PUT", "/embed", content=SIREN, headers={"X-End": "2"}).json()
    assert form["embedding"] == raw["embedding"] == put["embedding"]
    assert form["duration"] == 2
    assert "windows" not in form
    assert "predictions" not in form


def test_embeddings_refuse_what_is_no_sound_and_other_options(gateway: RunningGateway) -> None:
    bad = gateway.post("/embed", files={"file": b"no sound"})
    assert (bad.status_code, code(bad)) == (415, "unsupported_format")
    bad = gateway.post("/embed?top_k=3", files={"file": RAIN})
    assert (bad.status_code, code(bad)) == (400, "bad_option")
    assert "top_k" in bad.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/predict", "/spectrogram", "/inference", "/predict_batch"])
def test_without_a_key(strict: RunningGateway, path: str) -> None:
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": "ü"}, {"Authorization": f"Basic {KEY}"}):
        raw = {name: value.encode() for name, value in headers.items()}
        reply = strict.post(path, files={"file": RAIN}, headers=raw)
        assert (reply.status_code, code(reply)) == (401, "unauthorized")
        reply = strict.send("PUT", "/predict", content=RAIN, headers=raw)
        assert (reply.status_code, code(reply)) == (401, "unauthorized")
    assert strict.get("/labels").status_code == strict.get("/examples/rain.wav").status_code == 401
    assert strict.get("/health").status_code == strict.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {'x' * 32}"}],
)
def test_with_a_key(strict: RunningGateway, headers: dict[str, str]) -> None:
    assert strict.post("/predict", files={"file": RAIN}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", "short"),
        ("API_KEYS", f"{KEY},{'y' * 31}"),
        ("MAX_UPLOAD_MB", "0"),
        ("GATEWAY_PORT", "high"),
        ("TORCHSERVE_URL", "localhost:8080"),
        ("TORCHSERVE_CA_FILE", "/no/such/file.pem"),
        ("TORCHSERVE_CA_FILE", "README.md"),
        ("LOG_FILE", "/no/such/folder/gateway.log"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "audiocnn", "gateway"],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert f"error: {name}" in result.stderr
    assert "Traceback" not in result.stderr
    assert name != "API_KEYS" or value not in result.stderr


def test_a_port_that_is_taken(gateway: RunningGateway) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "audiocnn", "gateway"],
        cwd=ROOT,
        env=os.environ | {"GATEWAY_PORT": str(gateway.port)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_pages_of_foreign_origins(strict: RunningGateway) -> None:
    headers = {"X-API-Key": KEY}
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{strict.port}"):
        reply = strict.post("/predict", files={"file": RAIN}, headers=headers | {"Origin": origin})
        assert (reply.status_code, code(reply)) == (403, "forbidden_origin")
        assert "Access-Control-Allow-Origin" not in reply.headers
    allowed = headers | {"Origin": "https://sounds.example"}
    reply = strict.post("/predict", files={"file": RAIN}, headers=allowed)
    assert reply.status_code == 200
    assert reply.headers["Access-Control-Allow-Origin"] == "https://sounds.example"
    refused = strict.post("/predict", headers={"Origin": "https://sounds.example"})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://sounds.example"


def test_preflight_of_an_allowed_page(strict: RunningGateway) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    reply = httpx.options(
        strict.url + "/predict", headers=ask | {"Origin": "http://localhost:3000"}, trust_env=False
    )
    assert reply.status_code == 200
    assert "X-API-Key" in reply.headers["Access-Control-Allow-Headers"]


def test_a_refused_page_is_told_counted_and_logged(strict: RunningGateway) -> None:
    """Preflights and streams never reach a route; without a line the setting cannot be found."""
    origin = {"Origin": "http://127.0.0.1:3999"}
    ask = origin | {"Access-Control-Request-Method": "POST"}
    preflight = httpx.options(strict.url + "/predict", headers=ask, trust_env=False)
    assert (preflight.status_code, code(preflight)) == (403, "forbidden_origin")
    assert "http://127.0.0.1:3999" in preflight.json()["error"]["message"]
    with pytest.raises(InvalidStatus) as refused:
        connect(strict.stream, additional_headers=origin, proxy=None)
    assert refused.value.response.status_code == 403
    assert b"forbidden_origin" in (refused.value.response.body or b"")
    wrong = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "DELETE"}
    reply = httpx.options(strict.url + "/predict", headers=wrong, trust_env=False)
    assert (reply.status_code, code(reply)) == (400, "bad_request")
    lines = [json.loads(line) for line in strict.log.read_text().splitlines() if "3999" in line]
    assert [line["code"] for line in lines] == ["forbidden_origin"] * 2
    metrics = strict.get("/metrics", headers={"X-API-Key": KEY}).text
    counted = re.search(r'gateway_errors_total\{code="forbidden_origin"\} (\d+)', metrics)
    assert counted
    assert int(counted[1]) >= 2


def test_an_allowed_page_may_send_options_as_headers(strict: RunningGateway) -> None:
    ask = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-top-k,x-evidence"}
    reply = httpx.options(
        strict.url + "/predict", headers=ask | {"Origin": "http://localhost:3000"}, trust_env=False
    )
    assert reply.status_code == 200


def test_the_gateways_own_page_may_ask(gateway: RunningGateway) -> None:
    headers = {"Origin": f"http://localhost:{gateway.port}"}
    assert gateway.post("/predict", files={"file": RAIN}, headers=headers).status_code == 200


def test_a_rate_is_kept_per_caller(server: Server, tmp_path: Path) -> None:
    keys = ["a" * 32, "b" * 32]
    with running_gateway(
        tmp_path, server.inference, rate_limit_per_minute=30, api_keys=",".join(keys)
    ) as gateway:
        mine = [gateway.get("/labels", headers={"X-API-Key": keys[0]}) for _ in range(8)]
        assert [reply.status_code for reply in mine] == [200] * 5 + [429] * 3  # ten seconds' worth at once
        assert code(mine[-1]) == "rate_limited"
        assert 1 <= int(mine[-1].headers["Retry-After"]) <= 3
        assert gateway.get("/labels", headers={"X-API-Key": keys[1]}).status_code == 200
        files = [("files", RAIN)] * 10
        batch = {"X-API-Key": keys[1]}
        assert gateway.post("/predict_batch", files=files, headers=batch).status_code == 200
        assert gateway.get("/labels", headers=batch).status_code == 429  # a batch counts as its files
        assert gateway.get("/health").status_code == 200


# --- limits ---


def padded(size: int) -> bytes:
    """A WAV file of exactly so many bytes."""
    sound = sound_file(tone(2.0))
    return sound + bytes(size - len(sound))


def test_one_byte_over_the_limit(strict: RunningGateway) -> None:
    headers = {"X-API-Key": KEY}
    limit = 1 << 20
    for send in (lambda sound: {"files": {"file": sound}}, lambda sound: {"content": sound}):
        assert strict.post("/predict", **send(padded(limit)), headers=headers).status_code == 200
        reply = strict.post("/predict", **send(padded(limit + 1)), headers=headers)
        assert (reply.status_code, code(reply)) == (413, "upload_too_large")
    for size, status in ((limit, 200), (limit + 1, 413), (3 * limit, 413)):
        body = {"data": base64.b64encode(padded(size)).decode(), "reduce_payload": True}
        assert strict.post("/inference", json=body, headers=headers).status_code == status


def test_an_endless_body_is_stopped(strict: RunningGateway) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(48):
            yield bytes(1 << 16)

    for kind in ("multipart/form-data; boundary=b", "audio/wav"):
        headers = {"X-API-Key": KEY, "Content-Type": kind}
        reply = strict.post("/predict", content=body(), headers=headers)
        assert (reply.status_code, code(reply)) == (413, "upload_too_large")


def test_a_polite_caller_is_refused_before_it_sends(strict: RunningGateway) -> None:
    """`Expect: 100-continue` with a length that is too large: not a byte of the body is asked for."""
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.settimeout(10)
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n"
            b"Expect: 100-continue\r\nX-API-Key: "
            + KEY.encode()
            + b"\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        reply = b"".join(iter(lambda: connection.recv(10_000), b""))
    assert reply.startswith(b"HTTP/1.1 413")


def test_too_many_files(strict: RunningGateway) -> None:
    files = [("files", b"x")] * 4
    reply = strict.post("/predict_batch", files=files, headers={"X-API-Key": KEY})
    assert (reply.status_code, code(reply)) == (400, "bad_request")


def test_an_upload_is_in_memory_only(gateway: RunningGateway) -> None:
    size = 20 << 20
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: %d\r\n\r\n" % (size + 10_000)
        )
        connection.sendall(head + b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
        before = open_files(gateway.process.pid)
        connection.sendall(bytes(size))
        time.sleep(0.3)
        assert open_files(gateway.process.pid) == before
    assert wait_until(lambda: gateway.get("/health").status_code == 200, 5)


def open_files(pid: int) -> set[str]:
    """Regular files that a process has open."""
    targets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {target for target in targets if Path(target).is_file()}


def test_all_uploads_together_are_bounded(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference, max_upload_mb=4, max_buffered_mb=6) as gateway:
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        head = (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
            slow.sendall(head + b"Content-Length: 4100000\r\n\r\n" + form + bytes(4_000_000))
            time.sleep(0.5)
            reply = gateway.post("/predict", files={"file": padded(4_000_000)})
            assert (reply.status_code, code(reply)) == (503, "busy")
            assert reply.headers["Retry-After"] == "1"
            assert gateway.post("/predict", files={"file": RAIN}).status_code == 200
        assert wait_until(
            lambda: gateway.post("/predict", files={"file": padded(4_000_000)}).status_code == 200, 5
        )


# --- slow callers ---


def test_slow_callers_are_let_go(strict: RunningGateway) -> None:
    """A request line that never ends is closed, a body that never ends gets an answer."""
    with (
        socket.create_connection(("127.0.0.1", strict.port)) as silent,
        socket.create_connection(("127.0.0.1", strict.port)) as headers,
        socket.create_connection(("127.0.0.1", strict.port)) as body,
    ):
        headers.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        body.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\nX-API-Key: "
            + KEY.encode()
            + b"\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b"
        )
        for each in (silent, headers, body):
            each.settimeout(10)
        assert silent.recv(100) == b""
        assert headers.recv(100) == b""
        reply = b"".join(iter(lambda: body.recv(10_000), b""))  # until it is closed
        assert reply.startswith(b"HTTP/1.1 408")
        assert b"upload_timeout" in reply


# --- TorchServe in trouble ---


def test_busy_comes_through(tmp_path: Path) -> None:
    with (
        script(*[BUSY] * 50) as torchserve,
        running_gateway(tmp_path, torchserve.url, deadline_seconds=1) as gateway,
    ):
        reply = gateway.post("/predict", files={"file": RAIN})
        assert (reply.status_code, code(reply)) == (503, "busy")
        assert int(reply.headers["Retry-After"]) >= 1


def test_without_torchserve(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running_gateway(tmp_path, f"http://127.0.0.1:{port}", deadline_seconds=1) as gateway:
        reply = gateway.post("/predict", files={"file": RAIN})
        assert (reply.status_code, code(reply)) == (503, "server_unreachable")
        assert "Retry-After" in reply.headers
        assert not re.search(rf"127\.0\.0\.1|{port}", reply.json()["error"]["message"])
        reply = gateway.get("/ready")
        assert (reply.status_code, code(reply)) == (503, "not_ready")
        assert gateway.get("/health").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/ready", 503), ("/labels", 502)])
def test_callers_at_the_same_time_share_a_failure(tmp_path: Path, path: str, status: int) -> None:
    """Each in its turn, the last one of many would wait for as many deadlines."""
    gate = threading.Event()

    def refused(_: object) -> object:
        gate.wait(60)
        return torchserve_error(404, "ModelNotFoundException", "Model not found: audiocnn")

    with (
        script(*[refused] * 8) as torchserve,
        running_gateway(tmp_path, torchserve.url) as gateway,
        ThreadPoolExecutor(8) as pool,
    ):
        replies = [pool.submit(gateway.get, path) for _ in range(8)]
        connections = psutil.Process(gateway.process.pid).net_connections
        assert wait_until(lambda: sum(each.status == "ESTABLISHED" for each in connections()) == 9, 20)
        gate.set()
        assert {reply.result().status_code for reply in replies} == {status}
        assert len(torchserve.seen) == 1


def test_a_model_that_does_not_exist(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference, torchserve_model="nothing") as gateway:
        reply = gateway.post("/predict", files={"file": RAIN})
        assert (reply.status_code, code(reply)) == (502, "request_refused")


def test_only_so_many_wait_at_once(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference, max_in_flight=2) as gateway:
        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(lambda _: gateway.post("/predict", files={"file": RAIN}), range(24)))
        statuses = {reply.status_code for reply in replies}
        assert statuses == {200, 503}
        assert {code(reply) for reply in replies if reply.status_code == 503} == {"busy"}


def test_a_stop_answers_what_is_under_way(server: Server, tmp_path: Path) -> None:
    long = sound_file(tone(120.0))
    with running_gateway(tmp_path, server.inference) as gateway:
        replies: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: replies.append(gateway.post("/predict", files={"file": long}))
        )
        asking.start()
        time.sleep(0.25)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=120) == 0
        asking.join()
        assert replies[0].status_code == 200


def test_a_stop_tells_those_that_it_cannot_wait_for(tmp_path: Path) -> None:
    gate = threading.Event()

    def late(_: object) -> object:
        gate.wait(60)
        return OK

    with (
        script(late) as torchserve,
        running_gateway(tmp_path, torchserve.url) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(gateway.post, "/predict", files={"file": RAIN})
        assert wait_until(lambda: len(torchserve.seen) == 1, 20)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=120) == 0
        reply = asking.result()
        gate.set()
    assert (reply.status_code, code(reply)) == (503, "not_ready")
    assert "Retry-After" in reply.headers
    assert "POST /predict 503" in gateway.log.read_text()


def test_log_lines_name_the_request_and_cannot_be_forged(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference) as gateway:
        gateway.get("/nothing%0aforged", headers={"X-Request-Id": "of-mine"})

        def lines() -> list[str]:
            return gateway.log.read_text().splitlines()

        # It is written when the reply is on its way already.
        assert wait_until(
            lambda: any("GET /nothing%0aforged 404" in line and "of-mine" in line for line in lines()), 5
        )
        assert not any(line.startswith("forged") for line in lines())


# --- the document ---


def test_the_document_describes_the_replies(gateway: RunningGateway) -> None:
    schema = gateway.get("/openapi.json").json()
    form = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) >= {"file", "top_k", "feature_maps", "reduce_payload"}
    for methods in schema["paths"].values():
        for operation in methods.values():
            assert operation["description"]
            assert "422" not in operation["responses"]
    assert "Traceback" not in json.dumps(schema)
