"""The model store: concurrent writers, and folders of a killed server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from audiocnn.torchserve import integrity
from tests.helpers.paths import ROOT
from tests.helpers.servers import running_server, server_settings
from tests.helpers.waiting import wait_until


def test_what_a_killed_server_left_is_removed_when_nothing_of_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of `audiocnn serve` leaves TorchServe running, in its folder; of both, only the folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    settings = server_settings(minWorkers=1)
    with running_server(tmp_path / "first", settings) as first:
        (folder,) = (tmp_path / "tmp").glob("audiocnn-ts-*")
        orphans = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait(timeout=120)
        try:
            with running_server(tmp_path / "second", server_settings(minWorkers=1)):
                assert folder.exists()
                assert len(list((tmp_path / "tmp").glob("audiocnn-ts-*"))) == 2
        finally:
            for process in orphans:
                os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(process.is_running() for process in orphans), 60)
    with running_server(tmp_path / "third", settings):
        assert not folder.exists()
    assert not list((tmp_path / "tmp").glob("audiocnn-ts-*"))


_WRITER = """
import sys
from pathlib import Path
from audiocnn.torchserve import integrity
for number in range(100):
    integrity.record(Path(sys.argv[1]) / f"{sys.argv[2]}-{number}.mar", "0" * 64)
"""


def test_two_writers_lose_no_checksum(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0, 0]
    assert len(integrity.file_for(tmp_path / "a-0.mar").read_text().splitlines()) == 300
