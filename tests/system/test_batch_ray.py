"""The batch job as it is run, with Ray: to its end, killed, interrupted, on a cluster that loses a node."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from audiocnn import inputs
from audiocnn.audio import synthetic
from audiocnn.batch.manifest import Manifest
from audiocnn.batch.runner import settings_of
from audiocnn.batch.state import FOLDER
from audiocnn.model.loading import served_model_path
from tests.helpers.batch import fill, fill_bad, score, start, table
from tests.helpers.command_line import parse
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

COUNT = 1200
CHUNK = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 short sounds, with one of every kind of bad file among them."""
    path = tmp_path_factory.mktemp("sounds")
    fill(path, COUNT, sound_file(tone(0.5)))
    fill_bad(path / "s0600")
    return path


def parts(out: Path) -> dict[str, int]:
    """Name and time of every part that there is."""
    return {entry.name: entry.stat().st_mtime_ns for entry in (out / "files").glob("part-*.parquet")}


def assert_complete(folder: Path, out: Path) -> None:
    """Every file once, with the error that it has, and a summary that says so."""
    bad = {str(path) for path in (folder / "s0600").iterdir()}
    rows = table(out)
    assert Counter(row["file"] for row in rows) == Counter([*map(str, folder.glob("*.wav")), *bad])
    assert {row["file"] for row in rows if row["error_code"]} == bad
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["files"], summary["answered"]) == (len(rows), len(rows) - len(bad))


