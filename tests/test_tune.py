"""Tuning: what is tried, what is chosen, what is written; and once for real."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import Measured, Setting, best, grid, measure, rule_of_thumb, write
from tests.conftest import ROOT, Server


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_no_setting_asks_for_more_threads_than_there_are_cores(cores: int) -> None:
    for profile in ("throughput", "latency"):
        settings = grid(cores, 0, profile)
        assert rule_of_thumb(cores, 0, profile) in settings
        assert all(setting.workers * setting.threads <= cores for setting in settings)
        assert len(set(settings)) == len(settings)


def test_a_gpu_is_shared_by_few_workers() -> None:
    assert rule_of_thumb(16, 1, "throughput") == Setting(workers=2, threads=1, batch=32, delay=5)
    assert max(setting.workers for setting in grid(16, 2, "throughput")) == 8


def test_the_best_is_the_median_of_its_rounds() -> None:
    lucky, steady = Setting(1, 2, 1, 1), Setting(2, 1, 1, 1)
    results = {
        lucky: [Measured(900, 9, 20), Measured(100, 50, 90), Measured(110, 45, 80)],
        steady: [Measured(200, 30, 50), Measured(210, 28, 50), Measured(190, 31, 60)],
    }
    assert best(results, "throughput") == best(results, "latency") == steady


def test_only_the_tuned_values_are_rewritten(tmp_path: Path) -> None:
    config, own = tmp_path / "config.properties", tmp_path / "model-config.yaml"
    shutil.copy(ROOT / "config.properties", config)
    shutil.copy(ROOT / "handler" / "model-config.yaml", own)
    write(Setting(workers=3, threads=5, batch=4, delay=7), config, own)
    entry = json.loads(read_properties(config)["models"])["audiocnn"]["1.0"]
    assert (entry["minWorkers"], entry["maxWorkers"]) == (3, 3)
    assert (entry["batchSize"], entry["maxBatchDelay"]) == (4, 7)
    assert (entry["responseTimeout"], entry["marName"]) == (60, "audiocnn.mar")
    assert yaml.safe_load(own.read_text())["threads"] == 5
    for path, original in (
        (config, ROOT / "config.properties"),
        (own, ROOT / "handler" / "model-config.yaml"),
    ):
        before, after = original.read_text().splitlines(), path.read_text().splitlines()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_what_is_measured_adds_up(server: Server) -> None:
    measured = measure(server.inference, [(ROOT / "samples" / "rain.wav").read_bytes()], clients=2, seconds=2)
    assert 0 < measured.p50_ms <= measured.p99_ms
    # Two clients, each with one request under way at a time (Little's law; means and medians differ).
    assert measured.clips_per_second * measured.p50_ms / 1000 == pytest.approx(2, rel=0.5)


@pytest.mark.slow
def test_tuning_for_real(tmp_path: Path) -> None:
    for name in ("config.properties", "handler/model-config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "audiocnn", "tune", "latency", "--seconds", "1", "--rounds", "1"]
    command += ["--config", str(tmp_path / "config.properties")]
    command += ["--handler-config", str(tmp_path / "model-config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["best"]
    entry = json.loads(read_properties(tmp_path / "config.properties")["models"])["audiocnn"]["1.0"]
    assert entry["minWorkers"] == chosen["workers"]
    assert yaml.safe_load((tmp_path / "model-config.yaml").read_text())["threads"] == chosen["threads"]
