"""The model store: checksums, links, a full disk, locks and leftovers."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from audiocnn import files
from audiocnn.private_folder import PrivateFolder, remove_abandoned
from audiocnn.torchserve import integrity
from audiocnn.torchserve.archives import ArchiveError, known_sha256
from audiocnn.torchserve.integrity import write_atomically
from audiocnn.torchserve.store import StoreLockedError, locked, remove_leftovers
from tests.helpers.paths import ROOT, STORE
from tests.helpers.servers import server_settings


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def serve(store: Path) -> subprocess.CompletedProcess[str]:
    """`audiocnn serve` on a store whose archive it must refuse."""
    command = [sys.executable, "-m", "audiocnn", "serve", "--logs", str(store.parent / "logs")]
    for key, value in (server_settings() | {"model_store": str(store)}).items():
        command += ["--set", f"{key}={value}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_a_link_in_the_store_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, record = tmp_path / "victim", tmp_path / "rollout.json"
    victim.write_text("mine")
    record.symlink_to(victim)
    (tmp_path / "rollout.json.part").symlink_to(victim)
    integrity.write_atomically(record, "written")
    assert (victim.read_text(), record.read_text()) == ("mine", "written")
    assert not record.is_symlink()


def test_a_full_disk_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_atomically(path, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, "after" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    write_atomically(path, "after")
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["record"]


def test_an_archive_that_is_not_on_record_is_not_served(store: Path) -> None:
    integrity.record(store / "other.mar", "0" * 64)
    shutil.copy(STORE / "audiocnn.mar", store)
    run = serve(store)
    assert run.returncode == 1
    assert "audiocnn.mar has no SHA-256 in" in run.stderr
    how = run.stderr.partition("If you trust it: ")[2].strip()
    subprocess.run(how, shell=True, check=True)
    assert known_sha256(store / "audiocnn.mar", store) == files.sha256(store / "audiocnn.mar")


def test_a_linked_archive_needs_a_recorded_checksum(store: Path) -> None:
    integrity.record(store / "audiocnn.mar", "0" * 64)
    (store.parent / "elsewhere").mkdir()
    shutil.copy(STORE / "audiocnn.mar", store.parent / "elsewhere")
    (store / "audiocnn.mar").symlink_to(store.parent / "elsewhere" / "audiocnn.mar")
    assert known_sha256(store / "audiocnn.mar", store) == "0" * 64
    integrity.record(store / "other.mar", "0" * 64)
    integrity.forget(store / "audiocnn.mar")
    with pytest.raises(ArchiveError, match="has no SHA-256"):
        known_sha256(store / "audiocnn.mar", store)


def test_without_any_record_an_archive_is_served(store: Path) -> None:
    (store / "audiocnn.mar").touch()
    assert known_sha256(store / "audiocnn.mar", store) is None


def test_one_command_at_a_time_changes_a_store(store: Path) -> None:
    copies = [store / "audiocnn-standby.mar", store / "audiocnn-2.0.mar.part"]
    for path in copies:
        path.touch()
    with locked(store) as is_locked:
        assert is_locked
        with pytest.raises(StoreLockedError, match="another rollout, rollback or scale"), locked(store):
            pass
        remove_leftovers(store)
        assert all(path.exists() for path in copies)  # a living command's
    remove_leftovers(store)
    assert not any(path.exists() for path in copies)


def test_folders_of_running_processes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, dead, needed = (PrivateFolder("x-") for _ in range(3))
    (dead.path / "file").touch()
    (tmp_path / "x-unlocked").mkdir()
    (tmp_path / "x-link").symlink_to(dead.path)
    for folder in (dead, needed):
        folder._lock.close()
    remove_abandoned("x-", lambda path: path == needed.path)
    assert {path.name for path in tmp_path.iterdir()} == {
        living.path.name,
        needed.path.name,
        "x-unlocked",
        "x-link",
    }
    living.remove()
    assert not living.path.exists()
