"""A real TorchServe over HTTP: predictions, options, signals and start errors."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from audiocnn.audio import synthetic
from audiocnn.config import ModelConfig, feature_map_names
from audiocnn.datasets import LabelledClip
from tests.helpers import command_line
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

RAIN = synthetic.wav("rain")


@pytest.fixture(scope="module")
def batching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker that waits a second for a batch of 8: what is sent together is answered together."""
    settings = server_settings(minWorkers=1, maxWorkers=4, batchSize=8, maxBatchDelay=1000)
    with running_server(tmp_path_factory.mktemp("batching"), settings) as running:
        yield running


def post(server: Server, data: bytes, **arguments: Any) -> requests.Response:
    return requests.post(server.predictions, data=data, timeout=120, **arguments)


def together(
    server: Server, bodies: list[bytes], headers: list[dict[str, str]] | None = None
) -> list[requests.Response]:
    """Send all at once; the answers in the order of the bodies."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda b, h: post(server, b, headers=h), bodies, headers or [{}] * len(bodies)))


def labels(reply: requests.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [row["class"] for row in reply.json()["predictions"]]


def assert_same_answer(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Same classes in the same order, confidences within 1e-4."""
    assert [row["class"] for row in one["predictions"]] == [row["class"] for row in two["predictions"]]
    for a, b in zip(one["predictions"], two["predictions"], strict=True):
        assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-4)


# --- one request ---


def test_the_answer_has_the_documented_shape(server: Server) -> None:
    reply = post(server, RAIN)
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json()
    documented = {"predictions", "is_unknown", "is_silent", "warnings", "duration", "model", "request_id"}
    assert set(answer) == documented
    assert len(answer["predictions"]) == 5
    assert answer["duration"] == 5.0
    assert answer["model"]["name"] == "audiocnn"
    assert len(answer["model"]["sha256"]) == 12


def test_put_multipart_and_json_give_the_same_answer(server: Server) -> None:
    text = base64.b64encode(RAIN).decode()
    raw = post(server, RAIN).json()
    replies = [
        requests.put(server.predictions, data=RAIN, timeout=120),
        requests.post(server.predictions, files={"data": ("rain.wav", RAIN, "audio/wav")}, timeout=120),
        requests.post(server.predictions, json={"audio_data": text}, timeout=120),
        requests.post(server.predictions, json={"data": text}, timeout=120),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        assert_same_answer(reply.json(), raw)


def test_top_k_by_header_field_and_key(server: Server) -> None:
    assert len(labels(post(server, RAIN, headers={"X-Top-K": "10"}))) == 10
    field = requests.post(server.predictions, files={"data": RAIN}, data={"top_k": "7"}, timeout=120)
    assert len(labels(field)) == 7
    text = base64.b64encode(RAIN).decode()
    assert len(labels(requests.post(server.predictions, json={"data": text, "top_k": 2}, timeout=120))) == 2


def test_feature_maps_by_header(server: Server) -> None:
    reply = post(server, RAIN, headers={"X-Feature-Maps": "json"})
    maps = reply.json()["visualization"]
    assert set(maps) == set(feature_map_names(ModelConfig()))
    assert np.array(maps["layer1"]["values"]).shape == tuple(maps["layer1"]["shape"])
    (with_maps, *_), (without, *_) = reply.json()["predictions"], post(server, RAIN).json()["predictions"]
    assert with_maps["class"] == without["class"]
    assert with_maps["confidence"] == pytest.approx(without["confidence"], abs=0.1)  # float32 and int8


def test_unseen_clips_over_http_and_on_the_command_line(server: Server, fold4: list[LabelledClip]) -> None:
    """50 real clips, 8 at a time with batching on, against `audiocnn classify --json`."""
    clips = fold4[::4]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda clip: post(server, clip.path.read_bytes()), clips))
    right = [labels(reply)[0] == clip.label for reply, clip in zip(replies, clips, strict=True)]
    assert np.mean(right) > 0.6
    assert wait_until(lambda: max(map(len, server.batches())) > 1, 5)
    done = command_line.run("classify", "--json", "--top-k", "5", *(clip.path for clip in clips))
    assert done.returncode == 0, done.stderr
    for reply, line in zip(replies, done.stdout.splitlines(), strict=True):
        assert_same_answer(reply.json(), json.loads(line))


@pytest.mark.parametrize("seconds", [0.05, 1.0, 5.02, 7.0, 180.0])
def test_any_length_is_answered(server: Server, seconds: float) -> None:
    reply = post(server, sound_file(tone(seconds)))
    assert reply.status_code == 200, reply.text
    assert reply.json()["duration"] == pytest.approx(seconds, abs=0.001)
    assert ("windows" in reply.json()) == (seconds > 6)


