"""The grid, choice and output of `audiocnn tune`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import Measured, Setting, best, grid, rule_of_thumb, write
from tests.helpers.paths import ROOT


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
