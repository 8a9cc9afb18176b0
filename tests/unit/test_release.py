"""The released checkpoint and its model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.config import Config
from audiocnn.results import Result
from tests.helpers.paths import CHECKPOINT
from tests.helpers.sounds import SAMPLE_RATE, sound_file
from training import model_card
from training.evaluate import main as evaluate_command
from training.teacher.weights import ATTRIBUTION


@pytest.mark.parametrize("name", synthetic.SOUNDS)
def test_the_synthetic_sounds_are_named_rightly(classifier: Classifier, name: str) -> None:
    (result,) = classifier.predict_batch([synthetic.wav(name)])
    assert isinstance(result, Result)
    assert result.label == name


def test_silence_and_noise_are_nothing_to_name(classifier: Classifier) -> None:
    rng = np.random.default_rng(0)
    silence = np.zeros(5 * SAMPLE_RATE, np.float32)
    (result,) = classifier.predict_batch([sound_file(silence)])
    assert isinstance(result, Result)
    assert result.is_silent
    even = rng.uniform(-(3**0.5), 3**0.5, 5 * SAMPLE_RATE)
    for noise in (rng.standard_normal(5 * SAMPLE_RATE), even):
        for decibels in (-60, -40, -30, -20, -10, -3):
            (result,) = classifier.predict_batch([sound_file(np.clip(10 ** (decibels / 20) * noise, -1, 1))])
            assert isinstance(result, Result)
            assert result.is_unknown, (decibels, result.predictions)


def test_the_card_names_the_teacher_its_licence_and_the_background() -> None:
    config = Config.from_json((CHECKPOINT / "config.json").read_text())
    report = json.loads((CHECKPOINT / "metrics.json").read_text())
    untaught = {name: value for name, value in config.provenance.items() if name not in ("init", "teacher")}
    without = replace(config, provenance=untaught)
    card = model_card.render(report | {"from_scratch": None}, without)
    assert model_card.notice(without) == ""
    assert "Trained from scratch on folds 1, 2, 3, 4 of ESC-50" in card
    assert "teacher" not in card

    report["from_scratch"] = {"accuracy": 0.8125, "folds": [3, 4], "epochs": 140}
    assert ATTRIBUTION in model_card.notice(config)  # the released weights had a teacher
    assert (CHECKPOINT / "NOTICE").read_text() == model_card.notice(config)
    text = " ".join(model_card.render(report, config).split())
    assert "from scratch, without a teacher, 140 epochs, on folds 3, 4: accuracy 81.25%" in text
    assert "Trained from scratch" not in text
    assert "CC BY 4.0" in text
    assert "A. B. Ma and A. Lerch" in text
    assert "Freesound" in text
    assert "cannot be excluded" in text
    assert "shuffled pieces of clips, speech, music outside its 50 classes" in text


def test_an_unseen_fold_of_an_esc50_shaped_folder_is_measured_by_command(tmp_path: Path) -> None:
    """What others do with a fold that we never had; here with the synthetic sounds."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for target, name in enumerate(synthetic.SOUNDS):
        (tmp_path / "audio" / f"5-{target}-A.wav").write_bytes(synthetic.wav(name))
        rows.append(f"5-{target}-A.wav,5,{target},{name},False,{target},A")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    arguments = ["--checkpoint", str(CHECKPOINT), "--data", str(tmp_path), "--folds", "5"]
    assert evaluate_command([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"accuracy", "top3_accuracy", "macro_f1", "ece", "num_clips", "confusion"} <= set(report)
    assert (report["accuracy"], report["num_clips"], report["trained_on"]) == (1.0, 5, [])
    assert 0 <= report["ece"] <= 1
