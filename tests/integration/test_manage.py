"""`audiocnn manage` against a real TorchServe: versions and workers change, no request is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from audiocnn import files
from audiocnn.client.client import Client
from audiocnn.torchserve import integrity
from audiocnn.torchserve.store import Pending
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.rollouts import (
    default,
    load,
    manage,
    repack,
    start_until,
    versions,
)
from tests.helpers.servers import Server
from tests.helpers.tokens import torchserve_with_tokens
from tests.helpers.waiting import wait_until

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
    assert "no prediction" in manage(nowhere, "ready", code=1)
    assert "no answer from the management API" in manage(nowhere, "status", code=1)


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
    assert not (STORE / "audiocnn-standby.mar").exists()


def test_a_store_that_is_not_the_servers_is_explained(open_server: Server, tmp_path: Path) -> None:
    archive = repack(tmp_path / "new.mar", "6.0")
    (tmp_path / "elsewhere").mkdir()
    printed = manage(open_server, "rollout", archive, "--store", tmp_path / "elsewhere", code=1)
    assert "--store is the server's model store" in printed
    assert os.listdir(tmp_path / "elsewhere") == ["rollout.lock"]


def test_a_wrong_address_is_explained(server: Server) -> None:
    wrong = Server(server.process, "localhost:8080", server.management, "", Path())
    assert "invalid address" in manage(wrong, "ready", code=1)


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


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_a_file_that_is_no_archive_is_refused(
    content: bytes, server: Server, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.mar").write_bytes(content)
    printed = manage(server, "rollout", tmp_path / "x.mar", "--store", store, code=1)
    assert "is not a model archive" in printed


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


def test_a_second_rollout_at_once_is_refused(open_server: Server, store: Path, tmp_path: Path) -> None:
    first, second = repack(tmp_path / "a.mar", "7.0"), repack(tmp_path / "b.mar", "8.0")
    before = {path.name for path in store.iterdir()}
    with start_until(open_server, "warming", "rollout", first, "--store", store) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            for command in (["rollout", second], ["rollback"], ["scale", 1]):
                printed = manage(open_server, *command, "--store", store, code=1)
                assert "another rollout, rollback or scale is changing" in printed
        finally:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
    assert versions(open_server) == ["1.0"]  # undone, although its output pipe is closed
    assert {path.name for path in store.iterdir()} <= before | {"rollout.lock"}


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
