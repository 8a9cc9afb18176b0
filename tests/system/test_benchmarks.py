"""Benchmarks: the servers that they compare, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from audiocnn.torchserve.tune import Setting
from benchmarks import baselines, load
from benchmarks.corpus import Clips
from benchmarks.systems import BareEngine, baseline, without_maps
from tests.helpers.benchmarks import last_line

SINGLE = Setting(workers=1, threads=1, batch=1, delay=0)


@pytest.fixture(scope="module")
def narrow_clips(narrow: Path) -> Clips:
    """Two sounds, and what the narrow network calls them."""
    bodies = [synthetic.wav("rain"), synthetic.wav("siren")]
    named = [load.top_class(answer) for answer in baselines.replies(Classifier(Engine(narrow)), bodies)]
    return Clips(bodies, named, "two sounds")


@pytest.mark.parametrize("kind", ["baseline", "fastapi", "litserve"])
def test_a_baseline_answers_rightly_and_leaves_no_process(
    kind: str, narrow: Path, narrow_clips: Clips
) -> None:
    setting = SINGLE if kind == "baseline" else Setting(workers=2, threads=1, batch=4, delay=5)
    system = baseline(kind, setting, narrow, "cpu", narrow_clips)
    system.server.start()
    try:
        system.server.wait_ready()
        processes = system.processes()["server"]
        measured = [system.closed(4, 1.0)]
        measured += [without_maps(system).closed(1, 1.0)] if kind == "baseline" else []
    finally:
        system.server.stop()
    for each in measured:
        assert each.clips_per_second > 0
        assert all(s.is_right for s in each.samples)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_the_bare_engine_counts_right_answers(narrow: Path, narrow_clips: Clips) -> None:
    wrong = Clips(narrow_clips.bodies, ["nothing"] * 2, "")
    for clips, is_right in ((narrow_clips, True), (wrong, False)):
        bare = BareEngine(Setting(workers=2, threads=1, batch=2, delay=0), narrow, "cpu", clips)
        try:
            bare.start()
            bare.wait_ready()
            measured = bare.closed(32, 1.0)
        finally:
            bare.stop()
        assert {s.is_right for s in measured.samples} == {is_right}
        assert (measured.clips_per_second > 0) == is_right


# --- the commands ---


def test_the_engine_benchmark_ends_in_json(narrow: Path, tmp_path: Path) -> None:
    command = ["benchmarks.engine", "--checkpoint", str(narrow), "--store", str(tmp_path), "--batches", "1"]
    found = last_line(*command, "--threads", "1", "--rounds", "1", "--seconds", "0.05")
    assert found["int8_over_fp32"] is None  # there is no int8 file of it
    assert 0 < found["share_of_limit"] < 1.5
    config = checkpoint.load(narrow)[0].frontend
    stem = 2 * 49 * 8 * (config.n_mels // 2) * (config.num_frames // 2 + 1)  # 7x7, stride 2
    assert found["gflop_per_clip"] * 1e9 > stem


def test_the_serving_benchmark(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    mark = {"AUDIOCNN_TEST": str(tmp_path)}  # inherited by all that it starts, Java and the workers too
    command = ["benchmarks.serving", "--quick", "--clips", "8", "--rounds", "1", "--raw", str(raw)]
    found = last_line(*command, environment=mark)
    names = ("over_bare", "over_seed_style", "over_seed_style_without_maps", "over_litserve")
    for name in (*names, "over_fastapi_same_classifier"):
        assert found[f"served_{name}"] > 0
    assert found["p99_over_p50_at_70pct"] >= 1
    assert found["wrong"] == 0
    lines = [json.loads(line) for line in raw.read_text().splitlines()]
    assert len(lines) == sum(row["answers"] for row in found["rows"])
    mine = [p for p in psutil.process_iter() if _has_in_environment(p, str(tmp_path))]
    _, alive = psutil.wait_procs(mine, timeout=60)
    assert not alive


def _has_in_environment(process: psutil.Process, value: str) -> bool:
    try:
        return value in process.environ().values()
    except (psutil.Error, OSError):
        return False
