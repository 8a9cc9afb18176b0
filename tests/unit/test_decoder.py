"""Bytes -> waveform: what a user may send, and what comes out."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import torchaudio

from audiocnn import audio
from audiocnn.config import AudioLimits
from audiocnn.errors import AudioError
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone


def decode(data: bytes, **limits: float) -> audio.Clip:
    return audio.decode(data, sample_rate=SAMPLE_RATE, limits=AudioLimits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 1e-7),
        ("FLOAT", 0),
        ("DOUBLE", 0),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_wav_width_gives_the_same_waveform(subtype: str, tolerance: float, channels: int) -> None:
    waveform = tone(0.3)
    clip = decode(sound_file(np.stack([waveform] * channels, axis=1), subtype=subtype))
    assert clip.waveform.dtype == np.float32
    np.testing.assert_allclose(clip.waveform, waveform, atol=tolerance + 1e-7)
    assert clip.warnings == []


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.02),
        ("MP3", "MPEG_LAYER_III", 0.02),
    ],
)
@pytest.mark.parametrize("sample_rate", [44_100, 48_000, 16_000])
def test_every_format_at_every_rate(container: str, subtype: str, tolerance: float, sample_rate: int) -> None:
    data = sound_file(
        tone(1.0, sample_rate=sample_rate), sample_rate=sample_rate, format=container, subtype=subtype
    )
    clip = decode(data)
    assert clip.sample_rate == SAMPLE_RATE
    assert clip.seconds == pytest.approx(1.0, abs=0.06)  # MP3 pads to whole frames
    middle = clip.waveform[SAMPLE_RATE // 4 : SAMPLE_RATE // 4 * 3]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=tolerance + 0.005)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * SAMPLE_RATE / len(middle) == pytest.approx(1000, abs=3)


def test_channels_are_averaged() -> None:
    left, right = tone(0.2), tone(0.2, hz=300)
    clip = decode(sound_file(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(clip.waveform, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 48_000, 96_000])
def test_resampling_agrees_with_torchaudio(sample_rate: int) -> None:
    """Against torchaudio's windowed sinc, away from the edges and below both Nyquist frequencies."""
    rng = np.random.default_rng(0)
    t = np.arange(sample_rate) / sample_rate
    waveform = sum(0.1 * np.sin(2 * np.pi * hz * t + rng.uniform(0, 6)) for hz in (80, 440, 1000, 2500))
    waveform = np.asarray(waveform, dtype=np.float32)
    ours = decode(sound_file(waveform, sample_rate=sample_rate, subtype="FLOAT")).waveform
    theirs = torchaudio.functional.resample(
        torch.from_numpy(waveform), sample_rate, SAMPLE_RATE, lowpass_filter_width=64
    ).numpy()
    assert abs(len(ours) - len(theirs)) <= 1
    inner = slice(2000, -2000)
    length = min(len(ours), len(theirs))
    np.testing.assert_allclose(ours[:length][inner], theirs[:length][inner], atol=2e-3)


def test_a_long_file_is_read_in_blocks_without_seams() -> None:
    waveform = tone(20.0, sample_rate=48_000)
    clip = decode(sound_file(waveform, sample_rate=48_000, subtype="FLOAT"))
    inner = clip.waveform[2000:-2000]
    expected = tone(20.0)[2000 : 2000 + len(inner)]
    np.testing.assert_allclose(inner, expected, atol=1e-3)


def riff(channels: int, sample_rate: int, data: bytes = b"\0\0" * 64) -> bytes:
    """A 16-bit WAV with any header values."""
    fmt = struct.pack(
        "<HHIIHH", 1, channels, sample_rate, sample_rate * channels * 2 % 2**32, channels * 2, 16
    )
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


NAN = tone(0.1).copy()


NAN[100] = np.nan


INFINITE = tone(0.1).copy()


INFINITE[100] = np.inf


