"""Exports have the published accuracy."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest

from audiocnn.datasets import Dataset
from tests.helpers.paths import CHECKPOINT, ROOT, STORE
from training.evaluate import evaluate


@cache
def accuracy_of_the_checkpoint(data: Path, folds: tuple[int, ...]) -> float:
    return float(evaluate(CHECKPOINT, data, list(folds))["accuracy"])


@pytest.mark.parametrize("name", ["audiocnn.onnx", "audiocnn.pt"])
def test_exports_have_the_published_accuracy(esc50: Dataset, name: str) -> None:
    """All clips of the held-out folds, within one clip of the checkpoint's own number."""
    published = json.loads((CHECKPOINT / "metrics.json").read_text())
    data = Path(os.environ.get("ESC50_DIR", ROOT / "data" / "ESC-50"))
    report = evaluate(STORE / name, data, published["folds"])
    expected = published["accuracy"]
    if published["is_fold_model"]:  # then what was published is of another run
        expected = accuracy_of_the_checkpoint(data, tuple(published["folds"]))
    assert report["num_clips"] == published["num_clips"]
    assert abs(report["accuracy"] - expected) <= 1 / published["num_clips"] + 1e-9
    assert published["trained_on"] == []