@contextmanager
def half_way(folder: Path, out: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The command, when it has written some of its parts and works on others."""
    process = start(folder, "--out", out, "--chunk-size", CHUNK, "--workers", 2, *flags)
    try:
        assert wait_until(lambda: len(parts(out)) >= 10 or process.poll() is not None, 120)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate(timeout=600)


@pytest.mark.parametrize("whom", ["driver", "group"])
def test_killed_it_goes_on_where_it_was(tmp_path: Path, folder: Path, whom: str) -> None:
    out = tmp_path / "out"
    with half_way(folder, out) as process:
        (os.kill if whom == "driver" else os.killpg)(process.pid, signal.SIGKILL)
        process.wait(timeout=120)
    before = parts(out)
    total = -(-(COUNT + 8) // CHUNK)
    assert 10 <= len(before) < total
    _, err = score(folder, "--out", out)
    said = re.search(r"resuming: ([\d,]+) of 1,208 files are done", err)
    assert said, err
    redone = re.search(r"(\d+) chunks \(\d+ files\) were in progress when it stopped and are repeated", err)
    in_work = int(redone[1]) if redone else 0
    after = parts(out)
    assert in_work <= 8  # two workers, and what they had finished but not yet reported
    assert sum(after[name] != when for name, when in before.items()) <= in_work
    assert_complete(folder, out)
    _, err = score(folder, "--out", out)
    assert "resuming: 1,208 of 1,208 files are done" in err
    assert parts(out) == after


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    with half_way(folder, out) as process:
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "MapWorker" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        workers[0].kill()
        stdout, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    assert "1,208, 1,200 answered" in stdout
    assert_complete(folder, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_it_says_how_to_go_on(tmp_path: Path, folder: Path, number: int) -> None:
    out = tmp_path / "out"
    with half_way(folder, out) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        # Ctrl-C reaches the whole group.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, stderr = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert "the same command resumes the run" in stderr
    assert "Traceback" not in stderr
    assert wait_until(lambda: not any(child.is_running() for child in children), 20)
    score(folder, "--out", out)
    assert_complete(folder, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts(tmp_path: Path, folder: Path, number: int) -> None:
    process = start(folder, "--out", tmp_path / "out")
    log = tmp_path / "out" / FOLDER / "ray.log"  # opened just before
    assert wait_until(lambda: log.exists() or process.poll() is not None, 120)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 128 + number, stderr
    assert "the same command resumes the run" in stderr
    assert "Traceback" not in stderr


def test_a_cluster_that_loses_a_node_completes(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.ray_cluster"], cwd=ROOT, env=environment, text=True, **pipes
    )  # type: ignore[call-overload]
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        address = next(line for line in cluster.stdout if line.startswith("address")).split()[1]
        process = start(folder, "--out", out, "--chunk-size", CHUNK, "--address", address)
        try:
            assert wait_until(lambda: len(parts(out)) >= 10 or process.poll() is not None, 120)
            assert process.poll() is None
            cluster.stdin.write("\n")
            cluster.stdin.flush()
            assert "killed" in next(line for line in cluster.stdout if "killed" in line)
            stdout, stderr = process.communicate(timeout=600)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, stderr
        assert "1,208, 1,200 answered" in stdout
        assert_complete(folder, out)
    finally:
        cluster.stdin.close()
        cluster.wait(timeout=120)
        cluster.stdout.close()


def test_a_long_file_is_no_standstill_and_chunks_come_in_slices(tmp_path: Path) -> None:
    """Ray Data would give up when no chunk is done for half an hour; here after a second."""
    fill(tmp_path / "in", 3)
    (tmp_path / "in" / "long.wav").write_bytes(sound_file(tone(3600.0, sample_rate=8000), sample_rate=8000))
    code = (
        "import sys; from audiocnn import cli; from audiocnn.batch import cluster; "
        "cluster.ray.data.DataContext.get_current().execution_no_progress_timeout_s = 1; cluster.SLICE = 2; "
        "sys.exit(cli.main(['batch', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--chunk-size", "1"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "4, 4 answered" in done.stdout


def test_work_that_fails_is_explained_and_can_go_on(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 3)
    flags = ["--out", str(out), "--model", str(served_model_path(STORE))]
    with Manifest(out) as manifest:
        manifest.load_or_create(
            settings_of(SimpleNamespace(**parse("batch", [str(folder), *flags]) | {"format": ("parquet",)}))
        )
        manifest.add(inputs.find([str(folder)], inputs.Notes()), 64)
    lists = out / "manifest" / "chunks.jsonl"
    line = lists.read_bytes()
    lists.write_bytes(b"?" * len(line))
    _, err = score(folder, "--out", out, code=1)
    assert "error: json.decoder.JSONDecodeError" in err
    assert "the same command resumes the run" in err
    assert "Traceback" not in err
    lists.write_bytes(line)
    stdout, _ = score(folder, "--out", out)
    assert "3, 3 answered" in stdout


def test_a_file_at_which_workers_die_does_not_stop_the_job(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 3)
    long = folder / "s0001.wav"  # long enough to be caught at
    long.write_bytes(sound_file(tone(3600.0, sample_rate=8000), sample_rate=8000))
    process = start(folder, "--out", out, "--workers", 1)
    killed: set[Path] = set()

    def kill_at_it() -> bool:
        for position in (out / "tmp").glob("0-*/at"):
            if position not in killed and position.read_text().strip() == "1":
                (worker,) = (
                    child
                    for child in psutil.Process(process.pid).children(recursive=True)
                    if "MapWorker" in " ".join(child.cmdline())
                )
                worker.kill()
                killed.add(position)
        return len(killed) == 2 or process.poll() is not None

    try:
        assert wait_until(kill_at_it, 120)
        stdout, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    assert "errors     1: 1 worker_died" in stdout
    assert [row["error_code"] for row in table(out)] == [None, "worker_died", None]


def test_the_benchmark_compares_answers(tmp_path: Path) -> None:
    for name in ("rain", "siren"):
        (tmp_path / f"{name}.wav").write_bytes(synthetic.wav(name))
    command = [sys.executable, "-m", "benchmarks.batch", "--data", str(tmp_path), "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["answers"]["rows"] == summary["answers"]["same_class"] == 2
    assert summary["answers"]["largest_difference"] < 1e-5


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    (port,) = free_ports(1)
    _, err = score(tmp_path / "in", "--out", tmp_path / "out", "--address", f"127.0.0.1:{port}", code=1)
    assert f"Ray cannot be reached at 127.0.0.1:{port}" in err
