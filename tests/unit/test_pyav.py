"""What phones and browsers record, read through PyAV: M4A, AAC and WebM, written here by PyAV itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiocnn.audio.decoder import ClipDecoder, decode
from audiocnn.audio.recordings import TRUNCATED
from audiocnn.classifier import Classifier
from audiocnn.config import AudioLimits
from audiocnn.errors import (
    AudioError,
    AudioTooLongError,
    TooManyChannelsError,
    UndecodableAudioError,
    UnsupportedFormatError,
)
from tests.helpers.paths import ROOT
from tests.helpers.pyav_sounds import encoded
from tests.helpers.sounds import SAMPLE_RATE, damaged, sound_file, tone

KINDS = [("mp4", "aac"), ("webm", "libopus"), ("adts", "aac"), ("matroska", "flac"), ("mp4", "alac")]


@pytest.mark.parametrize(("container", "codec"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_comes_back(container: str, codec: str, channels: int) -> None:
    sound = tone(3.0, hz=440.0, sample_rate=48_000)
    clip = decode(encoded(sound, container, codec, channels=channels), sample_rate=SAMPLE_RATE)
    assert clip.seconds == pytest.approx(3.0, abs=0.1)
    assert clip.warnings == []
    middle = clip.waveform[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize(("container", "codec"), [*KINDS[:2], ("mov", "pcm_f32le")])
def test_eight_channels(container: str, codec: str) -> None:
    sound = tone(3.0, hz=440.0, sample_rate=48_000)
    clip = decode(encoded(sound, container, codec, channels=8), sample_rate=SAMPLE_RATE)
    middle = clip.waveform[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert 0.85 < np.sqrt(2 * np.mean(middle**2)) / 0.5 < 1.05  # AAC and Opus cut the bass channel


@pytest.mark.parametrize(("container", "codec"), KINDS[:2])
def test_the_model_hears_the_same(classifier: Classifier, container: str, codec: str) -> None:
    data = (ROOT / "samples" / "siren.wav").read_bytes()
    sound = decode(data, sample_rate=48_000).waveform
    results = classifier.predict_batch([data, encoded(sound, container, codec)])
    names = [result.label for result in results if not isinstance(result, AudioError)]
    assert names == ["siren", "siren"]


def test_a_recording_of_a_browser_says_no_length() -> None:
    """MediaRecorder writes WebM as it goes: the header cannot know how long it will be."""
    data = encoded(tone(2.0, sample_rate=48_000), "webm", "libopus", live="1")
    clip = decode(data, sample_rate=SAMPLE_RATE)
    assert clip.seconds == pytest.approx(2.0, abs=0.1)
    with pytest.raises(AudioTooLongError):
        decode(data, sample_rate=SAMPLE_RATE, limits=AudioLimits(max_seconds=1.0))


@pytest.mark.parametrize(("container", "codec"), KINDS[:3])
def test_bounds(container: str, codec: str) -> None:
    data = encoded(tone(2.0, sample_rate=48_000), container, codec, channels=2)
    for limits, error in (
        (AudioLimits(max_seconds=1.0), AudioTooLongError),
        (AudioLimits(max_channels=1), TooManyChannelsError),
    ):
        with pytest.raises(error):
            decode(data, sample_rate=SAMPLE_RATE, limits=limits)


@pytest.mark.parametrize(
    ("container", "options"), [("webm", {}), ("mp4", {"movflags": "faststart"}), ("adts", {})]
)
def test_a_file_that_breaks_off_is_decoded_as_far_as_it_goes(
    container: str, options: dict[str, str], tmp_path: Path
) -> None:
    codec = "libopus" if container == "webm" else "aac"
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * 48_000)
    data = encoded(noise, container, codec, path=tmp_path / "sound", **options)
    clip = decode(data[: len(data) // 2], sample_rate=SAMPLE_RATE)
    assert 1.5 < clip.seconds < 2.5
    if container != "adts":  # it has neither a length nor an end
        assert clip.warnings == [TRUNCATED]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_damage_is_an_error_of_ours(container: str, codec: str) -> None:
    data = encoded(tone(1.0, sample_rate=48_000), container, codec)
    for candidate in damaged(data, 60):
        try:
            clip = decode(candidate, sample_rate=SAMPLE_RATE)
        except AudioError:
            continue
        assert np.isfinite(clip.waveform).all()


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypM4A \0\0\0\0", b"\x1a\x45\xdf\xa3", b"\xff\xf1\x50\x80"])
def test_a_head_without_a_file_is_undecodable(head: bytes) -> None:
    with pytest.raises(UndecodableAudioError):
        decode(head, sample_rate=SAMPLE_RATE)


SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "OPUS", "MP3": "MPEG_LAYER_III"}


@pytest.mark.parametrize("container", [*SUBTYPES, "mp4", "adts"])
def test_decoding_ends_at_its_time_limit(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = tone(10.0, sample_rate=48_000)
    is_ffmpeg = container in ("mp4", "adts")
    data = (
        encoded(sound, container, "aac")
        if is_ffmpeg
        else sound_file(sound, sample_rate=48_000, format=container, subtype=SUBTYPES[container])
    )
    clock = Clock()
    monkeypatch.setattr("audiocnn.audio.decoder.time", clock)
    decoder = ClipDecoder(data, sample_rate=SAMPLE_RATE)
    assert decoder.step()
    clock.now += 1000.0  # between steps other clips have their turn: their time does not count
    assert decoder.step()
    clock.rate = 1000.0
    with pytest.raises(UndecodableAudioError, match="too long"):
        list(iter(decoder.step, False))


class Clock:
    """Stands in for the module `time` and advances by `rate` seconds with every look."""

    def __init__(self) -> None:
        self.now = self.rate = 0.0

    def monotonic(self) -> float:
        self.now += self.rate
        return self.now

    perf_counter = monotonic


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(1.0, sample_rate=48_000), "mp4", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedFormatError, match=r"audiocnn-serve\[formats\]"):
        decode(data, sample_rate=SAMPLE_RATE)


def test_pyav_is_loaded_only_when_it_is_needed() -> None:
    wav = ROOT / "samples" / "rain.wav"
    code = (
        "import sys, pathlib; from audiocnn.audio import decode;"
        f"decode(pathlib.Path({str(wav)!r}).read_bytes(), sample_rate=44100); assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
