"""Events from window probabilities: the rules, on any sequence of frames."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocnn.audio.windows import iter_windows, spans, starts
from audiocnn.classifier import Classifier
from audiocnn.config import AudioLimits, Config, FrontendConfig, Threshold
from audiocnn.datasets import Dataset
from audiocnn.detections import (
    Detection,
    DetectionRules,
    Detector,
    EventTracker,
    FrameAverager,
    detect,
    thresholds_of,
)
from audiocnn.errors import AudioTooLongError, BadOptionError
from audiocnn.options import Options
from tests.helpers.labelled_clips import siren_in_rain
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone

NAMES = ("dog", "rain", "siren")
THRESHOLDS = {
    "dog": Threshold(on=0.6, off=0.3),
    "rain": Threshold(on=0.5, off=0.5),
    "siren": Threshold(on=0.9, off=0.1),
}
FRAME = 0.25
Frames = list[tuple[float, float, np.ndarray]]

confidences = st.lists(st.tuples(*[st.sampled_from([0.0, 0.2, 0.4, 0.55, 0.7, 0.95])] * 3), max_size=60)
rules = st.builds(
    DetectionRules,
    min_duration=st.sampled_from([0.0, 0.5, 1.0]),
    merge_gap=st.sampled_from([0.0, 0.25, 1.0]),
    cooldown=st.sampled_from([0.0, 2.0]),
    min_confidence=st.sampled_from([0.0, 0.8]),
)


def frames_of(rows: list[tuple[float, ...]]) -> Frames:
    return [(n * FRAME, (n + 1) * FRAME, np.array(row, np.float32)) for n, row in enumerate(rows)]


def track(frames: Frames, rules: DetectionRules) -> list[Detection]:
    """All that is reported, beginnings and ends, in order."""
    tracker = EventTracker(NAMES, THRESHOLDS, rules)
    return [one for frame in frames for one in tracker.update(*frame)] + tracker.finish()


def events(frames: Frames, rules: DetectionRules) -> list[Detection]:
    return [one for one in track(frames, rules) if one.end is not None]


# --- the rules ---


def test_an_event_begins_at_the_lower_threshold_once_the_upper_is_reached() -> None:
    rows = [(p, 0.0, 0.0) for p in (0.1, 0.4, 0.7, 0.4, 0.35, 0.1)]
    (one,) = events(frames_of(rows), DetectionRules(merge_gap=0))
    assert (one.label, one.start, one.end) == ("dog", 0.25, 1.25)
    assert one.peak_confidence == pytest.approx(0.7)
    assert one.mean_confidence == pytest.approx((0.4 + 0.7 + 0.4 + 0.35) / 4)


def test_a_stream_hears_of_an_event_when_it_begins_and_when_it_ends() -> None:
    tracker = EventTracker(NAMES, THRESHOLDS, DetectionRules(merge_gap=0.25))
    reported = [tracker.update(*frame) for frame in frames_of([(0, 0, 0), (0.7, 0, 0), (0, 0, 0), (0, 0, 0)])]
    assert [[one.end for one in changes] for changes in reported] == [[], [None], [], [0.5]]


@given(confidences, rules)
@settings(deadline=None)
def test_what_every_event_promises(rows: list[tuple[float, ...]], rules: DetectionRules) -> None:
    last: dict[str, float] = {}
    for one in events(frames_of(rows), rules):
        threshold = THRESHOLDS[one.label]
        assert one.end is not None
        assert one.peak_confidence >= np.float32(max(threshold.on, rules.min_confidence))
        assert threshold.off <= one.mean_confidence + 1e-6
        assert one.mean_confidence <= one.peak_confidence + 1e-6
        assert one.end - one.start >= max(FRAME, rules.min_duration)
        pause = one.start - last.get(one.label, -np.inf)
        assert pause > rules.merge_gap
        assert pause >= rules.cooldown
        last[one.label] = one.end


@given(confidences, st.sampled_from([0.0, 0.25, 1.0]))
@settings(deadline=None)
def test_no_frame_above_the_upper_threshold_is_missed(
    rows: list[tuple[float, ...]], merge_gap: float
) -> None:
    found = events(frames_of(rows), DetectionRules(merge_gap=merge_gap))
    for start, end, row in frames_of(rows):
        for name, confidence in zip(NAMES, row, strict=True):
            inside = any(e.label == name and e.start <= start and end <= (e.end or 0) for e in found)
            assert inside or confidence < THRESHOLDS[name].on
            assert not inside or confidence >= THRESHOLDS[name].off or merge_gap > 0


@given(confidences, rules)
@settings(deadline=None)
def test_every_end_was_announced(rows: list[tuple[float, ...]], rules: DetectionRules) -> None:
    reported = track(frames_of(rows), rules)
    began = Counter((one.label, one.start) for one in reported if one.end is None)
    over = Counter((one.label, one.start) for one in reported if one.end is not None)
    assert began == over
    assert all(count == 1 for count in over.values())


@given(confidences, rules)
@settings(deadline=None)
def test_a_class_does_not_depend_on_the_others(rows: list[tuple[float, ...]], rules: DetectionRules) -> None:
    alone = [(row[0], 0.0, 0.0) for row in rows]
    dogs = [one for one in events(frames_of(rows), rules) if one.label == "dog"]
    assert events(frames_of(alone), rules) == dogs


@given(confidences)
@settings(deadline=None)
def test_classes_and_exclude(rows: list[tuple[float, ...]]) -> None:
    everything = events(frames_of(rows), DetectionRules())
    without = events(frames_of(rows), DetectionRules(classes=("dog", "rain"), exclude=("rain",)))
    assert without == [one for one in everything if one.label == "dog"]


# --- windows to frames ---


@given(st.integers(1, 400_000), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_frames_cover_the_audio_and_say_what_their_windows_say(length: int, hop: float, seed: int) -> None:
    config = FrontendConfig(clip_seconds=2.0)
    rng = np.random.default_rng(seed)
    averager, found = FrameAverager(hop / 2), []
    all_spans = spans(length, config, hop=round(hop * SAMPLE_RATE))
    rows = [rng.uniform(0.01, 1, 3).astype(np.float32) for _ in all_spans]
    for (start, end), row in zip(all_spans, rows, strict=True):
        found += list(averager.update(start, end, row))
    found += list(averager.finish())
    assert found[0][0] == 0.0
    assert found[-1][1] == pytest.approx(all_spans[-1][1])
    assert all(before[1] == pytest.approx(after[0]) for before, after in itertools.pairwise(found))
    for start, end, confidence in found:
        over = [row for (a, b), row in zip(all_spans, rows, strict=True) if a < end and b > start]
        assert (np.min(over, axis=0) * 0.999 <= confidence).all()
        assert (confidence <= np.max(over, axis=0) * 1.001).all()


def test_an_event_is_placed_by_overlapping_windows() -> None:
    """Every window that overlaps an event detects it; together they place it."""
    config = Config(class_names=("dog",))
    windows = [(0.5 * n, 0.5 * n + 2) for n in range(40)]
    found = detect(
        config,
        [(a, b, np.array([0.95 if a < 10.0 and b > 9.0 else 0.01], np.float32)) for a, b in windows],
    )
    (one,) = found
    assert one.start == pytest.approx(9.0, abs=0.5)
    assert one.end == pytest.approx(10.0, abs=0.5)


def test_memory_does_not_grow_with_the_length() -> None:
    """Of three hours of windows the frames of the last few seconds are kept, and nothing else."""
    averager = FrameAverager(0.25)
    for number in range(3 * 3600 * 2):
        kept = list(averager.update(0.5 * number, 0.5 * number + 2, np.array([0.5], np.float32)))
        assert len(kept) <= 2 or number == 0
    assert len(list(averager.finish())) <= 10


@pytest.mark.parametrize("clip_seconds", [2.0, 5.0])
@given(length=st.integers(1, 700_000), hop_seconds=st.floats(0.5, 2.0))
@settings(max_examples=25, deadline=None)
def test_windows_of_any_hop_are_those_of_their_table(
    clip_seconds: float, length: int, hop_seconds: float
) -> None:
    config = FrontendConfig(clip_seconds=clip_seconds)
    hop = round(hop_seconds * SAMPLE_RATE)
    waveform = np.zeros(length, np.float32)
    assert [first for first, _ in iter_windows([waveform], config, hop=hop)] == starts(
        length, config, hop=hop
    )


# --- thresholds ---


def test_thresholds_without_fitted_ones() -> None:
    plain = Config(class_names=("dog", "cat"))
    assert {one.on for one in thresholds_of(plain).values()} == {0.5}
    known = Config(
        class_names=("dog", "cat"), unknown_threshold=0.4, thresholds={"cat": Threshold(on=0.8, off=0.2)}
    )
    assert (thresholds_of(known)["dog"].on, thresholds_of(known)["cat"].on) == (0.4, 0.8)


def test_a_model_without_thresholds_still_detects() -> None:
    detector = Detector(Config(class_names=("dog",)))
    row = np.array([0.9], np.float32)
    began = detector.update(0, 2, row) + detector.update(0.5, 2.5, row)
    assert [one.end for one in began] == [None]
    assert [one.end for one in detector.finish()] == [2.5]


# --- the answer to a request ---


def test_a_part_of_a_file_has_the_times_of_the_file(classifier: Classifier, esc50: Dataset) -> None:
    data = sound_file(siren_in_rain(esc50, 30, 14.0))
    options = Options.parse({"detections": "1", "start": "12", "end": 18, "windows": "1"}, classifier.config)
    answer = classifier.predict(data, options).to_dict()
    assert answer["duration"] == pytest.approx(6.0)
    assert [answer["windows"][0]["start"], answer["windows"][-1]["end"]] == [12.0, 18.0]
    (siren,) = [row for row in answer["detections"] if row["class"] == "siren"]
    assert siren["start"] == pytest.approx(14.0, abs=0.75)


def test_windows_name_several_classes(classifier: Classifier) -> None:
    options = Options.parse({"windows_top_k": 3, "hop_seconds": 1}, classifier.config)
    rows = classifier.predict(sound_file(tone(7.0)), options).to_dict()["windows"]
    assert [row["start"] for row in rows] == [0.0, 1.0, 2.0]
    for row in rows:
        ranked = row["predictions"]
        assert len({one["class"] for one in ranked}) == 3
        assert (ranked[0]["class"], ranked[0]["confidence"]) == (row["class"], row["confidence"])
        assert ranked[0]["confidence"] >= ranked[1]["confidence"] >= ranked[2]["confidence"]


def test_exclude_leaves_a_class_out(classifier: Classifier) -> None:
    data = sound_file(tone(5.0))
    top = classifier.predict(data).label
    options = Options.parse({"exclude": top, "top_k": 50}, classifier.config)
    assert top not in [row.label for row in classifier.predict(data, options).predictions]


def test_max_is_the_surest_window(classifier: Classifier) -> None:
    data = sound_file(np.concatenate([tone(5.0), tone(5.0, hz=300.0)]))
    result = classifier.predict(data, Options(pool="max"))
    np.testing.assert_allclose(result.probs, result.window_probs.max(axis=0), atol=1e-6)


def test_the_limit_counts_windows(classifier: Classifier) -> None:
    limited = Classifier(classifier.engine, limits=AudioLimits(max_windows=20))
    data = sound_file(tone(12.0))
    assert len(limited.predict(data).spans) == 4
    with pytest.raises(AudioTooLongError, match=r"12 s are 25 windows; one request may have 20"):
        limited.predict(data, Options(detections=True))
    assert limited.predict(data, Options(detections=True, hop_seconds=1)).detections is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "60"}, "start=60 is not possible: the file has 5 s"),
        ({"start": 3, "end": 2}, "end"),
        ({"hop_seconds": "0.1"}, "from 0.5 to 5"),
        ({"exclude": "dog", "classes": "dog"}, "no class is left"),
        ({"pool": "median"}, "mean or max"),
        ({"min_duration": "-1"}, "min_duration"),
    ],
)
def test_bad_options_say_what_is_possible(
    classifier: Classifier, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadOptionError, match=message):
        classifier.predict(sound_file(tone(5.0)), Options.parse(options, classifier.config))
