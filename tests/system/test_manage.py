"""`audiocnn manage` under load: rollouts, scaling and interruptions against a real TorchServe."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests

from audiocnn.audio import synthetic
from audiocnn.client.client import Client
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.recovery import register
from audiocnn.torchserve.rollout_context import RolloutContext
from audiocnn.torchserve.store import Pending
from tests.helpers.rollouts import (
    CONCURRENCY,
    RAIN,
    default,
    load,
    manage,
    repack,
    start_until,
    versions,
)
from tests.helpers.servers import Server


def assert_nothing_lost(seen: Counter[str]) -> None:
    assert set(seen) == {"200 rain"}, seen
    assert seen.total() > CONCURRENCY


# --- changing ---


def test_scaling_under_load_loses_nothing(open_server: Server, store: Path) -> None:
    with load(open_server) as seen:
        for workers in (1, 4, 1, 2):
            printed = manage(open_server, "scale", workers, "--store", store)
            assert f"{workers} workers ready" in printed
            assert "waiting for a moment" not in printed
    assert_nothing_lost(seen)
    assert versions(open_server) == ["1.0"]


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
    """All answers name the same classes in the same order."""
    answer = b"{'predictions': [{'class': name} for name in self.config.class_names]}"
    old, new = (
        b"def to_dict(self)",
        b"def to_dict(self):\n        return " + answer + b"\n\n    def unused(self)",
    )
    return data.replace(old, new) if name == "audiocnn/results.py" else data


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


def kill_at(server: Server, word: str, *arguments: object) -> None:
    with start_until(server, word, *arguments) as process:
        process.kill()


def answers(server: Server) -> bool:
    return (
        requests.post(server.predictions, data=RAIN, timeout=120).json()["predictions"][0]["class"] == "rain"
    )


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


def test_a_registration_that_completes_after_its_command_was_killed_is_undone(
    open_server: Server, store: Path, tmp_path: Path
) -> None:
    archive = repack(store / "audiocnn-9.0.mar", "9.0")
    Pending("9.0", archive.name, "1.0", "audiocnn.mar", is_ours=True).save(store)
    late = threading.Timer(3, requests.post, [f"{open_server.management}/models?url={archive.name}"])
    late.start()
    assert "9.0 is unregistered" in manage(open_server, "scale", 2, "--store", store)
    late.join()
    assert (versions(open_server), archive.exists()) == (["1.0"], False)


def test_a_version_that_was_registered_meanwhile_is_registered_again(
    open_server: Server, store: Path
) -> None:
    archive = repack(store / "late.mar", "9.0")
    requests.post(f"{open_server.management}/models?url={archive.name}", timeout=120).raise_for_status()
    lines: list[str] = []
    with closing(Management(open_server.management)) as management:
        context = RolloutContext(
            management=management, connect=lambda version: Client(), store=store, log=lines.append
        )
        register(context, archive.name, "9.0", management.default())
        assert management.version("9.0").is_ready  # the other one had no workers
        assert "registering it again" in lines[0]
        management.unregister("9.0")
    archive.unlink()


def test_a_scale_that_is_killed_is_undone_by_the_next(open_server: Server, store: Path) -> None:
    kill_at(open_server, "is the default", "scale", 1, "--store", store)
    assert answers(open_server)
    assert (store / "audiocnn-standby.mar").exists()
    printed = manage(open_server, "scale", 2, "--store", store)
    assert "was killed" in printed
    assert "version 1.0 has 2 workers ready" in printed
    assert versions(open_server) == ["1.0"]
    assert not (store / "audiocnn-standby.mar").exists()
