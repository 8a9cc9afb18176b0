"""How long audio is cut."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn.audio import windows
from audiocnn.config import FrontendConfig

CONFIG = FrontendConfig()
RATE = CONFIG.sample_rate


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00003, [0.0]),
        (1.0, [0.0]),
        (5.0, [0.0]),
        (5.02, [0.0]),
        (5.24, [0.0]),
        (5.26, [0.0, 0.26]),
        (7.0, [0.0, 2.0]),
        (7.5, [0.0, 2.5]),
        (7.6, [0.0, 2.5]),
        (12.0, [0.0, 2.5, 5.0, 7.0]),
    ],
)
def test_starts_of_windows(seconds: float, expected: list[float]) -> None:
    assert [s / RATE for s in windows.starts(round(seconds * RATE), CONFIG)] == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize("num_samples", [1, RATE, 5 * RATE - 1, 5 * RATE, 5 * RATE + 1, 13 * RATE + 17])
def test_cut_is_fixed_in_shape_and_repeats_what_is_short(num_samples: int) -> None:
    waveform = np.arange(1, num_samples + 1, dtype=np.float32)
    cut = windows.cut(waveform, CONFIG)
    starts = windows.starts(num_samples, CONFIG)
    assert cut.shape == (len(starts), CONFIG.window_samples)
    for row, start in zip(cut, starts, strict=True):
        real = min(CONFIG.window_samples, num_samples - start)
        np.testing.assert_array_equal(row[:real], waveform[start : start + real])
        np.testing.assert_array_equal(row[real:], row[: len(row) - real])


@pytest.mark.parametrize("seconds", [0.00003, 1.0, 5.0, 5.02, 5.24, 5.26, 7.0, 12.0, 31.7])
@pytest.mark.parametrize("block", [1000, 65536, 10**7])
def test_windows_of_a_stream_are_those_of_the_whole(seconds: float, block: int) -> None:
    waveform = np.random.default_rng(0).normal(size=round(seconds * RATE)).astype(np.float32)
    blocks = (waveform[first : first + block] for first in range(0, len(waveform), block))
    streamed = [(start, window.copy()) for start, window in windows.iter_windows(blocks, CONFIG)]
    assert [start for start, _ in streamed] == windows.starts(len(waveform), CONFIG)
    np.testing.assert_array_equal([window for _, window in streamed], windows.cut(waveform, CONFIG))


@pytest.mark.parametrize("hop_seconds", [0.5, 4.5, 5.0])
def test_a_stream_may_be_cut_with_another_overlap(hop_seconds: float) -> None:
    waveform = np.arange(12 * RATE, dtype=np.float32)
    hop = round(hop_seconds * RATE)
    streamed = list(windows.iter_windows([waveform[: 7 * RATE], waveform[7 * RATE :]], CONFIG, hop=hop))
    begins = [start for start, _ in streamed]
    assert begins[:-1] == list(range(0, hop * (len(begins) - 1), hop))
    assert all(window[0] == start for start, window in streamed)
    assert 12 * RATE - (begins[-1] + 5 * RATE) < 0.25 * RATE  # all but a tail that is too short was seen


def test_a_stream_without_samples_has_no_windows() -> None:
    assert list(windows.iter_windows([np.zeros(0, np.float32)], CONFIG)) == []


def test_spans_end_with_the_audio() -> None:
    assert windows.spans(RATE, CONFIG) == [(0.0, 1.0)]
    assert windows.spans(7 * RATE, CONFIG) == [(0.0, 5.0), (2.0, 7.0)]


def test_pool_is_a_distribution() -> None:
    probs = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    np.testing.assert_allclose(windows.pool(probs), [0.7, 0.3], atol=1e-6)
