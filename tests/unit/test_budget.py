"""The time limit of a batch: which clips are answered and which get "busy"."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn.audio import synthetic
from audiocnn.audio.budget import Budget, decode_in_turns
from audiocnn.audio.decoder import Clip
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioError, BudgetExceededError, UndecodableAudioError, UnsupportedFormatError
from audiocnn.options import Options
from audiocnn.results import Result
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone

SHORT = synthetic.wav("rain")
LONG = sound_file(tone(60.0, sample_rate=8_000), sample_rate=8_000)  # 23 windows


def test_the_shortest_clip_is_answered_and_the_others_are_busy(classifier: Classifier) -> None:
    clips = [LONG, SHORT, LONG, b"no sound"]
    long, short, other, broken = classifier.predict_batch(clips, budget_seconds=1e-6)
    assert isinstance(short, Result)
    assert isinstance(broken, UnsupportedFormatError)
    for refused in (long, other):
        assert isinstance(refused, BudgetExceededError)
        assert (refused.code, refused.status) == ("busy", 503)
    (alone,) = classifier.predict_batch([SHORT])
    assert isinstance(alone, Result)
    np.testing.assert_allclose(short.probs, alone.probs, atol=1e-5)


def test_a_clip_that_is_alone_is_answered_whatever_it_takes(classifier: Classifier) -> None:
    (result,) = classifier.predict_batch([LONG], budget_seconds=1e-6)
    assert isinstance(result, Result)
    assert len(result.spans) == 23


def test_without_a_budget_all_are_answered(classifier: Classifier) -> None:
    assert all(isinstance(result, Result) for result in classifier.predict_batch([LONG, SHORT]))


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Steps:
    """Stands in for a `ClipDecoder` of so many steps, each of which takes a tenth of a second."""

    def __init__(self, count: int, clock: Clock) -> None:
        self.left = count
        self.clock = clock
        self.clip = Clip(np.zeros(1, np.float32), SAMPLE_RATE)

    def step(self) -> bool:
        self.clock.now += 0.1
        self.left -= 1
        return self.left > 0


class Failing(Steps):
    """One that fails at its last step."""

    def step(self) -> bool:
        if not super().step():
            raise UndecodableAudioError("It broke off.")
        return True


def test_clips_that_fail_late_do_not_take_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("audiocnn.audio.budget.time", clock)
    decoders = {0: Failing(2, clock)} | {number: Failing(100, clock) for number in range(1, 8)}
    outcomes = decode_in_turns(decoders, Budget(4.0))  # type: ignore[arg-type]
    assert clock.now < 10.0 + 7 * 0.4  # one to its end, and the turns of the others
    codes = [outcome.code for outcome in outcomes.values() if isinstance(outcome, AudioError)]
    assert codes == ["undecodable_audio"] * 2 + ["busy"] * 6


@pytest.mark.parametrize(
    ("steps", "answered"),
    [
        ([100, 2], [False, True]),  # one small file of ten minutes of silence does not hold up the next
        ([100, 100], [True, False]),  # of two that are too long, one is decoded
        ([2, 2, 2, 2], [True, True, True, True]),
        ([100], [True]),
    ],
)
def test_decoders_that_need_little_come_first(
    steps: list[int], answered: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("audiocnn.audio.budget.time", clock)
    decoders = {number: Steps(count, clock) for number, count in enumerate(steps)}
    outcomes = decode_in_turns(decoders, Budget(4.0))  # type: ignore[arg-type]
    assert [isinstance(outcome, Clip) for outcome in outcomes.values()] == answered


def test_pictures_are_made_of_one_window_only(classifier: Classifier) -> None:
    """Feature maps of every window of a long clip would be gigabytes, and minutes."""
    options = Options.parse({"feature_maps": "png", "evidence": True}, classifier.config)
    (result,) = classifier.predict_batch([LONG], [options])
    assert isinstance(result, Result)
    assert all(array.ndim == 2 for name, array in result.shown.outputs.items() if name != "evidence")


def test_predictions_are_the_same_whatever_pictures_are_asked_for(classifier: Classifier) -> None:
    options = Options.parse({"feature_maps": "json", "evidence": True}, classifier.config)
    plain, pictured = classifier.predict_batch(
        [SHORT, SHORT], [Options.parse({}, classifier.config), options]
    )
    assert isinstance(plain, Result)
    assert isinstance(pictured, Result)
    np.testing.assert_allclose(plain.probs, pictured.probs, atol=1e-6)
