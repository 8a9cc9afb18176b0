"""`audiocnn manage` against a real TorchServe: versions and workers change, no request is lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from audiocnn import files
from audiocnn.audio import synthetic
from audiocnn.client.client import Client
from audiocnn.errors import ModelFileError
from audiocnn.torchserve import integrity
from audiocnn.torchserve.archives import ArchiveError, known_sha256
from audiocnn.torchserve.store import Pending
from tests.conftest import ROOT, STORE, Server, free_ports, running_server, server_settings, wait_until
from tests.test_client_torchserve import torchserve_with_tokens

RAIN = synthetic.wav("rain")
MANIFEST = "MAR-INF/MANIFEST.json"
CONCURRENCY = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "store"  # the record of checksums is beside it
    folder.mkdir()
    shutil.copy(STORE / "audiocnn.mar", folder)
    return folder


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """A server that registers models, on a store of its own."""
    settings = server_settings() | {
        "enable_model_api": "true",
        "model_store": str(store),
    }
    with running_server(tmp_path_factory.mktemp("open"), settings) as running:
        yield running


def manage(server: Server, *arguments: object, code: int = 0) -> str:
    """What the command printed; it must exit with `code`."""
    command = [sys.executable, "-m", "audiocnn", "manage"]
    command += ["--inference", server.inference, "--management", server.management]
    run = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    printed = run.stdout + run.stderr
    assert run.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def repack(
    archive: Path, version: str, change: Callable[[str, bytes], bytes] = lambda name, data: data
) -> Path:
    """A copy of the served archive as another version, its files as `change` makes them."""
    with zipfile.ZipFile(STORE / "audiocnn.mar") as old, zipfile.ZipFile(archive, "w") as new:
        for item in old.infolist():
            data = change(item.filename, old.read(item))
            if item.filename == MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["modelVersion"] = version
                data = json.dumps(manifest).encode()
            new.writestr(item, data)
    return archive


def versions(server: Server) -> list[str]:
    reply = requests.get(f"{server.management}/models/audiocnn/all", timeout=120)
    return sorted(version["modelVersion"] for version in reply.json())


def default(server: Server) -> str:
    (version,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    return str(version["modelVersion"])


@contextmanager
def load(server: Server) -> Iterator[Counter[str]]:
    """Plain HTTP at concurrency 12, no retries, while the block runs; what came back is counted."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    reply = session.post(server.predictions, data=RAIN, timeout=120)
                    top = reply.json()["predictions"][0]["class"] if reply.ok else reply.text
                    seen[f"{reply.status_code} {top}"] += 1
                except requests.RequestException as error:
                    seen[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield seen
        time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def assert_nothing_lost(seen: Counter[str]) -> None:
    assert set(seen) == {"200 rain"}, seen
    assert seen.total() > CONCURRENCY


# --- looking ---


def test_status(server: Server) -> None:
    words = ("1.0", "READY", "2 of 2", "0 of 48", "8, 5 ms", "audiocnn.mar")
    assert wait_until(lambda: all(word in manage(server, "status") for word in words), 60)
    (version,) = json.loads(manage(server, "status", "--json"))
    assert (version["name"], version["is_default"], version["is_ready"]) == ("1.0", True, True)


def test_ready(server: Server) -> None:
    assert "ready" in manage(server, "ready")


def test_nothing_listens() -> None:
    ports = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    nowhere = Server(None, *ports, "", Path())  # type: ignore[arg-type]
    began = time.monotonic()
    assert "no prediction" in manage(nowhere, "ready", code=1)
    assert time.monotonic() - began < 5
    assert "no answer from the management API" in manage(nowhere, "status", code=1)


def test_ready_is_quick_to_start() -> None:
    heavy = "{'torch', 'numpy', 'soundfile'}"
    code = f"import sys, audiocnn.torchserve.manage\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_model_without_workers_is_not_ready(open_server: Server) -> None:
    url = f"{open_server.management}/models/audiocnn"
    requests.put(url, params={"min_worker": 0, "max_worker": 0, "synchronous": "true"}, timeout=120)
    manage(open_server, "ready", code=1)
    assert "NOT READY" in manage(open_server, "status")
    assert "2 workers ready" in manage(open_server, "scale", 2)
    manage(open_server, "ready")


def test_scaling_down_without_registering_waits_for_a_quiet_moment(server: Server) -> None:
    printed = manage(server, "scale", 1)
    assert "waiting for a moment without requests" in printed
    assert "may get a 500" not in printed
    assert "1 workers ready" in printed
    assert "2 workers ready" in manage(server, "scale", 2)
    assert not (STORE / "audiocnn-stand-in.mar").exists()


def test_a_store_that_is_not_the_servers_is_explained(open_server: Server, tmp_path: Path) -> None:
    archive = repack(tmp_path / "new.mar", "6.0")
    (tmp_path / "elsewhere").mkdir()
    printed = manage(open_server, "rollout", archive, "--store", tmp_path / "elsewhere", code=1)
    assert "is this the server's model store?" in printed
    assert os.listdir(tmp_path / "elsewhere") == ["rollout.lock"]


def test_a_wrong_address_is_explained(server: Server) -> None:
    wrong = Server(server.process, "localhost:8080", server.management, "", Path())
    assert "is no address" in manage(wrong, "ready", code=1)


def test_a_server_that_registers_nothing_names_the_line(server: Server, tmp_path: Path) -> None:
    archive = repack(tmp_path / "new.mar", "2.0")
    printed = manage(server, "rollout", archive, code=1)
    number = (ROOT / "config.properties").read_text().splitlines().index("enable_model_api=false") + 1
    assert "enable_model_api=true" in printed
    assert f"config.properties:{number}" in printed
    assert versions(server) == ["1.0"]
    assert not (STORE / "audiocnn-2.0.mar").exists()
    assert "audiocnn-2.0.mar" not in integrity.file_for(STORE / "audiocnn-2.0.mar").read_text()


def test_drain(server: Server) -> None:
    assert "version 1.0 is idle" in manage(server, "drain")
    with load(server):
        assert "still has requests" in manage(server, "drain", "--timeout", "3", code=1)


# --- changing ---


@pytest.mark.slow
def test_scaling_under_load_loses_nothing(open_server: Server, store: Path) -> None:
    with load(open_server) as seen:
        for workers in (1, 4, 1, 2):
            printed = manage(open_server, "scale", workers, "--store", store)
            assert f"{workers} workers ready" in printed
            assert "waiting for a moment" not in printed
    assert_nothing_lost(seen)
    assert versions(open_server) == ["1.0"]


@pytest.mark.slow
def test_a_rollout_and_a_rollback_under_load_lose_nothing(
    open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(tmp_path / "new.mar", "2.0")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "new.mar.sha256").write_text(f"{digest}  new.mar\n")
    for name in synthetic.SOUNDS:
        (tmp_path / f"{name}.wav").write_bytes(synthetic.wav(name))
    before = manage(open_server, "status", "--json")
    with load(open_server) as seen:
        printed = manage(open_server, "rollout", archive, "--clip", tmp_path, "--store", store)
        assert "expected SHA-256" in printed
        assert "5 clips: 100.0%" in printed
        assert versions(open_server) == ["2.0"]
        (old,), (new,) = json.loads(before), json.loads(manage(open_server, "status", "--json"))
        same = ("min_workers", "max_workers", "batch_size", "max_batch_delay_ms", "response_timeout_seconds")
        assert [new[name] for name in same] == [old[name] for name in same]
        assert "version 1.0 serves" in manage(open_server, "rollback", "--store", store)
    assert_nothing_lost(seen)
    assert versions(open_server) == ["1.0"]


def test_with_the_old_version_kept_a_rollback_is_a_switch(
    open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(tmp_path / "new.mar", "2.0")
    printed = manage(open_server, "rollout", archive, "--keep-old", "--store", store)
    assert "not verified" in printed
    assert "load_models=audiocnn-2.0.mar" in printed
    assert (versions(open_server), default(open_server)) == (["1.0", "2.0"], "2.0")
    printed = manage(open_server, "rollout", archive, "--store", store, code=1)
    assert "registered already" in printed
    manage(open_server, "rollback", "--store", store)
    assert (versions(open_server), default(open_server)) == (["1.0"], "1.0")


def raising(line: str) -> Callable[[str, bytes], bytes]:
    """The handler raises where this line stands."""

    def change(name: str, data: bytes) -> bytes:
        if name != "audio_handler.py":
            return data
        assert line.encode() in data
        return data.replace(
            line.encode(), b"raise RuntimeError('broken on purpose')\n        " + line.encode()
        )

    return change


def other_labels(name: str, data: bytes) -> bytes:
    """All answers are one class."""
    old, new = (
        b"def to_dict(self)",
        b"def to_dict(self):\n        return {'predictions': [{'class': 'x'}]}\n\n    def unused(self)",
    )
    return data.replace(old, new) if name == "audiocnn/results.py" else data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (raising("properties = context.system_properties"), "Failed to start workers"),
        (raising("began, timings = time.perf_counter(), Timings()"), "does not answer"),
        (other_labels, "agreement 0.0% is below 90.0%"),
    ],
    ids=["raises on load", "raises on a request", "answers differ"],
)
def test_a_broken_archive_under_load_is_rolled_back(
    change: Callable[[str, bytes], bytes], reason: str, open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(tmp_path / "bad.mar", "3.0", change)
    clip = tmp_path / "rain.wav"
    clip.write_bytes(RAIN)
    with load(open_server) as seen:
        printed = manage(open_server, "rollout", archive, "--clip", clip, "--store", store, code=1)
        assert reason in printed
        assert (versions(open_server), default(open_server)) == (["1.0"], "1.0")
    assert_nothing_lost(seen)
    assert not (store / "audiocnn-3.0.mar").exists()


def test_an_archive_with_one_byte_changed_is_refused(
    open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(tmp_path / "new.mar", "4.0")
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    assert "is damaged" in manage(open_server, "rollout", archive, "--store", store, code=1)
    other = repack(tmp_path / "other.mar", "4.0")
    printed = manage(open_server, "rollout", other, "--sha256", "0" * 64, "--store", store, code=1)
    assert "expected 0000" in printed
    assert not list(store.glob("*.part"))
    assert versions(open_server) == ["1.0"]


def test_a_checksum_is_found_beside_the_archive_but_not_in_the_store(tmp_path: Path) -> None:
    archive, digest = tmp_path / "new.mar", "ab" * 32
    assert known_sha256(archive, tmp_path / "store", None) is None
    (tmp_path / "new.mar.sha256").write_text(f"{digest.upper()}  new.mar\n")
    assert known_sha256(archive, tmp_path / "store", None) == digest
    assert known_sha256(archive, tmp_path, None) is None  # who changes the archive can change it too
    assert known_sha256(archive, tmp_path, str(tmp_path / "new.mar.sha256")) == digest
    assert known_sha256(archive, tmp_path, "CD" * 32) == "cd" * 32
    (tmp_path / "new.mar.sha256").write_text(f"{'cd' * 32}  other.mar\n")
    with pytest.raises(ModelFileError, match=r"of new\.mar"):
        known_sha256(archive, tmp_path / "store", None)
    (tmp_path / "audiocnn.mar.sha256").write_text(f"{'cd' * 32}  store/new.mar\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "new.mar").touch()
    assert known_sha256(tmp_path / "store" / "new.mar", tmp_path / "store", None) == "cd" * 32
    with pytest.raises(ArchiveError, match="neither 64 hex digits nor a file"):
        known_sha256(archive, tmp_path, "abc")


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_a_file_that_is_no_archive_is_refused(
    content: bytes, server: Server, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.mar").write_bytes(content)
    printed = manage(server, "rollout", tmp_path / "x.mar", "--store", store, code=1)
    assert "is no model archive" in printed


def test_a_rollout_that_is_interrupted_is_undone(open_server: Server, store: Path, tmp_path: Path) -> None:
    archive = repack(tmp_path / "new.mar", "5.0")
    command = [sys.executable, "-m", "audiocnn", "manage", "--management", open_server.management]
    command += ["--inference", open_server.inference, "rollout", str(archive), "--store", str(store)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("warming"):
                break
        process.terminate()
        assert process.wait(timeout=600) == 1  # what is in hand may take the client's deadline of 60 s
    assert (versions(open_server), default(open_server)) == (["1.0"], "1.0")
    assert not (store / "audiocnn-5.0.mar").exists()


def start_until(server: Server, word: str, *arguments: object) -> subprocess.Popen[str]:
    """The command, from when it printed a line with this word."""
    command = [sys.executable, "-m", "audiocnn", "manage", "--management", server.management]
    command += ["--inference", server.inference, *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert any(word in line for line in process.stdout)
    return process


def kill_at(server: Server, word: str, *arguments: object) -> None:
    with start_until(server, word, *arguments) as process:
        process.kill()


def answers(server: Server) -> bool:
    return (
        requests.post(server.predictions, data=RAIN, timeout=120).json()["predictions"][0]["class"] == "rain"
    )


def test_a_second_rollout_at_once_is_refused(open_server: Server, store: Path, tmp_path: Path) -> None:
    first, second = repack(tmp_path / "a.mar", "7.0"), repack(tmp_path / "b.mar", "8.0")
    before = {path.name for path in store.iterdir()}
    with start_until(open_server, "warming", "rollout", first, "--store", store) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            for command in (["rollout", second], ["rollback"], ["scale", 1]):
                printed = manage(open_server, *command, "--store", store, code=1)
                assert "another rollout, rollback or scale changes" in printed
        finally:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
    assert versions(open_server) == ["1.0"]  # undone, though nobody reads what it prints any more
    assert {path.name for path in store.iterdir()} <= before | {"rollout.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["no checksum", "registering", "warming", "is the default", "draining"])
def test_a_rollout_that_is_killed_blocks_nothing(
    step: str, open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(tmp_path / "new.mar", "9.0")
    kill_at(open_server, step, "rollout", archive, "--store", store)
    assert answers(open_server)
    is_switched = step in ("is the default", "draining")
    assert default(open_server) == ("9.0" if is_switched else "1.0")
    if is_switched:
        assert "version 1.0 serves" in manage(open_server, "rollback", "--store", store)
    else:
        assert "version 9.0 serves" in manage(open_server, "rollout", archive, "--store", store)
        assert "version 1.0 serves" in manage(open_server, "rollback", "--store", store)
    assert (versions(open_server), answers(open_server)) == (["1.0"], True)
    assert not [path for path in store.iterdir() if path.suffix == ".part" or "pending" in path.name]


@pytest.mark.parametrize("name", ["audiocnn.mar", "../other"])
def test_a_note_in_the_store_forgets_no_checksum_and_deletes_nothing_elsewhere(
    name: str, open_server: Server, store: Path
) -> None:
    """Who can write the store could forge what a killed command leaves."""
    archive, other, digest = (
        store / "audiocnn.mar",
        store.parent / "other",
        files.sha256(STORE / "audiocnn.mar"),
    )
    integrity.record(archive, digest)
    other.touch()
    Pending("2.0", name, "1.0", "audiocnn.mar", is_ours=True).save(store)
    assert "was killed" in manage(open_server, "scale", 2, "--store", store)
    assert other.exists()
    assert integrity.recorded(archive) == digest
    assert archive.exists()


@pytest.mark.slow
def test_a_scale_that_is_killed_is_undone_by_the_next(open_server: Server, store: Path) -> None:
    kill_at(open_server, "is the default", "scale", 1, "--store", store)
    assert answers(open_server)
    assert (store / "audiocnn-stand-in.mar").exists()
    printed = manage(open_server, "scale", 2, "--store", store)
    assert "was killed" in printed
    assert "version 1.0 has 2 workers ready" in printed
    assert versions(open_server) == ["1.0"]
    assert not (store / "audiocnn-stand-in.mar").exists()


def test_tokens_come_from_the_key_file(tmp_path: Path) -> None:
    keys = tmp_path / "key_file.json"
    with torchserve_with_tokens(tmp_path) as settings:
        addresses = settings["inference_address"], settings["management_address"]
        locked = Server(None, *addresses, "", tmp_path)  # type: ignore[arg-type]
        with Client(addresses[0], key_file=keys) as client:
            assert wait_until(lambda: keys.is_file() and client.ready(), 90)
        content = json.loads(keys.read_text())
        content["management"]["key"] = content["inference"]["key"] = "expired"
        keys.write_text(json.dumps(content))
        assert "READY" in manage(locked, "--key-file", keys, "status")
        manage(locked, "--key-file", keys, "ready")
        assert "Token Authorization failed" in manage(locked, "status", code=1)
        manage(locked, "ready", code=1)
