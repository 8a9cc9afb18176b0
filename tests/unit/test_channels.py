"""Channels that cancel each other, and constant offsets: what remains of them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from audiocnn import audio
from audiocnn.audio.window_stream import WindowStream
from audiocnn.config import AudioLimits, FrontendConfig
from audiocnn.results import SILENCE_PEAK
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
OTHER = RNG.normal(0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
SILENT = np.zeros_like(NOISE)


def decode(*channels: np.ndarray, **options: str) -> audio.Clip:
    data = sound_file(np.stack(channels, axis=1), **({"subtype": "FLOAT"} | options))
    return audio.decode(data, sample_rate=SAMPLE_RATE)


def level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def says_cancelled(clip: audio.Clip) -> bool:
    return any("cancel each other" in warning for warning in clip.warnings)


@pytest.mark.parametrize(
    "channels",
    [
        pytest.param([NOISE, -NOISE], id="opposite"),
        pytest.param([NOISE, -0.9 * NOISE], id="nearly"),
        pytest.param([NOISE, -0.5 * NOISE], id="half"),
        pytest.param([NOISE, -NOISE, SILENT, SILENT], id="two of four"),
        pytest.param([SILENT, NOISE, SILENT, -NOISE], id="not the first"),
        pytest.param([NOISE, -NOISE, NOISE, -NOISE], id="pairs"),
        pytest.param([NOISE + 0.3, -NOISE], id="with an offset"),
    ],
)
def test_where_channels_cancel_the_loudest_is_heard(channels: list[np.ndarray]) -> None:
    clip = decode(*channels)
    np.testing.assert_allclose(clip.waveform, NOISE, atol=1e-3)
    assert says_cancelled(clip)


@pytest.mark.parametrize(("container", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_lossy_codecs_cancel_too(container: str, subtype: str) -> None:
    clip = decode(NOISE, -NOISE, format=container, subtype=subtype)
    alone = decode(NOISE, format=container, subtype=subtype)
    assert level(clip.waveform) == pytest.approx(level(alone.waveform), rel=0.1)
    assert says_cancelled(clip)


def test_two_of_six_channels_cancel_and_the_others_stay() -> None:
    clip = decode(NOISE, -NOISE, OTHER, SILENT, SILENT, SILENT)
    np.testing.assert_allclose(clip.waveform, (NOISE + OTHER) / 2, atol=1e-6)
    assert says_cancelled(clip)


def test_a_plug_that_breaks_midway_costs_at_most_half_a_second() -> None:
    half = len(NOISE) // 2
    other = np.concatenate([NOISE[:half], -NOISE[half:]])
    clip = decode(NOISE, other)
    quiet = np.abs(clip.waveform) < 1e-6
    assert quiet.sum() < 0.5 * SAMPLE_RATE
    assert np.array_equal(clip.waveform[: half // 2], NOISE[: half // 2])
    assert says_cancelled(clip)


@pytest.mark.parametrize(
    "channels",
    [
        pytest.param([NOISE, NOISE], id="alike"),
        pytest.param([NOISE, OTHER], id="independent"),
        pytest.param([NOISE, SILENT], id="one silent"),
        pytest.param([NOISE, -0.1 * NOISE], id="crosstalk"),
        pytest.param([NOISE, 0.3 * OTHER - 0.2 * NOISE], id="wide stereo"),
        pytest.param([NOISE, OTHER, 0.01 * OTHER, -0.01 * OTHER], id="quiet surround"),
        pytest.param([tone(4.0), tone(4.0, hz=1000.7)], id="beats slower than a window"),
    ],
)
def test_ordinary_channels_are_averaged(channels: list[np.ndarray]) -> None:
    clip = decode(*channels)
    if "cancel" not in str(clip.warnings):
        np.testing.assert_allclose(clip.waveform, np.mean(channels, axis=0), atol=1e-6)
    assert says_cancelled(clip) == (len(channels) == 2 and channels[0] is not NOISE)


@pytest.mark.parametrize("offset", [0.5, -0.02, 0.001])
@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 22_050])
def test_a_dead_line_with_an_offset_is_silent(offset: float, sample_rate: int) -> None:
    dead = np.full(sample_rate, offset) + RNG.integers(-1, 2, sample_rate) / 2**15
    for channels in (1, 2):
        data = sound_file(np.tile(dead[:, None], channels), sample_rate=sample_rate)
        clip = audio.decode(data, sample_rate=SAMPLE_RATE)
        assert np.abs(clip.waveform).max() < SILENCE_PEAK


@pytest.mark.parametrize("offset", [0.5, -0.1])
def test_an_offset_is_not_heard(offset: float) -> None:
    clip = decode(NOISE + np.float32(offset))
    np.testing.assert_allclose(clip.waveform, NOISE, atol=1e-3)
    assert decode(NOISE + np.float32(offset), OTHER).waveform.mean() == pytest.approx(0, abs=1e-3)


def test_slow_waves_and_short_sounds_are_no_offset() -> None:
    slow = tone(1.0, hz=1.3)
    short = tone(0.0002, hz=1000.0)
    for waveform in (NOISE, slow, short):
        np.testing.assert_array_equal(decode(waveform).waveform, waveform)


def test_a_stream_hears_the_same() -> None:
    half = len(NOISE) // 2
    data = sound_file(np.stack([NOISE + 0.2, np.concatenate([NOISE[:half], -NOISE[half:]])], axis=1))
    clip = audio.decode(data, sample_rate=SAMPLE_RATE, limits=AudioLimits())
    stream = WindowStream(io.BytesIO(data), FrontendConfig(clip_seconds=4.0), overlap_seconds=0.0)
    (_, _, window), *_ = stream
    np.testing.assert_array_equal(window, clip.waveform)
    assert stream.warnings == clip.warnings