# --- what is wrong, and its neighbours ---

NAN = tone(0.5).copy()


NAN[7] = np.nan


BAD = [
    (b"", {}, 400, "empty_audio"),
    (b"Hello, what sound is this?", {}, 415, "unsupported_format"),
    (bytes(range(5, 256)) * 20, {}, 415, "unsupported_format"),
    (sound_file(NAN, subtype="FLOAT"), {}, 400, "not_finite_audio"),
    (RAIN, {"X-Top-K": "zero"}, 400, "bad_option"),
]


def test_bad_requests_get_their_error_and_hurt_no_neighbour(batching: Server) -> None:
    good = [RAIN, synthetic.wav("siren"), sound_file(tone(7.0))]
    alone = [post(batching, data).json() for data in good]
    bodies = [data for data, *_ in BAD] + good
    replies = together(batching, bodies, [headers for _, headers, *_ in BAD] + [{}] * len(good))
    ids = {reply.headers["x-request-id"] for reply in replies}
    assert wait_until(lambda: ids in batching.batches(), 5)  # they really were one batch of 8
    for reply, (_, _, status, code) in zip(replies, BAD, strict=False):
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["error"]["code"] == code
    for reply, expected in zip(replies[len(BAD) :], alone, strict=True):
        assert reply.status_code == 200
        assert_same_answer(reply.json(), expected)


def test_an_unknown_field_is_named(server: Server) -> None:
    reply = requests.post(server.predictions, files={"data": RAIN}, data={"topk": "7"}, timeout=120)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "bad_option"
    assert "topk" in reply.json()["error"]["message"]


def test_clips_with_and_without_maps_share_a_batch(batching: Server) -> None:
    headers = [{}, {"X-Feature-Maps": "png"}, {"X-Evidence": "true"}, {}, {}, {}, {}, {"X-Top-K": "1"}]
    replies = together(batching, [RAIN] * 8, headers)
    ids = {reply.headers["x-request-id"] for reply in replies}
    assert wait_until(lambda: ids in batching.batches(), 5)
    assert [reply.status_code for reply in replies] == [200] * 8
    assert "visualization" in replies[1].json()
    assert "evidence" in replies[2].json()
    assert "visualization" not in replies[0].json()
    top = {reply.json()["predictions"][0]["class"] for reply in replies}
    assert len(top) == 1


def test_predictions_and_explanations_share_a_batch(batching: Server) -> None:
    def ask(verb: str, number: int) -> requests.Response:
        url = f"{batching.inference}/{verb}/audiocnn"
        return requests.post(url, data=RAIN, headers={"X-Request-Id": f"mixed-{number}"}, timeout=120)

    verbs = ["predictions", "explanations"] * 4
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, verbs, range(8)))
    ids = {reply.headers["x-request-id"] for reply in replies}
    assert wait_until(lambda: ids in batching.batches(), 5)
    for number, (verb, reply) in enumerate(zip(verbs, replies, strict=True)):
        assert reply.status_code == 200
        assert reply.json()["request_id"] == f"mixed-{number}"
        assert ("explanations" in reply.json()) is (verb == "explanations")


def test_a_request_id_is_in_the_error_and_in_the_log_and_the_audio_is_not(server: Server) -> None:
    secret = b"these bytes are somebody's voice"
    reply = post(server, secret, headers={"X-Request-Id": "find-me-7"})
    assert reply.json()["request_id"] == "find-me-7"

    def logged() -> str:
        return "".join(path.read_text() for path in server.logs.glob("*.log"))

    assert wait_until(lambda: "request find-me-7: 415 unsupported_format" in logged(), 5)
    assert secret.decode() not in logged()


# --- management ---


