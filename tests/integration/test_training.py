"""`training.train`: learns, resumes, names bad data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiocnn.config import Config
from audiocnn.datasets import read_dataset
from tests.helpers.paths import ROOT
from tests.helpers.training_runs import RECIPE, train, train_arguments
from training import evaluate
from training.teacher.soft_labels import SoftLabels


def test_a_run_learns_resumes_after_a_kill_and_is_measured(tones: Path, tmp_path: Path) -> None:
    straight = train(tones, tmp_path / "straight", *RECIPE)
    assert straight.returncode == 0, straight.stderr

    command = [sys.executable, "-m", "training.train", *train_arguments(tones, tmp_path / "killed", *RECIPE)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        state = tmp_path / "killed" / "state.pt"
        part = state.with_name(f".state.{process.pid}.part.pt")
        while process.poll() is None and not (part.exists() and state.exists()):
            time.sleep(0.001)  # until it is writing its second checkpoint, or a later one
        process.kill()
    assert (tmp_path / "killed" / "state.pt").exists()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert list((tmp_path / "straight" / "tensorboard").glob("events.out.*"))
    resumed = train(tones, tmp_path / "killed", *RECIPE)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after epoch" in resumed.stdout

    config = Config.from_json((tmp_path / "straight" / "config.json").read_text())
    assert config.unknown_threshold is not None
    assert config.unknown_threshold >= 2 / 3  # few clips were held out: midway from chance to 1
    assert config.temperature >= 1

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    arguments = ["--checkpoint", str(tmp_path / "killed"), "--data", str(tones), "--folds", "2"]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "metrics.json")]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["accuracy"] >= 0.9
    assert np.array(report["confusion"]).sum() == report["num_clips"] == 12

    other = train(tones, tmp_path / "killed", *RECIPE, "--seed", "7")
    assert other.returncode == 2
    assert "choose another --out" in other.stderr


def test_a_run_starts_from_the_weights_of_another(tones: Path, tmp_path: Path) -> None:
    still = ("--max-lr", "0", "--epochs", "1", "--recipe", "plain")  # what is taken over stays as it is
    assert train(tones, tmp_path / "first", "--epochs", "1").returncode == 0
    second = train(
        tones, tmp_path / "second", *still, "--init", str(tmp_path / "first"), "--train-folds", "2"
    )
    assert second.returncode == 0, second.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {"model.fc.weight", "model.conv1.weight", "frontend.mean", "frontend.std"} <= same
    config = Config.from_json((tmp_path / "second" / "config.json").read_text())
    assert config.provenance["train_folds"] == [1, 2]  # what the first run heard counts
    assert config.frontend.max_gain_db == 20  # the first run's front end, not the plain recipe's

    third = train(tones, tmp_path / "third", *still, "--init", str(tmp_path / "first"), "--exclude", "low")
    assert third.returncode == 0, third.stderr
    other = load_file(tmp_path / "third" / "model.safetensors")
    assert torch.equal(one["model.conv1.weight"], other["model.conv1.weight"])
    assert other["model.fc.weight"].shape[0] == 2


def test_bad_data_is_named_before_training(tones: Path, tmp_path: Path) -> None:
    table = tmp_path / "tones.csv"
    table.write_text("filename,fold,label\ngone.wav,1,a\nbroken.wav,1,b\n")
    for name in ("broken.wav", "broken2.wav"):
        (tmp_path / name).write_text("no sound")
    for name in ("gone.wav", "broken.wav"):  # what is missing is seen before anything is decoded
        run = train(tmp_path, tmp_path / "out")
        assert run.returncode == 2
        assert name in run.stderr
        assert "Traceback" not in run.stderr
        table.write_text("filename,fold,label\nbroken.wav,1,a\nbroken2.wav,1,b\n")
    missing = train(tones, tmp_path / "out", "--train-folds", "9")
    assert "no fold [9]" in missing.stderr


def test_early_stopping_looks_at_a_validation_split_of_recordings(tones: Path, tmp_path: Path) -> None:
    run = train(tones, tmp_path / "out", "--epochs", "60", "--max-lr", "1e-9", "--early-stopping", "2")
    assert run.returncode == 0, run.stderr
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert 3 <= len(history) < 60  # nothing is learnt, so nothing improves
    assert all("inner_accuracy" in row for row in history)


@pytest.mark.timeout(200)
def test_soft_labels_reach_a_run_and_are_remembered(tones: Path, tmp_path: Path) -> None:
    dataset = read_dataset(tones)
    clips = dataset.folds([1, 2])
    log_probs = torch.full((len(clips), 3), 1 / 3).log()
    names = tuple(clip.path.name for clip in clips)
    provenance = {"train_folds": [1, 2], "teacher": "somebody"}
    SoftLabels(log_probs, names, dataset.class_names, provenance).save(tmp_path / "labels")

    options = ("--recipe", "plain", "--epochs", "2", "--teacher", str(tmp_path / "labels"))
    run = train(tones, tmp_path / "out", *options)
    assert run.returncode == 0, run.stderr
    config = Config.from_json((tmp_path / "out" / "config.json").read_text())
    assert config.provenance["teacher"] == provenance
    assert config.provenance["train_folds"] == [1, 2]  # trained on fold 1 by a teacher that heard fold 2

    wrong = train(tones, tmp_path / "wrong", *options, "--exclude", "low")
    assert wrong.returncode == 2
    assert "other classes" in wrong.stderr
