"""Open-set evaluation: classes left out, scores and far sounds."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn.calibration import auroc
from audiocnn.datasets import Dataset
from audiocnn.errors import DatasetError
from audiocnn.labels import ESC50
from training import open_set
from training.data import without_classes
from training.scores import SCORES, NetworkOutputs, Reference

NAMES = [label.name for label in ESC50]


def test_every_class_is_left_out_once_and_no_group_as_a_whole() -> None:
    rotations = [open_set.left_out(NAMES, rotation) for rotation in range(open_set.ROTATIONS)]
    assert sorted(name for rotation in rotations for name in rotation) == sorted(NAMES)
    groups = {label.name: label.group for label in ESC50}
    for rotation in rotations:
        assert [sum(groups[name] == group for name in rotation) for group in set(groups.values())] == [2] * 5


def test_a_dataset_without_some_classes(esc50: Dataset) -> None:
    smaller = without_classes(esc50, ["dog", "rain"])
    assert len(smaller.class_names) == 48
    assert not {clip.label for clip in smaller.clips} & {"dog", "rain"}
    assert len(smaller.clips) == len(esc50.clips) * 48 // 50
    with pytest.raises(DatasetError, match="unicorn"):
        without_classes(esc50, ["unicorn"])


def groups(known: np.ndarray, near: np.ndarray, speech: np.ndarray) -> dict[str, np.ndarray]:
    return {"known": known, "near": near, "speech": speech, "music": speech}


def test_the_score_is_chosen_on_the_first_run_and_reported_on_the_others() -> None:
    known = np.linspace(0.5, 1.0, 20)
    apart, same = np.full(10, 0.2), known.copy()
    first = {"a": groups(known, apart, same), "b": groups(known, same, same)}
    second = {"a": groups(known, same, apart), "b": groups(known, apart, apart)}
    summary = open_set.summarise([first, second])
    assert summary["auroc"]["a"]["near"] == [1.0, 0.5]
    assert summary["auroc"]["b"]["near"] == [0.5, 1.0]
    assert summary["chosen"] == "a"  # on the second run it would be b
    assert (summary["unknown_near"], summary["unknown_far"]) == (0.5, 1.0)
    assert summary["refused"] == pytest.approx({"known": 0.05, "near": 0.05, "speech": 1.0, "music": 1.0})


def test_without_classes_left_out_only_far_sounds_are_reported() -> None:
    known = np.linspace(0.5, 1.0, 20)
    summary = open_set.summarise([{"a": {"known": known, "speech": known - 1}}])
    assert summary["unknown_near"] is None
    assert summary["unknown_far"] == 1.0


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_higher_for_what_was_learnt(name: str) -> None:
    """Features along the weights of a class, against small ones in random directions."""
    rng = np.random.default_rng(0)
    weight = np.eye(4, 16, dtype=np.float32)

    def answers(embedding: np.ndarray) -> NetworkOutputs:
        features = np.maximum(embedding, 0).astype(np.float32)
        return NetworkOutputs(features @ weight.T, features)

    def learnt(count: int) -> np.ndarray:
        return 5 * weight[rng.integers(4, size=count)] + rng.normal(0, 0.3, (count, 16))

    reference = Reference(weight, answers(learnt(200)).embedding)
    known = SCORES[name](answers(learnt(100)), reference)
    strange = SCORES[name](answers(rng.normal(0, 0.7, (100, 16))), reference)
    assert known.shape == (100,)
    assert auroc(known, strange) > 0.95
