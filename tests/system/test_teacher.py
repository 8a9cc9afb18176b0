"""The commands of the teacher: features, labels and training with an untrained teacher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiocnn.backbone import weights
from audiocnn.backbone.network import (
    NUM_FEATURES,
    SAMPLE_RATE,
    BackboneFeatures,
)
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import read_dataset
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone
from training import train
from training.data import load_waveforms
from training.teacher import __main__ as teacher
from training.teacher import fine_tuning, online
from training.teacher.features import FeatureStore
from training.teacher.head import fit_head
from training.teacher.soft_labels import (
    SoftLabels,
)


@pytest.fixture
def cache(tmp_path: Path, random_weights: dict[str, torch.Tensor]) -> Path:
    """A cache folder that looks as if the weights had been downloaded."""
    folder = tmp_path / "cache"
    folder.mkdir()
    save_file(random_weights, folder / f"teacher-{weights.WHEEL_SHA256[:12]}.safetensors")
    return folder


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Two pitches, two folds, four recordings each."""
    folder = tmp_path / "tones"
    folder.mkdir()
    rows = ["filename,fold,label,source"]
    for number in range(16):
        label, hz = [("low", 300), ("high", 5000)][number % 2]
        waveform = tone(5.0, hz=hz * (1 + number / 100)) * (0.3 + number / 32)
        (folder / f"{number}.wav").write_bytes(sound_file(waveform))
        rows.append(f"{number}.wav,{1 + number // 8},{label},{number // 2}{label}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    """A real pip that finds no index."""
    environment = os.environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for name in [name for name in environment if name.startswith("PIP_") and "INDEX_URL" in name]:
        del environment[name]
    code = "import sys, pathlib, audiocnn.backbone.weights as w; w.load_weights(pathlib.Path(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModelFileError" in run.stderr
    assert "go online" in run.stderr
    assert not list(tmp_path.iterdir())


def test_features_are_kept_and_follow_the_content_of_a_file(cache: Path, tones: Path) -> None:
    clips = read_dataset(tones).folds([1])
    store = FeatureStore(cache, cache=cache)
    first = store.features(clips, ["clean", "shift"])
    assert first.shape == (2, 8, NUM_FEATURES)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert len(kept) == 16
    expected = BackboneFeatures(weights.load_weights(cache))(
        load_waveforms(clips, FrontendConfig(sample_rate=SAMPLE_RATE), quiet=True)
    )
    np.testing.assert_allclose(first[0], expected.numpy(), atol=2e-3, rtol=1e-3)

    clips[0].path.write_bytes(clips[1].path.read_bytes())
    again = FeatureStore(cache, cache=cache).features(clips, ["clean", "shift"])
    np.testing.assert_array_equal(again[:, 0], first[:, 1])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == kept


def test_fine_tuning_starts_at_the_frozen_teacher_and_moves_its_last_blocks(
    random_weights: dict[str, torch.Tensor], tones: Path
) -> None:
    clips = read_dataset(tones).folds([1])
    waveforms = load_waveforms(clips, FrontendConfig(sample_rate=SAMPLE_RATE), quiet=True)
    target = np.arange(8) % 2
    features = BackboneFeatures(random_weights)(waveforms).numpy()
    head = fit_head(features, target, 2, l2=1.0)
    start = fine_tuning.TunedTeacher(random_weights, head)
    (answers,) = fine_tuning.log_probs(start, waveforms, ["clean"], "cpu")
    np.testing.assert_allclose(answers, head.log_probs(features), atol=1e-3)

    torch.manual_seed(0)
    tuning = fine_tuning.Tuning(random_weights, epochs=2, max_lr=1e-3, batch_size=4)
    tuned = fine_tuning.tune(tuning, head, waveforms, torch.from_numpy(target)).network.state_dict()
    moved = {name for name, tensor in random_weights.items() if not torch.equal(tensor, tuned[name])}
    assert {name.split(".")[1] for name in moved} == {"2", "3"}
    assert not [name for name in moved if "running" in name]


def test_the_command_measures_and_writes_labels(
    cache: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tones), "--cache", str(cache), "--views", "clean,gain-20dB", "--groups", "2"]
    out = tmp_path / "labels.safetensors"
    arguments += ["--train-folds", "1", "--device", "cpu", "--soft-labels", str(out)]
    assert teacher.main([*arguments, "--measure", "2"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(summary["heads"]) == {"frozen", "frozen, averaged", "views", "views, averaged"}
    assert summary["heads"]["frozen"]["accuracy"] >= 0.75  # two pitches: even random filters tell them apart
    labels = SoftLabels.load(out)
    assert labels.provenance["train_folds"] == [1]
    assert labels.provenance["teacher_sha256"] == weights.WHEEL_SHA256
    assert labels.of(read_dataset(tones).folds([1]), labels.class_names).shape == (8, 2)

    assert teacher.main([*arguments, "--measure", "1"]) == 2
    assert "fitted on" in capsys.readouterr().err

    assert teacher.main([*arguments, "--measure", "2", "--fine-tune", "1"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"frozen", "fine-tuned", "fine-tuned, averaged"} <= set(summary["heads"])
    tuned = SoftLabels.load(out)
    assert tuned.provenance["fine_tuned_epochs"] == 1
    assert not torch.equal(tuned.log_probs, labels.log_probs)


def test_a_teacher_is_averaged_with_a_network_that_never_saw_the_fold(
    cache: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = read_dataset(tones)

    def network(train_fold: int) -> str:
        config = Config(
            class_names=dataset.class_names,
            model=ModelConfig(width=8),
            provenance={"dataset": dataset.name, "train_folds": [train_fold]},
        )
        folder = tmp_path / f"network{train_fold}"
        checkpoint.save(folder, config, LogMel(config.frontend), AudioCNN(config.model, num_classes=2))
        return str(folder)

    arguments = ["--data", str(tones), "--cache", str(cache), "--views", "clean", "--device", "cpu"]
    arguments += ["--train-folds", "1", "--measure", "2", "--ensemble"]
    assert teacher.main([*arguments, network(1)]) == 0
    heads = json.loads(capsys.readouterr().out.splitlines()[-1])["heads"]
    frozen, own = heads["frozen, averaged"]["nll"], heads["network"]["nll"]
    assert min(frozen, own) < heads["frozen, averaged, and network"]["nll"] < max(frozen, own)

    assert teacher.main([*arguments, network(2)]) == 2
    assert "was trained on fold [2]" in capsys.readouterr().err


def test_a_network_learns_from_a_teacher_that_answers_every_mix(
    cache: Path, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without programs for speech and music; stopped after an epoch, it goes on with the same heads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "audiocnn").mkdir()
    cache.rename(tmp_path / "audiocnn" / "teacher")
    out = tmp_path / "run"
    arguments = ["--data", str(tones), "--train-folds", "1", "--recipe", "taught", "--online-teacher"]
    arguments += ["--width", "8", "--batch-size", "4", "--out", str(out), "--no-tensorboard"]
    assert train.main([*arguments, "--epochs", "2"]) == 0
    config, _, _ = checkpoint.load(out)
    assert config.provenance["teacher"]["teacher_sha256"] == weights.WHEEL_SHA256
    assert config.provenance["teacher"]["train_folds"] == [1]
    heads = online.Heads.load(out / "heads.safetensors")
    assert heads.weight.shape == (online.GROUPS, 2, NUM_FEATURES)
    assert len(json.loads((out / "history.json").read_text())) == 2
    (out / "config.json").unlink()
    assert train.main([*arguments, "--epochs", "2"]) == 0  # from its state
    assert (out / "config.json").is_file()
