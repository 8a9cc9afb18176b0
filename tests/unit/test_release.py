"""The released checkpoint and its model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiocnn.audio import synthetic
from audiocnn.backbone.weights import ATTRIBUTION
from audiocnn.classifier import Classifier
from audiocnn.config import Config
from audiocnn.model import card
from audiocnn.results import Result
from tests.helpers.clients import run_client
from tests.helpers.paths import CHECKPOINT
from tests.helpers.sounds import SAMPLE_RATE, sound_file
from training import model_card
from training.evaluate import main as evaluate_command


@pytest.mark.parametrize("name", synthetic.SOUNDS)
def test_the_synthetic_sounds_are_named_rightly(classifier: Classifier, name: str) -> None:
    (result,) = classifier.predict_batch([synthetic.wav(name)])
    assert isinstance(result, Result)
    assert result.label == name


def test_silence_and_noise_have_no_class(classifier: Classifier) -> None:
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
    text = model_card.render(report | {"from_scratch": None}, without)
    assert model_card.notice(without) == ""
    assert "Trained from scratch on folds 1, 2, 3, 4 of ESC-50" in text
    assert "teacher" not in text

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


READ_CARD = """
import json, sys
from huggingface_hub import ModelCard
card = ModelCard.load(sys.argv[1])
results = [[each.dataset_type, each.metric_type, each.metric_value] for each in card.data.eval_results or []]
print(json.dumps([card.data.license, card.data.pipeline_tag, card.data.datasets, results, card.text[:40]]))
"""


def test_the_hub_reads_the_card_of_the_released_model() -> None:
    metrics = json.loads((CHECKPOINT / "metrics.json").read_text())
    config = Config.from_json((CHECKPOINT / "config.json").read_text())
    assert (CHECKPOINT / "README.md").read_text() == model_card.render(metrics, config)
    printed = run_client(["python", "-c", READ_CARD, CHECKPOINT / "README.md"])
    licence, task, datasets, results, text = json.loads(printed)
    assert (licence, task, datasets) == ("cc-by-nc-3.0", "audio-classification", ["ashraq/esc50"])
    assert [row[:2] for row in results] == [["ashraq/esc50", "accuracy"], ["ashraq/esc50", "f1"]]
    assert results[0][2] == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert text.strip().startswith("# Model card")


def test_the_licence_of_a_model_of_own_sounds_is_its_owners(tmp_path: Path) -> None:
    config = Config(class_names=("saw", "überholt"), provenance={"dataset": "my machines"})
    (tmp_path / "README.md").write_text(card.front_matter(config, {}) + "# Mine\n")
    printed = run_client(["python", "-c", READ_CARD, tmp_path / "README.md"])
    assert json.loads(printed) == ["other", "audio-classification", None, [], "# Mine\n"]


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