@pytest.mark.parametrize(
    ("data", "code", "status"),
    [
        pytest.param(b"", "empty_audio", 400, id="empty"),
        pytest.param(sound_file(np.zeros(0, np.float32)), "empty_audio", 400, id="no frames"),
        pytest.param(b"Dear server, please classify me.", "unsupported_format", 415, id="text"),
        pytest.param(bytes(range(7, 256)) * 40, "unsupported_format", 415, id="random"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "unsupported_format", 415, id="picture"),
        pytest.param(sound_file(tone(0.1))[:30], "undecodable_audio", 400, id="cut header"),
        pytest.param(b"fLaC" + b"\0" * 200, "undecodable_audio", 400, id="broken FLAC"),
        pytest.param(b"OggS" + b"\x11" * 200, "undecodable_audio", 400, id="broken Ogg"),
        pytest.param(sound_file(NAN, subtype="FLOAT"), "not_finite_audio", 400, id="NaN"),
        pytest.param(sound_file(INFINITE, subtype="FLOAT"), "not_finite_audio", 400, id="infinite"),
        pytest.param(
            sound_file(np.full(4800, 3e38, np.float32), sample_rate=48_000, subtype="FLOAT"),
            "not_finite_audio",
            400,
            id="overflow",
        ),
        pytest.param(
            sound_file(np.ones(1, np.float32), sample_rate=192_000), "empty_audio", 400, id="no sample left"
        ),
        pytest.param(riff(255, 44_100), "too_many_channels", 413, id="255 channels"),
        pytest.param(riff(1, 1), "sample_rate_out_of_range", 413, id="1 Hz"),
        pytest.param(riff(1, 1_000_000), "sample_rate_out_of_range", 413, id="1 MHz"),
    ],
)
def test_what_cannot_be_answered_says_why(data: bytes, code: str, status: int) -> None:
    with pytest.raises(AudioError) as caught:
        decode(data)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert len(str(caught.value)) > 20


def test_too_long_is_seen_in_the_header_and_names_the_batch_job() -> None:
    with pytest.raises(AudioError, match="audiocnn batch") as caught:
        decode(sound_file(tone(3.0)), max_seconds=2.0)
    assert caught.value.code == "audio_too_long"


def test_too_long_is_seen_while_decoding_when_the_header_lies() -> None:
    """A FLAC stream without a length, as encoders write into a pipe: the decoder finds out on the way."""
    stream = bytearray(sound_file(tone(4.0), format="FLAC"))
    stream[21] &= 0xF0  # the 36 bits of STREAMINFO's total samples
    stream[22:26] = bytes(4)
    assert decode(bytes(stream)).seconds == 4.0
    assert decode(bytes(stream)).warnings == []
    with pytest.raises(AudioError) as caught:
        decode(bytes(stream), max_seconds=2.0)
    assert caught.value.code == "audio_too_long"


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_seconds_rate_and_channels_are_bounded_together(channels: int) -> None:
    """A small FLAC of silence is many CPU seconds of work: what counts is frames times channels."""
    rate, most = 384_000, AudioLimits(max_seconds=1.0).max_samples
    short, long = int(most / channels), int(most / channels) + 1
    whole = sound_file(np.zeros((short, channels), np.float32), sample_rate=rate, format="FLAC")
    assert decode(whole, max_seconds=1.0).seconds == pytest.approx(short / rate, abs=1e-3)
    larger = bytearray(sound_file(np.zeros((long, channels), np.float32), sample_rate=rate, format="FLAC"))
    lying = larger.copy()
    lying[21] &= 0xF0  # a header without a length
    lying[22:26] = bytes(4)
    for data in (larger, lying):
        with pytest.raises(AudioError, match="samples") as caught:
            decode(bytes(data), max_seconds=1.0)
        assert caught.value.code == "audio_too_long"


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_a_truncated_file_is_answered_as_far_as_it_goes(container: str, subtype: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000 * 4).astype(np.float32)
    data = sound_file(noise, sample_rate=48_000, format=container, subtype=subtype)
    clip = decode(data[: len(data) // 2])
    assert 0.5 < clip.seconds < 3.0
    assert any("truncated" in warning for warning in clip.warnings)
    assert decode(data).warnings == []


def test_a_wrong_scale_is_clipped_with_a_warning() -> None:
    clip = decode(sound_file(tone(0.1) * 1000, subtype="FLOAT"))
    assert np.abs(clip.waveform).max() == 1.0
    assert any("full scale" in warning for warning in clip.warnings)
