"""Attacks on a real TorchServe by callers without any credentials: docs/security.md has the table."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import requests
import soundfile
import yaml

from audiocnn.audio import synthetic
from tests.helpers.paths import STORE
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.sounds import sound_file

RAIN = synthetic.wav("rain")
BATCH_SECONDS = 0.5
MIB = 1 << 20


@dataclass
class Target:
    """A server with one worker that waits a second for a batch of 8, and an attacker's files."""

    server: Server
    folder: Path
    fetched: list[str] = field(
        default_factory=list
    )  # paths that somebody asked the attacker's web server for
    port: int = 0  # of the attacker's web server

    @property
    def code_ran(self) -> bool:
        return (self.folder / "ran").exists()

    def worker(self) -> int:
        (model,) = requests.get(f"{self.server.management}/models/audiocnn", timeout=30).json()
        (worker,) = model["workers"]
        assert worker["status"] == "READY"
        return int(worker["pid"])

    def together(self, bodies: list[bytes], content_type: str) -> list[requests.Response]:
        """Send all at once; the replies in the order of the bodies."""

        def post(body: bytes) -> requests.Response:
            headers = {"Content-Type": content_type}
            return requests.post(self.server.predictions, data=body, headers=headers, timeout=120)

        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(post, bodies))


def write_workflow(path: Path, marker: Path) -> None:
    """A workflow archive whose code leaves a file behind when it is loaded."""
    workflow = {"workflowName": "evil", "specFile": "spec.yaml", "handler": "h.py"}
    spec = {
        "models": {"min-workers": 1, "max-workers": 1, "batch-size": 1, "max-batch-delay": 10},
        "dag": {"pre": ["post"]},
    }
    code = f"open({str(marker)!r}, 'w').close()\ndef pre(data, context): return data\npost = pre\n"
    with zipfile.ZipFile(path, "w") as archive:
        manifest = {"runtime": "python", "workflow": workflow, "archiverVersion": "0.2.15"}
        archive.writestr("WAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("spec.yaml", yaml.safe_dump(spec))
        archive.writestr("h.py", code)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("target")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(STORE / "audiocnn.mar", store)
    write_workflow(folder / "evil.war", folder / "ran")
    shutil.copy(folder / "evil.war", store / "planted.war")
    settings = server_settings(minWorkers=1, maxWorkers=1, batchSize=8, maxBatchDelay=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCNN_BATCH_SECONDS", str(BATCH_SECONDS))
        with running_server(folder / "logs", settings | {"model_store": str(store)}) as server:
            result = Target(server, folder)

            class Recorder(http.server.SimpleHTTPRequestHandler):
                def log_message(self, *_: object) -> None:
                    result.fetched.append(self.path)

            handler = functools.partial(Recorder, directory=str(folder))
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
                result.port = web.server_port
                threading.Thread(target=web.serve_forever, daemon=True).start()
                yield result
                web.shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "file://model_store/evil.war",  # Java took `model_store` for a host, and asked it by FTP
        "file://localhost{folder}/evil.war",
        "file://{folder}/evil.war",
        "{folder}/evil.war",
        "http://127.0.0.1:{port}/evil.war",
        "HTTP://127.0.0.1:{port}/evil.war",
        "planted.war",
        "audiocnn.mar",
        "../evil.war",
        ".",
        "",
    ],
)
def test_no_request_makes_torchserve_fetch_or_run_a_workflow(target: Target, url: str) -> None:
    """A web page can send this: a plain POST needs no preflight, and enable_model_api is off."""
    place = url.format(folder=target.folder, port=target.port)
    for path in ("/workflows", "/models"):
        reply = requests.post(
            target.server.management + path,
            params={"url": place, "initial_workers": 1},
            headers={"Content-Type": "text/plain", "Origin": "http://page.example"},
            timeout=60,
        )
        assert 400 <= reply.status_code < 500, reply.text
        assert "download" not in reply.text, "it tried to fetch it"
    assert requests.get(f"{target.server.management}/workflows", timeout=30).json() == {"workflows": []}
    assert not target.code_ran
    assert not target.fetched


def test_a_small_file_that_is_minutes_of_work_is_refused(target: Target) -> None:
    """Ten minutes of silence at 384 kHz with 8 channels is 124 kB of FLAC and took 32 CPU seconds."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 384_000, 8, format="FLAC") as writer:
        for _ in range(20):
            writer.write(np.zeros((384_000, 8), np.float32))
    worker = target.worker()
    *bombs, neighbour = target.together([file.getvalue()] * 4 + [RAIN], "application/octet-stream")
    assert [(each.status_code, each.json()["error"]["code"]) for each in bombs] == [
        (413, "audio_too_long")
    ] * 4
    assert neighbour.status_code == 200
    assert target.worker() == worker


def test_long_clips_hold_up_no_short_one(target: Target) -> None:
    """Clips that exceed the batch's time get 503 with Retry-After; no clip gets a 500."""
    silence = sound_file(np.zeros(8_000 * 590, np.float32), sample_rate=8_000, subtype="PCM_U8")
    worker = target.worker()
    *long, short = target.together([silence] * 6 + [RAIN], "application/octet-stream")
    assert short.status_code == 200
    assert short.json()["predictions"][0]["class"] == "rain"
    assert {each.status_code for each in long} <= {200, 503}
    refused = [each for each in long if each.status_code == 503]
    assert refused
    for each in refused:
        assert each.json()["error"]["code"] == "busy"
        assert each.headers["Retry-After"] == "1"
    assert target.worker() == worker


def test_a_long_clip_that_is_alone_is_answered(target: Target) -> None:
    silence = sound_file(np.zeros(8_000 * 590, np.float32), sample_rate=8_000, subtype="PCM_U8")
    (reply,) = target.together([silence], "application/octet-stream")
    assert reply.status_code == 200
    assert reply.json()["is_silent"]


def test_json_of_millions_of_values_takes_no_memory(target: Target) -> None:
    body = b'{"data":[' + b"[]," * (12 * MIB // 3) + b"0]}"
    worker = target.worker()
    before = peak_mib(worker)
    replies = target.together([body] * 6, "application/json")
    assert [(each.status_code, each.json()["error"]["code"]) for each in replies] == [(400, "bad_option")] * 6
    assert peak_mib(worker) - before < 300  # the bodies themselves are 72 MiB; parsed they are 1.5 GB
    assert target.worker() == worker


def peak_mib(pid: int) -> float:
    """Largest resident size that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
