"""Several labels a clip, all the way: table, training, calibration, exports, evaluation and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiocnn.classifier import Classifier
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import read_dataset
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN
from audiocnn.options import Options
from audiocnn.probabilities import sigmoid
from export import waveform
from tests.helpers.sounds import sound_file, tone
from training import calibrate, evaluate, multilabel, train
from training.augment import no_class
from training.data import targets

HZ = {"high": 5000.0, "low": 250.0, "middle": 1200.0}
SHORT = FrontendConfig(
    sample_rate=16_000, clip_seconds=0.5, n_fft=512, win_length=512, hop_length=160, n_mels=32, f_max=8_000.0
)


@pytest.fixture(scope="module")
def chords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One to three tones at once, two folds of 35 clips."""
    folder = tmp_path_factory.mktemp("chords")
    rng = np.random.default_rng(0)
    rows = ["filename,fold,label"]
    for number in range(70):
        names = [name for bit, name in enumerate(HZ) if (1 + number % 7) & (1 << bit)]
        sounds = [rng.uniform(0.3, 1) * tone(0.5, hz=HZ[name] * rng.uniform(0.95, 1.05)) for name in names]
        (folder / f"{number}.wav").write_bytes(sound_file(sum(sounds) / 3))
        rows.append(f"{number}.wav,{1 + number // 35},{' ; '.join(names)}")
    (folder / "chords.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def runs(chords: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run without each fold."""
    out = tmp_path_factory.mktemp("runs")
    for fold in (1, 2):
        arguments = ["--data", str(chords), "--train-folds", str(3 - fold), "--out", str(out / str(fold))]
        recipe = ["--recipe", "plain", "--mixup", "0", "--epochs", "30", "--batch-size", "7", "--width", "8"]
        more = ["--max-lr", "0.01", "--weight-decay", "0", "--ema-decay", "0", "--no-tensorboard"]
        assert train.main([*arguments, *recipe, *more, "--background-noise", "0.1", "--threads", "1"]) == 0
    return {fold: out / str(fold) for fold in (1, 2)}


def test_labels_are_split_at_semicolons(chords: Path) -> None:
    dataset = read_dataset(chords)
    assert dataset.class_names == ("high", "low", "middle")
    assert dataset.has_several_labels
    row = targets(
        [next(clip for clip in dataset.clips if len(clip.labels) == 2)], dataset.class_names, several=True
    )
    assert sorted(row[0].tolist()) == [0.0, 1.0, 1.0]


def test_a_sound_of_no_class_has_no_label() -> None:
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert no_class(target, has_sigmoid=True).tolist() == [[0.0]]
    assert no_class(target, has_sigmoid=False).tolist() == [[0.5]]


def test_answers_name_every_sound(chords: Path, runs: dict[int, Path]) -> None:
    classifier = Classifier.load(runs[2])
    assert classifier.config.activation == "sigmoid"
    all_three = sum(tone(0.5, hz=hz) for hz in HZ.values()) / 3
    probs = classifier.predict(sound_file(all_three), Options(top_k=3)).probs
    assert (probs > 0.5).all()
    assert probs.sum() > 1.5
    one = classifier.predict(sound_file(tone(0.5, hz=HZ["low"]))).predictions
    assert one[0].label == "low"
    assert sum(row.confidence > 0.5 for row in one) == 1


def test_detections_of_sounds_at_once(runs: dict[int, Path]) -> None:
    classifier = Classifier.load(runs[2])
    quiet = np.zeros(16_000 * 3, np.float32)
    scene = np.concatenate(
        [quiet, sum(tone(3.0, hz=HZ[name], sample_rate=16_000) for name in ("low", "high")) / 3, quiet]
    )
    found = classifier.predict(sound_file(scene, sample_rate=16_000), Options(detections=True)).detections
    at_once = [one for one in found if one.start < 4.5 < (one.end or 0)]
    assert {one.label for one in at_once} >= {"low", "high"}


def test_evaluation_measures_the_mean_average_precision(
    chords: Path, runs: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(runs[2]), "--data", str(chords), "--folds", "2"]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["map"] > 0.9
    assert report["num_clips"] == 35
    assert "mAP" in capsys.readouterr().out
    assert evaluate.main([*arguments, "--robustness"]) == 2
    assert "one label a clip" in capsys.readouterr().err


def test_no_report_of_a_confusion_matrix_for_sigmoids(
    runs: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where each clip of the table has one label."""
    (tmp_path / "low.wav").write_bytes(sound_file(tone(0.5, hz=HZ["low"])))
    (tmp_path / "one.csv").write_text("filename,fold,label\nlow.wav,1,low\n")
    arguments = ["--checkpoint", str(runs[2]), "--data", str(tmp_path), "--folds", "1"]
    assert evaluate.main([*arguments, "--report", str(tmp_path / "report")]) == 2
    assert "one label a clip" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_calibration_lowers_the_error(chords: Path, runs: dict[int, Path], tmp_path: Path) -> None:
    pairs = [argument for fold, run in runs.items() for argument in ("--pair", f"{run}={fold}")]
    assert calibrate.main([*pairs, "--data", str(chords), "--json", str(tmp_path / "c.json")]) == 0
    summary = json.loads((tmp_path / "c.json").read_text())
    assert summary["accuracy"] > 0.9
    assert summary["nll_scaled"] <= summary["nll"] * 1.05
    assert 0.05 <= summary["temperature"] <= 20


def test_the_waveform_file_has_a_sigmoid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Config(
        class_names=("a", "b", "c"),
        frontend=SHORT,
        model=ModelConfig(width=4),
        activation="sigmoid",
        temperature=0.7,
    )
    model = AudioCNN(config.model, num_classes=3).eval()
    checkpoint.save(tmp_path / "run", config, LogMel(SHORT), model)
    arguments = ["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "store")]
    assert waveform.main(arguments) == 0  # the other formats have logits only
    data = sound_file(tone(0.5))
    expected = Classifier.load(tmp_path / "run").predict(data).probs
    assert expected.sum() != pytest.approx(1, abs=0.01)
    exported = Classifier.load(tmp_path / "store" / "audiocnn-waveform.onnx")
    np.testing.assert_allclose(exported.predict(data).probs, expected, atol=1e-4)


def test_a_teacher_is_for_one_label(chords: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--data",
        str(chords),
        "--train-folds",
        "1",
        "--out",
        str(tmp_path),
        "--teacher",
        "labels.npz",
    ]
    assert train.main(arguments) == 2
    assert "a teacher is for tables with one label a clip" in capsys.readouterr().err


# --- the metrics ---


def test_average_precision_by_hand() -> None:
    scores, target = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert multilabel.average_precision(scores, target) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert multilabel.average_precision(np.full(4, 0.5), target) == pytest.approx(0.5)
    assert multilabel.average_precision(scores, np.ones(4, int)) == 1.0


def test_calibration_of_calibrated_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    target = (rng.random((4000, 3)) < sigmoid(logits)).astype(int)
    assert multilabel.ece(sigmoid(logits), target) < 0.02
    assert multilabel.fit_temperature(3.0 * logits, target) == pytest.approx(3.0, rel=0.1)
    again = multilabel.as_logits(sigmoid(logits, 1.4), 1.4)
    np.testing.assert_allclose(again, logits, atol=1e-6)
