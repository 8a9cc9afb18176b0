"""The ring buffer and the smoothing of live streams."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn.audio.decoder import decode
from audiocnn.gateway.stream_audio import SILENCE_DBFS, BadSoundError, ExponentialAverage, RingBuffer
from tests.helpers.sounds import tone

RATE = 44_100

# --- the sound of a stream, by itself ---


@pytest.mark.parametrize("input_rate", [8_000, 44_100, 48_000])
def test_the_window_is_the_newest_and_does_not_grow(input_rate: int) -> None:
    window = RingBuffer(input_rate=input_rate, sample_rate=RATE, window_seconds=1.0)
    assert window.wav() is None
    for hz in (3000.0, 440.0):
        for frame in np.array_split(tone(2.0, hz=hz, sample_rate=input_rate), 37):
            window.push(frame.tobytes())
            assert len(window.wav() or b"") <= 44 + 2 * RATE
    heard = decode(window.wav() or b"", sample_rate=RATE).waveform
    assert len(heard) == RATE
    assert np.abs(np.fft.rfft(heard)).argmax() == 440
    assert window.seconds == pytest.approx(4.0, abs=0.001)


@pytest.mark.parametrize("sizes", [[1], [128], [999], [1000], [1001], [2500], [1, 998, 5, 1000, 3, 2500, 7]])
def test_the_window_is_the_end_of_all_that_came(sizes: list[int]) -> None:
    window = RingBuffer(input_rate=1000, sample_rate=1000, window_seconds=1.0)
    sound = np.random.default_rng(0).uniform(-1, 1, 6000).astype(np.float32)
    place = 0
    for size in sizes * 20:
        window.push(sound[place : place + size].tobytes())
        place = min(place + size, len(sound))
        np.testing.assert_array_equal(window.newest(), sound[max(0, place - 1000) : place])


def test_the_end_of_the_stream_is_kept_whole() -> None:
    window = RingBuffer(input_rate=16_000, sample_rate=RATE, window_seconds=2.0)
    for frame in np.array_split(tone(1.0, sample_rate=16_000), 10):
        window.push(frame.tobytes())
    assert window.end < RATE
    window.finish()
    assert window.end == RATE
    RingBuffer(input_rate=16_000, sample_rate=RATE, window_seconds=2.0).finish()  # nothing came


def test_a_constant_offset_has_no_level() -> None:
    window = RingBuffer(input_rate=48_000, sample_rate=RATE, window_seconds=5.0)
    window.push(np.full(4800, 0.3, "<f4").tobytes())
    assert window.take_level() == SILENCE_DBFS
    sine = 0.5 * np.sin(2 * np.pi * 100 * np.arange(48_000) / 48_000)
    window.push((sine + 0.3).astype("<f4").tobytes())
    assert window.take_level() == pytest.approx(-9.03, abs=0.01)


def test_an_empty_ring_buffer() -> None:
    window = RingBuffer(input_rate=48_000, sample_rate=RATE, window_seconds=5.0)
    assert window.take_level() == SILENCE_DBFS
    with pytest.raises(BadSoundError):
        window.push(b"123")
    window.push(b"")
    assert window.wav() is None


def test_smoothing_has_its_time_constant() -> None:
    smoothed = ExponentialAverage(2.0)
    dog = [{"class": "dog", "confidence": 1.0}, {"class": "cat", "confidence": 0.0}]
    cat = [{"class": "cat", "confidence": 1.0}, {"class": "dog", "confidence": 0.0}]
    assert smoothed.update(dog, 1.0) == [("dog", 1.0), ("cat", 0.0)]
    confidences = dict(smoothed.update(cat, 2.0))
    assert confidences["dog"] == pytest.approx(np.exp(-1))
    assert sum(confidences.values()) == pytest.approx(1.0)
    assert dict(ExponentialAverage(0.0).update(cat, 1.0))["cat"] == 1.0
