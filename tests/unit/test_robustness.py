"""The conditions of the robustness evaluation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from audiocnn import audio
from audiocnn.classifier import Classifier
from audiocnn.datasets import LabelledClip
from audiocnn.results import Result
from tests.helpers.sounds import SAMPLE_RATE, tone
from training import robustness
from training.robustness import CONDITIONS, Condition

CLIP = tone(5.0)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE)).astype(np.float32)


def decoded(condition: Condition, waveform: np.ndarray) -> np.ndarray:
    """What the server decodes of the condition's file: float32 at `SAMPLE_RATE`."""
    return audio.decode(condition(waveform, SAMPLE_RATE), sample_rate=SAMPLE_RATE).waveform


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_deterministic_and_keeps_the_pitch(name: str) -> None:
    waveform = decoded(CONDITIONS[name], CLIP)
    np.testing.assert_array_equal(waveform, decoded(CONDITIONS[name], CLIP.copy()))
    spectrum = np.abs(np.fft.rfft(waveform))
    hz = spectrum.argmax() * SAMPLE_RATE / len(waveform)
    assert hz == pytest.approx(1000, abs=2)
    assert np.abs(decoded(CONDITIONS[name], np.zeros_like(CLIP))).max() < 1e-3


@pytest.mark.parametrize(("name", "decibels"), [("gain -30 dB", -30), ("gain -15 dB", -15)])
def test_quieter(name: str, decibels: float) -> None:
    assert 20 * np.log10(rms(decoded(CONDITIONS[name], CLIP)) / rms(CLIP)) == pytest.approx(
        decibels, abs=0.02
    )


@pytest.mark.parametrize(
    ("name", "clipped"), [("gain +10 dB", 0.564), ("hard clipping (gain +20 dB)", 0.872)]
)
def test_louder_is_clipped_and_does_not_wrap_around(name: str, clipped: float) -> None:
    waveform = decoded(CONDITIONS[name], CLIP)
    # A sine of amplitude a > 1 is above full scale for 1 - 2/pi * asin(1/a) of the time.
    assert (np.abs(waveform) > 0.999).mean() == pytest.approx(clipped, abs=0.02)
    assert (np.sign(waveform) == np.sign(CLIP))[np.abs(CLIP) > 0.01].all()


@pytest.mark.parametrize(
    ("name", "snr"),
    [(f"white noise, {snr} dB SNR", snr) for snr in (20, 10, 0)]
    + [(f"fan and hum, {snr} dB SNR", snr) for snr in (10, 0)],
)
def test_noise_has_the_power_it_says(name: str, snr: float) -> None:
    for waveform in (CLIP, CLIP * 1.9):  # the second is scaled down to fit
        noisy = decoded(CONDITIONS[name], waveform).astype(np.float64)
        clean = waveform * (noisy @ waveform) / np.square(waveform, dtype=np.float64).sum()
        assert 20 * np.log10(rms(clean) / rms(noisy - clean)) == pytest.approx(snr, abs=0.1)


def test_every_clip_has_noise_of_its_own() -> None:
    add = robustness.noise(0)
    one, two = decoded(add, CLIP * 0.2) - CLIP * 0.2, decoded(add, -CLIP * 0.2) + CLIP * 0.2
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("name", "kbits", "codec", "rate"),
    [("MP3, 64 kbit/s", 64, "MPEG_LAYER_III", 44_100), ("Opus, 24 kbit/s", 24, "OPUS", 48_000)],
)
@pytest.mark.parametrize("sample_rate", [22_050, 44_100])
def test_codecs_spend_about_what_they_are_named_after(
    name: str, kbits: float, codec: str, rate: int, sample_rate: int
) -> None:
    data = CONDITIONS[name](NOISE[: 5 * sample_rate], sample_rate)
    assert 8 * len(data) / 5 / 1000 == pytest.approx(kbits, rel=0.35)
    info = soundfile.info(io.BytesIO(data))
    assert (info.subtype, info.samplerate) == (codec, rate)


def test_codecs_spend_as_much_on_real_clips(fold4: list[LabelledClip]) -> None:
    clips = [audio.decode(clip.path.read_bytes(), sample_rate=SAMPLE_RATE) for clip in fold4[::50]]
    for name, kbits in (("MP3, 64 kbit/s", 64), ("Opus, 24 kbit/s", 24)):
        size = sum(len(CONDITIONS[name](clip.waveform, SAMPLE_RATE)) for clip in clips)
        assert 8 * size / sum(clip.seconds for clip in clips) / 1000 == pytest.approx(kbits, rel=0.35)


@pytest.mark.parametrize(("name", "rate"), [("16 kHz file", 16_000), ("8 kHz file", 8_000)])
def test_a_lower_rate_loses_the_top(name: str, rate: int) -> None:
    data = CONDITIONS[name](NOISE, SAMPLE_RATE)
    assert soundfile.info(io.BytesIO(data)).samplerate == rate
    spectrum = np.square(np.abs(np.fft.rfft(decoded(CONDITIONS[name], NOISE))))
    edge = round(rate / 2 * 1.02 * len(NOISE) / SAMPLE_RATE)
    assert spectrum[edge:].sum() < 1e-3 * spectrum[:edge].sum()


def test_an_excerpt_is_the_loudest_second() -> None:
    clip = NOISE * 0.1
    loud = np.sign(CLIP[:SAMPLE_RATE] + 0.01) * 0.5  # as loud in every sample: one second is the loudest
    clip[2 * SAMPLE_RATE : 3 * SAMPLE_RATE] = loud
    waveform = decoded(CONDITIONS["1 s excerpt (the loudest)"], clip)
    np.testing.assert_allclose(waveform, loud, atol=1e-4)
    assert len(decoded(robustness.excerpt(1.0), CLIP[:1000])) == 1000


def test_a_shift_loses_nothing() -> None:
    np.testing.assert_array_equal(decoded(robustness.shift(0.4), NOISE), np.roll(NOISE, 2 * SAMPLE_RATE))


def test_the_table_names_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    result = robustness.measure(lambda name, _: 0.125 if name.startswith("8 kHz") else 0.5, 0.75)
    assert result["worst"] == "8 kHz file"
    assert {"condition": "8 kHz file", "accuracy": 0.125, "difference": -0.625} in result["conditions"]
    assert [row["condition"] for row in result["conditions"]] == list(CONDITIONS)
    robustness.print_table(result)
    printed = capsys.readouterr().out
    assert "75.00%" in printed
    assert "-62.50" in printed
    assert printed.endswith("worst: 8 kHz file\n")


def test_a_mild_condition_hardly_changes_a_real_answer(
    classifier: Classifier, fold4: list[LabelledClip]
) -> None:
    for clip in fold4[:8]:
        data = clip.path.read_bytes()
        waveform = audio.decode(data, sample_rate=SAMPLE_RATE).waveform
        clean, again = classifier.predict_batch([data, robustness.wav(waveform, SAMPLE_RATE)])
        assert isinstance(clean, Result)
        assert isinstance(again, Result)
        assert np.abs(clean.probs - again.probs).max() < 0.02
