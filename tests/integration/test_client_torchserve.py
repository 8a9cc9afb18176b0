"""The clients against a real TorchServe: predictions, killed workers, restarts, tokens."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from audiocnn.audio import synthetic
from audiocnn.errors import (
    AudioError,
    RequestRefusedError,
)
from audiocnn.probe import probe_wav
from tests.helpers.labelled_clips import classes, numbered_clips
from tests.helpers.scripted_server import Ask, answers, both
from tests.helpers.servers import Server
from tests.helpers.waiting import wait_until


@both
def test_predictions(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "rain.wav"
    path.write_bytes(synthetic.wav("rain"))
    for clip in (path, str(path), path.read_bytes()):
        answer = ask(server.inference, clip=clip, top_k=3)
        assert answer["predictions"][0]["class"] == "rain"
        assert len(answer["predictions"]) == 3
    assert ask(server.inference, clip=path, evidence=True)["evidence"]
    assert ask(server.inference, verb="ready") is True
    assert ask(server.inference, verb="explain", clip=path)["predictions"]


@both
@pytest.mark.parametrize(
    ("clip", "options", "code"),
    [
        (b"", {}, "empty_audio"),
        (b"no sound at all", {}, "unsupported_format"),
        (probe_wav(), {"top_k": 0}, "bad_option"),
        (bytes(50_000_000), {}, "audio_too_long"),
    ],
)
def test_errors_by_code(ask: Ask, server: Server, clip: bytes, options: dict[str, Any], code: str) -> None:
    with pytest.raises(AudioError) as caught:
        ask(server.inference, clip=clip, **options)
    assert caught.value.code == code
    assert caught.value.request_id


@both
def test_a_version_that_does_not_exist(ask: Ask, server: Server) -> None:
    with pytest.raises(RequestRefusedError, match=r"9\.0"):
        ask(server.inference, clip=probe_wav(), version="9.0")


def workers(server: Server) -> list[dict[str, Any]]:
    (model,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    return model["workers"]


def are_ready(server: Server) -> bool:
    return all(worker["status"] == "READY" for worker in workers(server))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_killed_workers_lose_nothing(kind: str, server: Server) -> None:
    clips = numbered_clips(400)  # seconds of work, of which the workers live 0.3
    expected = classes(answers(kind, server.inference, clips[:5])) * 80
    assert len(set(expected)) > 1
    assert wait_until(lambda: are_ready(server), 60)
    pids = [worker["pid"] for worker in workers(server)]
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(answers, kind, server.inference, clips, concurrency=8)
        time.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert not results.done()
        assert classes(results.result()) == expected
    assert wait_until(lambda: are_ready(server), 60)  # for the tests after this one
