"""The model store: folders of a killed server."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.helpers.servers import running_server, server_settings
from tests.helpers.waiting import wait_until


def test_the_folder_of_a_killed_server_is_removed_when_its_processes_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of `audiocnn serve` leaves TorchServe running, in its folder; of both, only the folder."""
    with tempfile.TemporaryDirectory() as name:  # short: a worker's socket is in it
        monkeypatch.setenv("TMPDIR", name)
        check_folders(tmp_path, Path(name))


def check_folders(tmp_path: Path, temporary: Path) -> None:
    settings = server_settings(minWorkers=1)
    with running_server(tmp_path / "first", settings) as first:
        (folder,) = temporary.glob("audiocnn-ts-*")
        orphans = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait(timeout=120)
        try:
            with running_server(tmp_path / "second", server_settings(minWorkers=1)):
                assert folder.exists()
                assert len(list(temporary.glob("audiocnn-ts-*"))) == 2
        finally:
            for process in orphans:
                os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(process.is_running() for process in orphans), 60)
    with running_server(tmp_path / "third", settings):
        assert not folder.exists()
    assert not list(temporary.glob("audiocnn-ts-*"))
