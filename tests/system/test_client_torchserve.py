"""The clients against a real TorchServe that restarts."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from audiocnn.audio import synthetic
from audiocnn.errors import (
    TokenRefusedError,
)
from audiocnn.probe import probe_wav
from tests.helpers.labelled_clips import classes, numbered_clips
from tests.helpers.scripted_server import answers, ask_async, ask_sync
from tests.helpers.servers import running_server, server_settings
from tests.helpers.tokens import torchserve_with_tokens
from tests.helpers.waiting import wait_until


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


def test_torchserves_token_is_read_and_renewed(tmp_path: Path) -> None:
    keys = tmp_path / "key_file.json"
    with torchserve_with_tokens(tmp_path) as settings:
        url, management = settings["inference_address"], settings["management_address"]
        assert wait_until(keys.is_file, 60)
        for ask in (ask_sync, ask_async):
            answer = ask(url, clip=synthetic.wav("rain"), key_file=keys, deadline_seconds=120)
            assert answer["predictions"][0]["class"] == "rain"
            with pytest.raises(TokenRefusedError, match="Token Authorization failed"):
                ask(url, clip=probe_wav())
            content = json.loads(keys.read_text())
            content["inference"]["key"] = "expired"
            keys.write_text(json.dumps(content))
            assert ask(url, verb="ready", key_file=keys) is False
            assert ask(url, clip=probe_wav(), key_file=keys, management=management)["predictions"]
            assert json.loads(keys.read_text())["inference"]["key"] != "expired"
