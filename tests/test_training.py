"""Training on small synthetic sounds: it learns, resumes bit-equal, and its augmentations keep their word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiocnn.errors import DatasetError
from tests.conftest import ROOT, sound_file, tone
from training import augment, evaluate
from training.train import Recipe, Run


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own dataset: three pitches, two folds."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    rows = ["filename,fold,label"]
    for number in range(24):
        label, hz = [("low", 200), ("middle", 1500), ("high", 6000)][number % 3]
        waveform = tone(1.0, hz=hz * rng.uniform(0.9, 1.1)) * rng.uniform(0.2, 1)
        (folder / f"{number}.wav").write_bytes(sound_file(waveform))
        rows.append(f"{number}.wav,{1 + number // 12},{label}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder


def train(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.train", "--data", str(data), "--train-folds", "1"]
    command += ["--out", str(out), "--width", "8", "--batch-size", "6", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(200)
def test_a_run_learns_resumes_after_a_kill_and_is_measured(tones: Path, tmp_path: Path) -> None:
    recipe = ("--epochs", "40", "--ema-decay", "0.8", "--max-lr", "0.01", "--weight-decay", "0")
    straight = train(tones, tmp_path / "straight", *recipe)
    assert straight.returncode == 0, straight.stderr

    command = [sys.executable, "-m", "training.train", "--data", str(tones), "--train-folds", "1"]
    command += [
        "--out",
        str(tmp_path / "killed"),
        "--width",
        "8",
        "--batch-size",
        "6",
        "--threads",
        "1",
        *recipe,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().startswith("epoch 3/40"):
                process.kill()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = train(tones, tmp_path / "killed", *recipe)
    assert "resumed after epoch" in resumed.stdout

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    arguments = ["--checkpoint", str(tmp_path / "killed"), "--data", str(tones), "--folds", "2"]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "metrics.json")]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["accuracy"] >= 0.9
    assert np.array(report["confusion"]).sum() == report["num_clips"] == 12

    other = train(tones, tmp_path / "killed", "--epochs", "17")
    assert other.returncode == 2
    assert "choose another --out" in other.stderr


def test_bad_data_is_named_before_training(tones: Path, tmp_path: Path) -> None:
    (tmp_path / "tones.csv").write_text("filename,fold,label\ngone.wav,1,a\nbroken.wav,1,b\n")
    (tmp_path / "broken.wav").write_text("no sound")
    run = train(tmp_path, tmp_path / "out")
    assert run.returncode == 2
    assert "gone.wav" in run.stderr
    assert "broken.wav" in run.stderr
    assert "Traceback" not in run.stderr
    missing = train(tones, tmp_path / "out", "--train-folds", "9")
    assert "no fold [9]" in missing.stderr


def test_metrics_against_numbers_counted_by_hand() -> None:
    probs = np.array(
        [[0.6, 0.3, 0.1, 0], [0.5, 0.4, 0.1, 0], [0.1, 0.2, 0.3, 0.4], [0, 0.1, 0.2, 0.7]], np.float32
    )
    report = evaluate.metrics(probs, np.array([0, 1, 0, 3]))
    assert report["accuracy"] == 0.5
    assert report["top3_accuracy"] == 0.75
    assert report["confusion"][0] == [1, 0, 0, 1]
    assert report["macro_f1"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)


def test_an_evaluation_of_clips_the_model_cannot_name_is_refused(tones: Path) -> None:
    arguments = ["--checkpoint", str(ROOT / "checkpoints" / "esc50"), "--data", str(tones), "--folds", "2"]
    assert evaluate.main(arguments) == 2


def test_mixup_mixes_sound_and_target_alike() -> None:
    torch.manual_seed(0)
    waveform = torch.eye(6) * 2
    mixed, target = augment.mixup(waveform, torch.eye(6), alpha=0.5)
    torch.testing.assert_close(mixed, target * 2)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(6))
    assert not torch.equal(target, torch.eye(6))


def test_a_circular_shift_loses_nothing() -> None:
    torch.manual_seed(0)
    waveform = torch.arange(40.0).view(2, 20)
    shifted = augment.circular_shift(waveform)
    torch.testing.assert_close(shifted.sort(dim=1).values, waveform)
    jumps = (shifted.diff(dim=1) != 1).sum(dim=1)
    assert (jumps <= 1).all()
    assert not torch.equal(shifted, waveform)


def test_masks_are_the_mean_and_no_wider_than_promised() -> None:
    torch.manual_seed(0)
    log_mel = torch.ones(64, 1, 128, 251)
    masked = augment.SpecAugment(freq_mask=10, time_mask=20)(log_mel)[:, 0]
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    bands = (masked == 0).all(dim=2).sum(dim=1)
    frames = (masked == 0).all(dim=1).sum(dim=1)
    assert 0 < bands.max() <= 20
    assert 0 < frames.max() <= 40
    assert len(bands.unique()) > 3  # each clip has masks of its own
    assert torch.equal(log_mel, torch.ones_like(log_mel))


def test_fewer_clips_than_a_batch_are_refused() -> None:
    from audiocnn.config import Config, ModelConfig
    from audiocnn.frontend import LogMel

    config = Config(class_names=("a",), model=ModelConfig(width=8))
    with pytest.raises(DatasetError, match="fewer than one batch"):
        Run(Recipe(), config, LogMel(config.frontend), torch.zeros(3, 10), torch.zeros(3).long(), "cpu")
