"""Reports of an evaluation, and predictions pooled over folds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from audiocnn import calibration
from audiocnn.command import parse_fold_model
from audiocnn.datasets import Dataset
from audiocnn.errors import DatasetError
from audiocnn.probabilities import softmax
from tests.helpers.paths import CHECKPOINT
from training import calibrate, evaluate, robustness


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """Imported late: every process of a parallel run imports this module, and matplotlib takes a second."""
    from training import report

    return report


NAMES = ["dog", "sea_waves", "<b>$x$ & y", "never"]


@pytest.fixture(scope="module")
def numbers() -> dict[str, object]:
    """A report of four classes, one of which is neither present nor predicted."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 60)
    logits = rng.normal(0, 1, (60, 4)) + 2 * np.eye(4)[target]
    logits[:, 3] = -9
    result = evaluate.metrics(softmax(logits).astype(np.float32), target)
    return result | {
        "per_class": evaluate.per_class(result["confusion"], NAMES),
        "worst_confusions": evaluate.worst_confusions(result["confusion"], NAMES),
        "dataset": "mine",
        "folds": [1, 2],
        "trained_on": [2],
        "class_names": NAMES,
        "model_sha256": "0123456789abcdef",
        "seconds": 1.0,
        "accuracy_tta": 0.5,
        "robustness": robustness.measure(lambda name, _: len(name) / 100, result["accuracy"]),
    }


def test_classes_against_numbers_counted_by_hand() -> None:
    confusion = [[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    table = evaluate.per_class(confusion, NAMES)
    assert list(table) == NAMES[:3]
    assert table["dog"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4}
    assert table["sea_waves"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 0.5,
        "f1": pytest.approx(4 / 7),
        "support": 4,
    }
    assert table["<b>$x$ & y"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert evaluate.worst_confusions(confusion, NAMES) == [
        {"true": "sea_waves", "predicted": "<b>$x$ & y", "count": 2},
        {"true": "dog", "predicted": "sea_waves", "count": 1},
    ]


def test_the_page_needs_nothing_beside_it(
    report: ModuleType, numbers: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(numbers))
    assert report.main([str(tmp_path / "eval.json"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "🐕 dog" in page
    assert "🔊 &lt;b&gt;$x$ &amp; y" in page
    assert "<b>$x" not in page
    assert "was trained on fold [2]" in page
    plots = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert plots == ["confusion.png", "reliability.png"]


def test_an_older_report_is_refused_with_the_way_out(
    report: ModuleType, numbers: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = {key: value for key, value in numbers.items() if key not in ("per_class", "robustness")}
    (tmp_path / "eval.json").write_text(json.dumps(older))
    assert report.main([str(tmp_path / "eval.json"), "--out", str(tmp_path)]) == 2
    assert "has no 'per_class': measure again" in capsys.readouterr().err


# --- several runs together ---


def part(fold: int, temperature: float, *, seed: int = 0, run: str = "run") -> calibrate.FoldPredictions:
    """2,000 answers of a model whose logits are too large by the factor `temperature`."""
    rng = np.random.default_rng(10 * fold + seed)
    honest = rng.normal(0, 2, (2000, 5))
    chances = softmax(honest)
    target = (rng.random((2000, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=4)
    probs = softmax(honest * temperature).astype(np.float32)
    return calibrate.FoldPredictions(run, fold, probs, calibration.as_logits(probs, 1.0), target)


def test_a_folds_temperature_comes_from_the_other_folds() -> None:
    parts = [part(1, 3.0), part(2, 1.0), part(1, 3.0, seed=5)]  # fold 1 twice: two seeds
    temperatures = calibrate.held_out_temperatures(parts)
    assert temperatures == pytest.approx([1.0, 3.0, 1.0], rel=0.1)
    with pytest.raises(DatasetError, match="two folds or more"):
        calibrate.held_out_temperatures([parts[0], parts[2]])


def test_pooled_calibration_is_mended_and_accuracy_is_not_touched() -> None:
    parts = [part(fold, 2.0) for fold in (1, 2, 3)]
    summary = calibrate.summarise(parts)
    assert summary["temperature"] == pytest.approx(2.0, rel=0.05)
    assert summary["ece"] > 0.05 > 0.03 > summary["ece_scaled"]
    assert summary["nll"] > summary["nll_scaled"]
    accuracies = [part.accuracy for part in parts]
    assert summary["accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert summary["num_clips"] == 6000
    calibrate.print_summary(json.loads(json.dumps(summary)))


def test_runs_are_pooled_from_the_command_line(
    esc50: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["filename,fold,label"]
    clips = esc50.folds([4])[::50]
    rows += [f"{clip.path},{1 + number % 2},{clip.label}" for number, clip in enumerate(clips)]
    (tmp_path / "few.csv").write_text("\n".join(rows) + "\n")
    arguments = ["--pair", f"{CHECKPOINT}=1", "--pair", f"{CHECKPOINT}=2", "--data", str(tmp_path)]
    assert calibrate.main([*arguments, "--json", str(tmp_path / "pool.json")]) == 0
    summary = json.loads((tmp_path / "pool.json").read_text())
    assert summary["num_clips"] == len(clips)
    assert [(row["run"], row["fold"], row["num_clips"]) for row in summary["folds"]] == [
        (CHECKPOINT.name, 1, 4),
        (CHECKPOINT.name, 2, 4),
    ]
    assert f"temperature fitted on all: {summary['temperature']:.4f}" in capsys.readouterr().out


def test_pairs_are_read_and_a_run_is_not_asked_what_it_learnt(
    esc50: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_fold_model("runs/a=b=1,2") == (Path("runs/a=b"), [1, 2])
    arguments = ["--pair", f"{CHECKPOINT}=1", "--data", str(esc50.clips[0].path.parent.parent)]
    assert calibrate.main(arguments) == 2
    assert "was trained on fold [1]" in capsys.readouterr().err
