"""Benchmarks: what they count is what happened, and the servers that ours is compared with really answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN
from audiocnn.torchserve.tune import Setting
from benchmarks import baselines, load
from benchmarks.corpus import Clips
from benchmarks.systems import Bare, Rival, WithoutMaps
from tests.helpers.paths import ROOT

ONE = Setting(workers=1, threads=1, batch=1, delay=0)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained network of width 8."""
    folder = tmp_path_factory.mktemp("narrow")
    config = Config(class_names=("dog", "cat", "rain"), model=ModelConfig(width=8))
    model = AudioCNN(config.model, num_classes=3)
    checkpoint.save(folder, config, LogMel(FrontendConfig()), model)
    return folder


@pytest.fixture(scope="module")
def narrow_clips(narrow: Path) -> Clips:
    """Two sounds, and what the narrow network calls them."""
    bodies = [synthetic.wav("rain"), synthetic.wav("siren")]
    named = [load.top_class(answer) for answer in baselines.answers(Classifier(Engine(narrow)), bodies)]
    return Clips(bodies, named, "two sounds")


@pytest.mark.parametrize("kind", ["seed", "fastapi", "litserve"])
def test_a_rival_answers_rightly_and_leaves_nothing_behind(
    kind: str, narrow: Path, narrow_clips: Clips
) -> None:
    setting = ONE if kind == "seed" else Setting(workers=2, threads=1, batch=4, delay=5)
    rival = Rival(kind, setting, narrow, "cpu", narrow_clips)
    rival.start()
    try:
        rival.wait_ready()
        assert rival._process is not None
        family = psutil.Process(rival._process.pid).children(recursive=True)
        measured = [rival.closed(4, 1.0)]
        measured += [WithoutMaps(rival).closed(1, 1.0)] if kind == "seed" else []
    finally:
        rival.stop()
    for each in measured:
        assert each.clips_per_second > 0
        assert all(s.is_right for s in each.samples)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_the_bare_engine_counts_right_answers(narrow: Path, narrow_clips: Clips) -> None:
    wrong = Clips(narrow_clips.bodies, ["nothing"] * 2, "")
    for clips, is_right in ((narrow_clips, True), (wrong, False)):
        bare = Bare(Setting(workers=2, threads=1, batch=2, delay=0), narrow, "cpu", clips)
        try:
            bare.start()
            bare.wait_ready()
            measured = bare.closed(32, 1.0)
        finally:
            bare.stop()
        assert {s.is_right for s in measured.samples} == {is_right}
        assert (measured.clips_per_second > 0) == is_right


# --- the commands ---


def last_line(command: list[str], *, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON that a command ends with."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_engine_benchmark_ends_in_json(narrow: Path, tmp_path: Path) -> None:
    command = ["benchmarks.engine", "--checkpoint", str(narrow), "--store", str(tmp_path), "--batches", "1"]
    found = last_line([*command, "--threads", "1", "--rounds", "1", "--seconds", "0.05"])
    assert found["int8_over_fp32"] is None  # there is no int8 file of it
    assert 0 < found["share_of_limit"] < 1.5
    config = checkpoint.load(narrow)[0].frontend
    stem = 2 * 49 * 8 * (config.n_mels // 2) * (config.num_frames // 2 + 1)  # 7x7, stride 2
    assert found["gflop_per_clip"] * 1e9 > stem


def test_the_serving_benchmark_for_real(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    mark = {"AUDIOCNN_TEST": str(tmp_path)}  # inherited by all that it starts, Java and the workers too
    command = ["benchmarks.serving", "--quick", "--clips", "8", "--rounds", "1", "--raw", str(raw)]
    found = last_line(command, environment=mark)
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