def test_config_properties_is_what_the_server_runs_with(server: Server) -> None:
    (model,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    assert (model["batchSize"], model["maxBatchDelay"], model["responseTimeout"]) == (8, 5, 60)
    assert len(model["workers"]) == model["minWorkers"] == 2


def test_workers_are_scaled_by_the_management_api(batching: Server) -> None:
    url = f"{batching.management}/models/audiocnn"

    def workers() -> int:
        (model,) = requests.get(url, timeout=120).json()
        return sum(worker["status"] == "READY" for worker in model["workers"])

    assert requests.put(url, params={"min_worker": 2, "synchronous": "true"}, timeout=120).status_code == 200
    assert workers() == 2
    assert post(batching, RAIN).status_code == 200
    assert requests.put(url, params={"min_worker": 1, "max_worker": 1, "synchronous": "true"}, timeout=120).ok
    assert wait_until(lambda: workers() == 1, 10)


def test_metrics_are_exported(server: Server) -> None:
    post(server, RAIN)
    text = requests.get(f"{server.metrics}/metrics", timeout=120).text
    assert "ts_inference_requests_total" in text


# --- start and stop ---


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def test_a_signal_while_starting_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiocnn", "serve", "--logs", str(tmp_path)]
    for key, value in server_settings(minWorkers=1).items():
        command += ["--set", f"{key}={value}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting")
        process.terminate()
        assert process.wait(timeout=120) == 0
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert not left
    folders = [
        p
        for p in psutil.process_iter(["environ"])
        if (p.info["environ"] or {}).get("LOG_LOCATION") == str(tmp_path)
    ]
    assert not folders


def test_a_killed_launcher_does_not_leave_java_behind(tmp_path: Path) -> None:
    with running_server(tmp_path, server_settings(minWorkers=1), flags=["--no-restart"]) as running:
        processes = family(running.process.pid)
        (launcher,) = psutil.Process(running.process.pid).children()
        launcher.kill()
        assert running.process.wait(timeout=120) == 1
        assert running.process.stdout is not None
        error = running.process.stdout.read()
        assert f"error: TorchServe ended by itself, see {tmp_path / 'torchserve.log'}" in error
        assert "non-default JVM parameters" in error  # the end of the log, which may go with its container
        assert wait_until(lambda: not any(map(is_alive, processes)), 5)


def test_requests_in_hand_are_answered_before_sigterm_stops_everything(tmp_path: Path) -> None:
    minute = sound_file(tone(60.0))
    with running_server(tmp_path, server_settings(minWorkers=1)) as running, ThreadPoolExecutor(12) as pool:
        processes = family(running.process.pid)
        assert any(process.name() == "java" for process in processes)
        replies = [pool.submit(post, running, minute) for _ in range(12)]
        time.sleep(0.5)
        assert not all(reply.done() for reply in replies)
        running.process.terminate()
        assert [reply.result().status_code for reply in replies] == [200] * 12
        assert running.process.wait(timeout=120) == 0
        assert not [process for process in processes if is_alive(process)]


def test_with_the_gateway_both_start_and_sigint_stops_both(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    settings = server_settings(minWorkers=1)
    with running_server(tmp_path, settings, flags=["--gateway", f"127.0.0.1:{port}"]) as running:
        processes = family(running.process.pid)
        assert any(process.name() == "java" for process in processes)
        reply = requests.post(f"http://127.0.0.1:{port}/predict", files={"file": RAIN}, timeout=120)
        assert reply.json()["predictions"][0]["class"] == "rain"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=120) == 0
        assert not [process for process in processes if is_alive(process)]


def test_a_gateway_that_cannot_start_is_explained_and_nothing_is_left(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "audiocnn",
        "serve",
        "--logs",
        str(tmp_path),
        "--gateway",
        "127.0.0.1:1",
    ]
    for key, value in server_settings(minWorkers=1).items():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | {"API_KEYS": "too-short"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 1
    assert "API_KEYS" in run.stderr
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert not left


def test_a_taken_port_is_explained_and_nothing_is_started(server: Server) -> None:
    command = [
        sys.executable,
        "-m",
        "audiocnn",
        "serve",
        "--set",
        f"inference_address={server.inference}",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 1
    (java,) = [p for p in psutil.Process(server.process.pid).children(recursive=True) if p.name() == "java"]
    assert f"is in use by process {java.pid} (java)" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_missing_archive_is_explained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiocnn", "serve", "--set", f"model_store={tmp_path}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 1
    assert "make archive" in run.stderr


def test_plain_torchserve_start_serves_the_same(tmp_path: Path, server: Server) -> None:
    """No command of ours around it: only TorchServe, the configuration and the archive."""
    settings = server_settings(minWorkers=1)
    config = tmp_path / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    environment = os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "LOG_LOCATION": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["torchserve", "--start", "--ts-config", str(config), "--no-config-snapshots"]
    subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    java = psutil.Process(int((tmp_path / ".model_server.pid").read_text()))
    plain = Server(server.process, settings["inference_address"], "", "", tmp_path)

    def answers() -> bool:
        try:
            return post(plain, RAIN).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        assert wait_until(answers, 60)
        assert_same_answer(post(plain, RAIN).json(), post(server, RAIN).json())
        maps = post(plain, sound_file(tone(1.0)), headers={"X-Feature-Maps": "json"}).json()["visualization"]
        assert "layer4" in maps
    finally:
        java.terminate()
        java.wait(timeout=120)
