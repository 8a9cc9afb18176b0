"""Codecs that are not read, and files with several tracks: named, and the readable track decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import pytest

from audiocnn import audio
from audiocnn.errors import EmptyAudioError, UnsupportedFormatError
from tests.helpers.pyav_sounds import encoded
from tests.helpers.sounds import SAMPLE_RATE, ogg_page, sound_file, tone

RATE = 48_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)


def decode(data: bytes) -> audio.Clip:
    return audio.decode(data, sample_rate=SAMPLE_RATE)


def with_tag(tag: int) -> bytes:
    data = bytearray(sound_file(tone(1.0)))
    data[20:22] = struct.pack("<H", tag)
    return bytes(data)


def in_aiff(name: bytes) -> bytes:
    common = struct.pack(">hIh", 1, 1000, 16) + bytes.fromhex("400eac44000000000000") + name + b"\0\0"
    chunks = (
        b"COMM" + struct.pack(">I", len(common)) + common + b"SSND" + struct.pack(">I", 2008) + bytes(2008)
    )
    return b"FORM" + struct.pack(">I", len(chunks) + 4) + b"AIFC" + chunks


def in_ogg(head: bytes) -> bytes:
    pages = (ogg_page(head.ljust(80, b"\1"), flags=2, number=0), ogg_page(b"x" * 200, flags=4, number=1))
    return b"".join(pages)


def renamed(container: str, codec: str, name: bytes, other: bytes) -> bytes:
    return encoded(NOISE, container, codec).replace(name, other)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(with_tag(0x45), "G.726", id="WAV G.726"),
        pytest.param(with_tag(0x161), "WMA 2", id="WAV WMA"),
        pytest.param(with_tag(0x2001), "DTS", id="WAV DTS"),
        pytest.param(with_tag(0x1234), "0x1234", id="WAV unknown"),
        pytest.param(in_aiff(b"MAC3"), "MAC3", id="AIFF"),
        pytest.param(in_ogg(b"CELT    "), "CELT", id="Ogg CELT"),
        pytest.param(in_ogg(b"\x80theora"), "Theora", id="Ogg Theora"),
        pytest.param(in_ogg(b"whatever"), "whatever", id="Ogg unknown"),
        pytest.param(encoded(NOISE, "matroska", "ac3"), "ac3", id="Matroska AC-3"),
        pytest.param(encoded(NOISE, "mov", "ac3"), "ac3", id="MOV AC-3"),
        pytest.param(renamed("matroska", "ac3", b"A_AC3", b"A_XYZ"), "A_XYZ", id="Matroska unknown"),
        pytest.param(
            renamed("mp4", "aac", b"mp4a", b"mha1").replace(b"esds", b"free"), "mha1", id="MP4 MPEG-H"
        ),
    ],
)
def test_a_codec_that_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=name):
        decode(data)


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_ogg_with_other_codecs(codec: str) -> None:
    clip = decode(encoded(NOISE, "ogg", codec))
    assert clip.seconds == pytest.approx(2.0, abs=0.1)
    assert clip.warnings == []


def tracks(container: str, codecs: Sequence[str]) -> bytes:
    """A file with several tracks: a video of `mpeg4`, or audio, the n-th of n seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as writer:
        streams = []
        for codec in codecs:
            if codec == "mpeg4":
                video = writer.add_stream(codec, rate=10)
                video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
                streams.append((video, av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), "yuv420p")))
            else:
                sound = np.resize(NOISE, (len(streams) + 1) * RATE)[None]
                frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
                frame.sample_rate = RATE
                streams.append((writer.add_stream(codec, rate=RATE, layout="mono"), frame))
        for stream, frame in streams:
            frame.pts, frame.time_base = 0, Fraction(1, RATE)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                writer.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("container", ["matroska", "mov"])
@pytest.mark.parametrize(
    ("codecs", "track", "count", "seconds"),
    [
        (["ac3", "aac"], 2, 2, 2.0),
        (["ac3", "mp2", "aac"], 3, 3, 3.0),
        (["aac", "ac3"], 1, 2, 1.0),
        (["mpeg4", "aac"], 1, 1, 2.0),
        (["mpeg4", "ac3", "aac", "aac"], 2, 3, 3.0),
    ],
)
def test_the_first_readable_track_is_heard(
    container: str, codecs: Sequence[str], track: int, count: int, seconds: float
) -> None:
    clip = decode(tracks(container, codecs))
    assert clip.seconds == pytest.approx(seconds, abs=0.1)
    told = [f"track {track} of {count}" in warning for warning in clip.warnings]
    assert told == [True] * (track > 1)


def test_a_first_track_without_one_good_frame_is_passed_over() -> None:
    data = tracks("matroska", ["flac", "aac"])
    broken = bytearray(data)
    place = 0
    while (place := data.find(b"\xff\xf8", place + 1)) >= 0:  # each frame of FLAC
        broken[place : place + 2] = b"\0\0"
    clip = decode(bytes(broken))
    assert clip.seconds == pytest.approx(2.0, abs=0.1)
    assert any("track 2 of 2" in warning for warning in clip.warnings)


def test_a_video_without_sound_is_empty() -> None:
    with pytest.raises(EmptyAudioError):
        decode(tracks("matroska", ["mpeg4"]))


def test_an_old_quicktime_file_has_no_type() -> None:
    data = tracks("mov", ["aac"])
    clip = decode(data.replace(b"ftyp", b"wide", 1))
    assert clip.seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"caff\0\1\0\0desc", "CAF"),
        (b".snd\0\0\0\x18", "AU"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "WMA"),
        (b"#!AMR\n\x3c", "AMR"),
        (b"MThd\0\0\0\6", "MIDI"),
        (b"\x0b\x77\x12\x34", "AC-3"),
        (b"\x47" + bytes(187) + b"\x47" + bytes(187), "transport stream"),
    ],
)
def test_formats_that_are_not_read_are_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=name):
        audio.decode(head + bytes(range(1, 200)), sample_rate=44_100)
