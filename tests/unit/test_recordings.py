"""Joined recordings, tags, damaged spots and wrong lengths: what can be decoded is, the rest is reported."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from audiocnn import audio
from audiocnn.config import AudioLimits
from audiocnn.errors import AudioError, AudioTooLongError, EmptyAudioError, UndecodableAudioError
from tests.helpers.pyav_sounds import encoded
from tests.helpers.sounds import SAMPLE_RATE, damaged, sound_file, tone


def noise(seconds: float, sample_rate: int) -> np.ndarray:
    """The same in every order of the tests."""
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * sample_rate)).astype(np.float32)


def decode(data: bytes, **limits: float) -> audio.Clip:
    return audio.decode(data, sample_rate=SAMPLE_RATE, limits=AudioLimits(**limits))  # type: ignore[arg-type]


def native(container: str, subtype: str) -> Callable[[float, int], bytes]:
    @cache
    def make(seconds: float, sample_rate: int) -> bytes:
        sound = noise(seconds, sample_rate)
        return sound_file(sound, sample_rate=sample_rate, format=container, subtype=subtype)

    return make


def with_pyav(container: str, codec: str) -> Callable[[float, int], bytes]:
    @cache
    def make(seconds: float, sample_rate: int) -> bytes:
        return encoded(noise(seconds, sample_rate), container, codec, rate=sample_rate)

    return make


Make = Callable[[float, int], bytes]

MAKERS: dict[str, Make] = {
    "WAV": native("WAV", "PCM_16"),
    "RF64": native("RF64", "PCM_16"),
    "W64": native("W64", "PCM_16"),
    "AIFF": native("AIFF", "PCM_16"),
    "FLAC": native("FLAC", "PCM_16"),
    "Vorbis": native("OGG", "VORBIS"),
    "Opus": native("OGG", "OPUS"),
    "MP3": native("MP3", "MPEG_LAYER_III"),
    "AAC": with_pyav("adts", "aac"),
    "M4A": with_pyav("mp4", "aac"),
    "WebM": with_pyav("webm", "libopus"),
    "Ogg FLAC": with_pyav("ogg", "flac"),
    "MP2": with_pyav("mp2", "mp2"),
}
CASES = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
SLACK = 0.15  # seconds that encoders add to a recording


@CASES
def test_joined_recordings_are_heard_one_behind_another(make: Make) -> None:
    clip = decode(make(2.0, 48_000) + make(2.0, 48_000))
    assert clip.seconds == pytest.approx(4.0, abs=2 * SLACK)
    assert clip.warnings == []


@CASES
def test_three_joined_recordings_of_different_rates(make: Make) -> None:
    clip = decode(make(1.0, 48_000) + make(1.0, 16_000) + make(1.0, 24_000))
    assert clip.seconds == pytest.approx(3.0, abs=3 * SLACK)
    assert clip.warnings == []


def test_recordings_of_different_formats_and_channels() -> None:
    stereo = sound_file(np.stack([noise(1.0, 44_100)] * 2, axis=1), format="FLAC")
    clip = decode(
        MAKERS["WAV"](1.0, 22_050) + stereo + MAKERS["FLAC"](1.0, 48_000) + MAKERS["MP3"](1.0, 48_000)
    )
    assert clip.seconds == pytest.approx(3.0, abs=0.2)  # nothing says where a FLAC ends
    two = decode(MAKERS["MP3"](1.0, 48_000) + b"TAG" + bytes(125) + stereo)
    assert two.seconds == pytest.approx(2.0, abs=0.2)
    assert two.warnings == []


@CASES
def test_a_recording_that_cannot_be_read_is_told(make: Make) -> None:
    wav = bytearray(MAKERS["WAV"](1.0, 44_100))
    wav[20:22] = struct.pack("<H", 0x45)  # G.726
    for whole in (bytes(wav) + make(1.0, 48_000), MAKERS["WAV"](1.0, 48_000) + bytes(wav)):
        clip = decode(whole)
        assert clip.seconds == pytest.approx(1.0, abs=SLACK)
        assert any("was not used: The codec G.726" in warning for warning in clip.warnings)


def test_limits_count_all_recordings() -> None:
    with pytest.raises(AudioTooLongError):
        decode(MAKERS["Vorbis"](2.0, 48_000) + MAKERS["Vorbis"](2.0, 16_000), max_seconds=3.0)


TAGS = {
    "zeros": bytes(5_000),
    "lines": b"\r\n \t\n" * 20,
    "byte order mark": b"\xef\xbb\xbf",
    "ID3v2": b"ID3\4\0\0\0\0\0\x0a" + b"x" * 10,
    "ID3v2 and zeros": b"ID3\4\0\0\0\0\0\x0a" + b"x" * 10 + bytes(700),
    "two ID3v2": (b"ID3\4\0\0\0\0\0\x0a" + b"x" * 10) * 2,
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 40, 1, 0xA000_0000) + bytes(8) + b"y" * 40,
    "ID3v1": b"TAG" + b"z" * 125,
}


@CASES
@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_tags_and_zeros_in_front(make: Make, tag: bytes) -> None:
    clip = decode(tag + make(1.0, 48_000))
    assert clip.seconds == pytest.approx(1.0, abs=SLACK)
    assert clip.warnings == []


@pytest.mark.parametrize("name", ["MP3", "AAC", "MP2"])
def test_a_tag_that_claims_more_than_the_file_has(name: str) -> None:
    clip = decode(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + b"x" * 300 + MAKERS[name](1.0, 48_000))
    assert clip.seconds == pytest.approx(1.0, abs=SLACK)


@CASES
@pytest.mark.parametrize("tag", ["zeros", "ID3v2", "APE", "ID3v1"])
def test_tags_and_zeros_behind(make: Make, tag: str) -> None:
    clip = decode(make(1.0, 48_000) + TAGS[tag])
    assert clip.seconds == pytest.approx(1.0, abs=SLACK)
    assert clip.warnings == []


@pytest.mark.parametrize("name", ["MP3", "AAC", "MP2"])
def test_half_a_frame_in_front(name: str) -> None:
    data = MAKERS[name](2.0, 48_000)
    clip = decode(data[len(data) // 2 + 7 :])
    assert clip.seconds == pytest.approx(1.0, abs=0.2)
    assert clip.warnings == []


def test_half_a_page_in_front() -> None:
    first = MAKERS["Vorbis"](1.0, 48_000)
    clip = decode(first[-500:] + MAKERS["Opus"](1.0, 48_000))
    assert clip.seconds == pytest.approx(1.0, abs=SLACK)


@pytest.mark.parametrize("name", ["MP3", "FLAC", "Vorbis", "Opus", "AAC", "M4A", "MP2"])
@pytest.mark.parametrize("damage", [bytes(400), bytes(range(256)) * 2, b"\xff" * 300])
def test_a_damaged_spot_costs_what_it_covers(name: str, damage: bytes) -> None:
    data = bytearray(MAKERS[name](10.0, 48_000))
    middle = len(data) // 2
    data[middle : middle + len(damage)] = damage
    clip = decode(bytes(data))
    assert 7.5 < clip.seconds < 10.2
    is_told = any("damaged" in warning for warning in clip.warnings)
    assert is_told or clip.seconds > 9.95


@pytest.mark.parametrize("name", ["MP3", "AAC", "FLAC"])
def test_bytes_that_are_missing_in_the_middle(name: str) -> None:
    data = MAKERS[name](10.0, 48_000)
    clip = decode(data[: len(data) // 3] + data[len(data) // 2 :])
    assert clip.seconds == pytest.approx(10 * 5 / 6, abs=0.4)
    assert any("damaged" in warning for warning in clip.warnings)


@pytest.mark.parametrize("name", ["MP3", "FLAC", "Vorbis", "Opus", "WAV", "AIFF", "W64", "RF64"])
def test_half_a_file_is_called_truncated(name: str) -> None:
    data = MAKERS[name](4.0, 48_000)
    clip = decode(data[: len(data) // 2])
    assert 0.5 < clip.seconds < 3.0
    assert any("truncated" in warning for warning in clip.warnings)


@pytest.mark.parametrize("excess", [8, 44, 1000])
def test_a_complete_wav_whose_size_is_off_is_not_truncated(excess: int) -> None:
    data = bytearray(MAKERS["WAV"](1.0, 44_100))
    riff, samples = struct.unpack("<I", data[4:8])[0], struct.unpack("<I", data[40:44])[0]
    data[4:8] = struct.pack("<I", riff + excess)
    assert decode(bytes(data)).warnings == []
    data[40:44] = struct.pack("<I", samples + excess)
    clip = decode(bytes(data))
    assert (clip.seconds, clip.warnings) == (1.0, [])


def without_info_frame(mp3: bytes) -> bytes:
    place = max(mp3.find(b"Info"), mp3.find(b"Xing"))
    return mp3[mp3.find(mp3[:2], place) :]


def test_an_mp3_that_gives_no_length_is_complete_and_never_refused_by_a_guess() -> None:
    quiet = sound_file(
        np.zeros(48_000, np.float32), sample_rate=48_000, format="MP3", subtype="MPEG_LAYER_III"
    )
    data = without_info_frame(quiet) + without_info_frame(MAKERS["MP3"](4.0, 48_000))
    size = 3_000_000
    cover = (
        b"ID3\3\0\0"
        + bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0))
        + np.random.default_rng(1).bytes(size)
    )
    for each in (data, cover + data):
        clip = decode(each, max_seconds=6.0)
        assert clip.seconds == pytest.approx(5.0, abs=0.3)
        assert clip.warnings == []


def test_a_length_that_the_bytes_cannot_hold_does_not_refuse() -> None:
    data = bytearray(MAKERS["FLAC"](2.0, 44_100))
    data[22:26] = struct.pack(">I", 44_100 * 3600)
    clip = decode(bytes(data))
    assert clip.seconds == 2.0
    assert any("truncated" in warning for warning in clip.warnings)


SIZES = {"WAV": 40, "AIFF": 42, "W64": 104, "RF64": 28}  # where the number of bytes of samples is


def with_size(name: str, size: int) -> bytes:
    data = bytearray(MAKERS[name](2.0, 44_100))
    at = data.find(b"SSND") + 4 if name == "AIFF" else SIZES[name]
    at = data.find(b"data\xf3") + 16 if name == "W64" else at
    code = {"WAV": "<I", "AIFF": ">I", "W64": "<Q", "RF64": "<Q"}[name]
    data[at : at + struct.calcsize(code)] = struct.pack(code, size % 2 ** (8 * struct.calcsize(code)))
    if name == "AIFF":
        frames = data.find(b"COMM") + 10
        data[frames : frames + 4] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_was_never_written(name: str) -> None:
    data = with_size(name, 0)
    clip = decode(data)
    assert clip.seconds == pytest.approx(2.0, abs=1e-3)
    assert any("gives no length" in warning for warning in clip.warnings)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_means_unknown(name: str) -> None:
    clip = decode(with_size(name, -1))
    assert clip.seconds == pytest.approx(2.0, abs=1e-3)
    assert clip.warnings == []
    joined = decode(with_size("WAV", -1) + MAKERS["WAV"](1.0, 16_000))
    assert (joined.seconds, joined.warnings) == (3.0, [])


def test_a_file_without_samples_stays_empty() -> None:
    empty = sound_file(np.zeros(0, np.float32))
    listed = empty + b"LIST" + struct.pack("<I", 4) + b"INFO"
    for data in (empty, listed):
        with pytest.raises(EmptyAudioError):
            decode(data)


@pytest.mark.parametrize("container", ["BW64", "RF64"])
@pytest.mark.parametrize("size", [None, 0])
def test_bw64(container: str, size: int | None) -> None:
    data = with_size("RF64", size) if size is not None else MAKERS["RF64"](2.0, 44_100)
    clip = decode(container.encode() + data[4:])
    assert clip.seconds == 2.0
    assert len(clip.warnings) == (size is not None)


def test_data_behind_the_sound_is_told() -> None:
    clip = decode(MAKERS["WAV"](1.0, 44_100) + np.random.default_rng(1).bytes(50_000))
    assert clip.seconds == 1.0
    assert any("50,000 bytes" in warning for warning in clip.warnings)


@pytest.mark.parametrize(
    "data", [b"ID3\4\0\0\0\0\0\x0a" + b"x" * 10, b"\xff\xfb\x90\x64", b"TAG" + bytes(125)]
)
def test_tags_without_a_sound(data: bytes) -> None:
    with pytest.raises(UndecodableAudioError):
        decode(data)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus")])
def test_tags_in_latin_1(container: str, codec: str) -> None:
    data = encoded(noise(0.5, 48_000), container, codec, title="Cafe, Wien")
    assert decode(data.replace(b"Cafe", "Café".encode("latin-1"))).seconds == pytest.approx(0.5, abs=0.05)


def test_a_chunk_beyond_the_largest_file() -> None:
    data = bytearray(MAKERS["W64"](0.5, 48_000))
    place = data.index(b"fmt ") + 16
    data[place : place + 8] = (0x7FFFFFFFFFFFFFF0).to_bytes(8, "little")
    with pytest.raises(UndecodableAudioError):
        decode(bytes(data))


@pytest.mark.parametrize("duration", [b"00:00:00.4.00000000", b"99999:99:99.0000000"])
def test_a_duration_that_is_none(duration: bytes) -> None:
    data = encoded(noise(0.5, 48_000), "matroska", "flac")
    name = data.rindex(b"DURATION")
    place = data.index(b"00:00:00.", name)
    clip = decode(data[:place] + duration[:18] + data[place + 18 :])
    assert clip.seconds == pytest.approx(0.5, abs=0.05)


@CASES
def test_damage_anywhere_is_an_error_of_ours(make: Make) -> None:
    data = make(0.5, 48_000) + make(0.5, 16_000)
    for candidate in damaged(data, 25):
        try:
            clip = decode(candidate)
        except AudioError:
            continue
        assert np.isfinite(clip.waveform).all()


def test_a_tone_has_no_seam_where_a_spot_is_left_out_of_a_flac() -> None:
    data = bytearray(sound_file(tone(4.0), format="FLAC"))
    data[len(data) // 2] ^= 0xFF
    clip = decode(bytes(data))
    assert 3.7 < clip.seconds < 4.0
    assert np.abs(clip.waveform).max() == pytest.approx(0.5, abs=0.01)
