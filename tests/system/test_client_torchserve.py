"""The clients against a real TorchServe that restarts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.labelled_clips import classes, numbered_clips
from tests.helpers.scripted_server import answers
from tests.helpers.servers import running_server, server_settings


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_killed_and_restarted_server_loses_nothing(kind: str, tmp_path: Path) -> None:
    """200 requests; all of TorchServe is killed after the first of them, and started on the same ports."""
    settings = server_settings()
    clips = numbered_clips(200)
    with ThreadPoolExecutor(1) as pool:
        with running_server(tmp_path / "first", settings, flags=["--no-restart"]) as first:
            expected = classes(answers(kind, first.inference, clips[:5])) * 40
            results = pool.submit(answers, kind, first.inference, clips, concurrency=8)
            time.sleep(0.3)
            for process in psutil.Process(first.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            first.process.wait(timeout=120)
            assert not results.done()
        with running_server(tmp_path / "second", settings):
            assert classes(results.result(timeout=600)) == expected
