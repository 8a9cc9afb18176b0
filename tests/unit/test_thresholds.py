"""Scenes with known events, and thresholds fitted on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiocnn import audio
from audiocnn.calibration import LEVELS
from audiocnn.config import Config, Threshold
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.detections import thresholds_of
from audiocnn.errors import DatasetError, ModelFileError
from tests.helpers.paths import ROOT
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone
from training import scenes, thresholds
from training.thresholds import Counts

LOW_RATE = 11_025  # of scenes of a minute: they are made four times as fast


@pytest.fixture
def bursts(tmp_path: Path) -> Dataset:
    """Clips of 3 s with a tone from 1.0 to 1.5 s, and silence around it."""
    rows = ["filename,fold,label"]
    for number, label in enumerate(("high", "low", "middle")):
        clip = np.zeros(3 * SAMPLE_RATE, np.float32)
        clip[SAMPLE_RATE : SAMPLE_RATE * 3 // 2] = tone(0.5, hz=300.0 * 3**number)
        (tmp_path / f"{number}.wav").write_bytes(sound_file(clip))
        rows.append(f"{number}.wav,1,{label}")
    (tmp_path / "bursts.csv").write_text("\n".join(rows) + "\n")
    return read_dataset(tmp_path)


def waveform_of(scene: scenes.Scene) -> np.ndarray:
    assert isinstance(scene.audio, tuple)
    return scene.audio[0]


# --- scenes ---


def test_an_event_is_where_the_scene_says(bursts: Dataset) -> None:
    for scene in scenes.scenes(bursts.clips, 4, snr_db=20.0, sample_rate=LOW_RATE):
        loud = np.zeros(len(waveform_of(scene)), bool)
        for event in scene.events:
            assert event.end - event.start == pytest.approx(0.5, abs=0.11)
            loud[round(event.start * LOW_RATE) : round(event.end * LOW_RATE)] = True
        power = np.square(waveform_of(scene))
        assert 10 * np.log10(power[loud].mean() / power[~loud].mean()) == pytest.approx(20, abs=1.5)


def test_a_scene_is_the_same_again_and_differs_by_number_and_level(bursts: Dataset) -> None:
    def draw(number: int, snr_db: float) -> scenes.Scene:
        return scenes.scene(bursts.clips, number=number, snr_db=snr_db, sample_rate=LOW_RATE)

    first = draw(0, 10.0)
    np.testing.assert_array_equal(waveform_of(first), waveform_of(draw(0, 10.0)))
    assert first.events == draw(0, 0.0).events != draw(1, 10.0).events


def test_an_event_needs_no_silence_around_it(bursts: Dataset, tmp_path: Path) -> None:
    (tmp_path / "0.wav").write_bytes(sound_file(tone(5.0)))
    (scene, *_) = scenes.clip_scenes(read_dataset(tmp_path).clips, sample_rate=SAMPLE_RATE)
    (event,) = scene.events
    assert (event.start, event.end) == (0.0, pytest.approx(5.0))


def test_background_is_audible_and_has_no_event() -> None:
    (scene,) = scenes.empty_scenes(1, sample_rate=LOW_RATE)
    assert scene.events == ()
    assert 20 * np.log10(waveform_of(scene).std()) == pytest.approx(-40, abs=0.1)


# --- fitting ---


def counts(detections: list[int], true: list[int], false_alarms: list[int]) -> Counts:
    """One class, the same numbers of events and hours, values at the first levels, then the last of them."""

    def row(values: list[int]) -> np.ndarray:
        return np.array([values + values[-1:] * (len(LEVELS) - len(values))])

    return Counts(row(detections), row(true), row(true), row(false_alarms), np.array([100]), 2.0)


WANTED = {"precision": 0.9, "false_alarms_per_hour": 0.5}


def test_the_lowest_level_with_the_wanted_precision() -> None:
    measured = counts([100, 90, 80, 70], [50, 70, 78, 70], [0])
    assert thresholds.fit(measured, **WANTED).tolist() == [2]
    assert thresholds.fit(measured, precision=0.5, false_alarms_per_hour=0.5).tolist() == [0]


def test_false_alarms_raise_a_threshold() -> None:
    measured = counts([100], [100], [9, 4, 2, 1, 0])
    assert thresholds.fit(measured, **WANTED).tolist() == [3]


def test_a_class_that_is_never_good_gets_the_highest_level() -> None:
    assert thresholds.fit(counts([100], [10], [0]), **WANTED).tolist() == [len(LEVELS) - 1]


def test_what_is_reported_was_measured_on_the_other_fold() -> None:
    """Fold 1 alone would choose the lowest level; its own numbers are at that which fold 2 chooses."""
    easy, hard = counts([100], [100], [0]), counts([100, 50], [50, 50], [0])
    summary = thresholds.summarise({1: easy, 2: hard}, ["dog"], **WANTED)
    one, two = summary["folds"]
    assert (one["precision"], one["recall"]) == (1.0, 1.0)
    assert two["precision"] == 0.5  # at the level of fold 1
    assert summary["thresholds"]["dog"].precision == pytest.approx(0.75)
    with pytest.raises(DatasetError, match="give two or more"):
        thresholds.summarise({1: easy}, ["dog"], **WANTED)


# --- the checkpoint ---


def test_a_config_carries_thresholds(tmp_path: Path) -> None:
    config = Config(class_names=("dog", "cat"), unknown_threshold=0.4)
    (tmp_path / "config.json").write_text(config.to_json())
    fitted = {"dog": Threshold(on=0.7, off=0.25, precision=0.9, recall=0.8)}
    thresholds.write(tmp_path, {"thresholds": fitted})
    read = Config.from_json((tmp_path / "config.json").read_text())
    assert read == replace(config, thresholds=fitted)
    assert {name: one.on for name, one in thresholds_of(read).items()} == {"dog": 0.7, "cat": 0.4}


def test_the_card_of_a_release_has_the_thresholds(tmp_path: Path) -> None:
    for name in ("config.json", "metrics.json"):
        shutil.copy(ROOT / "checkpoints" / "esc50" / name, tmp_path)
    easy, hard = counts([100], [100], [0]), counts([100, 50], [50, 50], [0])
    summary = thresholds.summarise({1: easy, 2: hard}, ["dog"], **WANTED)
    thresholds.write(tmp_path, summary)
    card = (tmp_path / "README.md").read_text()
    assert "| dog | 0.15 | 0.052 | 0.75 | 0.75 | 0.00 |" in card
    assert "precision 0.750,\nrecall 0.750, 0.00 false alarms per hour" in card
    assert json.loads((tmp_path / "metrics.json").read_text())["detections"]["all"]["events"] == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": {"dog": {"on": 0.2, "off": 0.5}}}, "off 0.5 is above its on 0.2"),
        ({"thresholds": {"wolf": {"on": 0.5, "off": 0.2}}}, "no class of the model: wolf"),
        ({"thresholds": {"dog": {"on": 2, "off": 0.2}}}, "on is 2"),
        ({"thresholds": {"dog": {"on": 0.5}}}, "lacks or mistypes"),
        ({"thresholds": ["dog"]}, "object of objects"),
        ({"activation": "relu"}, "softmax or sigmoid"),
    ],
)
def test_a_config_with_wrong_values_is_refused(change: dict[str, object], message: str) -> None:
    raw = json.loads(Config(class_names=("dog", "cat")).to_json()) | change
    with pytest.raises(ModelFileError, match=message):
        Config.from_json(json.dumps(raw))


def test_a_config_of_format_1_is_read() -> None:
    raw = json.loads(Config(class_names=("dog", "cat")).to_json())
    del raw["thresholds"], raw["activation"]
    assert Config.from_json(json.dumps(raw | {"format_version": 1})) == Config(class_names=("dog", "cat"))


def test_decoded_events_keep_their_length(bursts: Dataset) -> None:
    sound = scenes.event_sound(bursts.clips[0], SAMPLE_RATE)
    whole = audio.decode(bursts.clips[0].path.read_bytes(), sample_rate=SAMPLE_RATE).waveform
    assert len(sound) < len(whole) / 4
    assert np.abs(sound).max() == pytest.approx(np.abs(whole).max(), abs=1e-3)
