"""The command `audiocnn bench`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from audiocnn.bench import Cell, Round, summary
from tests.helpers.command_line import run
from tests.helpers.paths import STORE


def test_a_row_has_percentiles_of_all_rounds() -> None:
    rounds = [Round(50, 9, [float(n) for n in range(1, 51)], 100, 90, 5.0)]
    rounds.append(Round(70, 7, [float(n) for n in range(51, 101)], 90, 110, 5.0))
    row = summary(Cell("cpu", 1, 8), rounds)
    assert (row["runs"], row["min_ms"], row["mean_ms"], row["p50_ms"]) == (100, 1, 50.5, 50.5)
    assert row["p99_ms"] == pytest.approx(99.01)
    assert row["clips_per_second"] == pytest.approx(8 * 1000 / 50.5, rel=1e-3)
    assert row["times_real_time"] == pytest.approx(5 * row["clips_per_second"], rel=1e-3)
    assert (row["load_ms"], row["first_ms"], row["cpu_percent"], row["peak_mb"]) == (60, 8, 95, 100)


def test_the_command_writes_its_table(tmp_path: Path) -> None:
    files = [tmp_path / "bench.csv", tmp_path / "bench.json"]
    quick = ("--seconds", "0.02", "--rounds", "1", "--warm-up", "0", "--model", STORE)
    options = ("--providers", "cpu", "--threads", "1", "--batches", "1,2", *quick)
    done = run("bench", *options, "--csv", files[0], "--json", files[1])
    assert done.returncode == 0, done.stderr
    with files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["provider"], row["batch"]) for row in rows] == [("cpu", "1"), ("cpu", "2")]
    for row in rows:
        assert int(row["runs"]) >= 10
        assert 0 < float(row["min_ms"]) <= float(row["p50_ms"]) <= float(row["p99.9_ms"])
    document = json.loads(files[1].read_text())
    assert document["machine"]["onnxruntime"]
    assert len(document["rows"]) == 2


@pytest.mark.parametrize("options", [["--batches", "3"], ["--threads", "0"], ["--providers", "tpu"]])
def test_what_cannot_be_measured_is_named(options: list[str]) -> None:
    done = run("bench", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr
