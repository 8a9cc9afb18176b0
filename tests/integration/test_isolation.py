"""Decoding in separate processes: files that take minutes or gigabytes, crashes, reuse."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from audiocnn.audio import isolation
from audiocnn.audio.decoder import ClipDecoder, decode
from audiocnn.audio.sndfile import SndFile
from audiocnn.audio.source import Part
from audiocnn.config import AudioLimits
from audiocnn.errors import AudioError, AudioTooLongError
from tests.helpers.paths import ROOT
from tests.helpers.sounds import SAMPLE_RATE, ogg_page, sound_file, tone
from tests.helpers.waiting import SLOWEST, wait_until


def element(identity: str, content: bytes) -> bytes:
    """Of Matroska."""
    return bytes.fromhex(identity) + struct.pack(">Q", len(content) | 1 << 56) + content


def matroska_of_many_tags(count: int) -> bytes:
    """Each tag is looked for among all before it."""
    head = element("1A45DFA3", element("4282", b"webm"))
    audio = element("E1", element("B5", struct.pack(">f", 48_000.0)) + element("9F", b"\2"))
    opus = b"OpusHead\1\2\x38\1\x80\xbb\0\0\0\0\0"
    track = b"".join([element("D7", b"\1"), element("83", b"\2"), element("86", b"A_OPUS"), audio])
    tracks = element("1654AE6B", element("AE", track + element("63A2", opus)))
    names = (element("45A3", b"%06d" % number) + element("4487", b"B") for number in range(count))
    tags = element("1254C367", element("7373", b"".join(element("67C8", name) for name in names)))
    cluster = element("1F43B675", element("E7", b"\0") + element("A3", b"\x81\0\0\x80\xfc\xff\xfe"))
    return head + element("18538067", tracks + tags + cluster)


def box(kind: bytes, *parts: bytes) -> bytes:
    """Of MP4."""
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def mp4_of_many_packets(count: int) -> bytes:
    """All of one size, so that the table of them is one number."""
    sound = box(b"mp4a", bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHII", 2, 16, 0, 44_100 << 16))
    numbers = ((b"stts", 1, count, 1024), (b"stsc", 1, 1, count, 1), (b"stco", 1, 600))
    tables = [box(kind, bytes(4), struct.pack(f">{len(row)}I", *row)) for kind, *row in numbers]
    tables += [box(b"stsd", bytes(4), struct.pack(">I", 1), sound)]
    tables += [box(b"stsz", bytes(4), struct.pack(">II", 1, count))]
    header = box(b"mdhd", bytes(12), struct.pack(">III", 44_100, 220_500, 0))
    kind = box(b"hdlr", bytes(8), b"soun", bytes(13))
    media = box(b"mdia", header, kind, box(b"minf", box(b"stbl", *tables)))
    return box(b"ftyp", b"M4A \0\0\0\0M4A ") + box(b"moov", box(b"trak", media)) + box(b"mdat", bytes(9))


def vorbis_of_many_codebooks() -> bytes:
    """256 of 32,768 entries in 255 dimensions, of 20 bytes each: 33 MB when they are unpacked."""
    first = b"\1vorbis" + struct.pack("<IBIIIIBB", 0, 1, SAMPLE_RATE, 0, 0, 0, 0xB8, 1)
    fields = [(0x564342, 24), (255, 16), (1 << 15, 24), (1, 1), (14, 5), (1 << 15, 16), (1, 4)]
    fields += [(0, 64), (0, 4), (0, 1), (0, 1)]  # one value of one bit
    book = bits = 0
    for value, width in fields:
        book, bits = book | value << bits, bits + width
    rest = bits_of_one_floor_residue_mapping_and_mode()
    setup = b"\5vorbis\xff" + 256 * book.to_bytes(20, "little") + rest
    packets = [first, b"\3vorbis" + bytes(8) + b"\1", setup, b"\0"]
    flags = [2, 0, 0, 4]
    pages = [
        ogg_page(each, flags=flag, number=n)
        for n, (each, flag) in enumerate(zip(packets, flags, strict=True))
    ]
    return b"".join(pages)


def bits_of_one_floor_residue_mapping_and_mode() -> bytes:
    """The least that a setup header has behind its codebooks."""
    fields = [(0, 22), (0, 6), (1, 16), (0, 7), (4, 4), (0, 6), (2, 16), (0, 90), (0, 50), (0, 47), (1, 1)]
    value = bits = 0
    for number, width in fields:
        value, bits = value | number << bits, bits + width
    return value.to_bytes((bits + 7) // 8, "little")


ATTACKS = {
    "tags": matroska_of_many_tags(40_000),
    "packets": mp4_of_many_packets(85_000_000),
    "codebooks": vorbis_of_many_codebooks(),
}


ISOLATED = AudioLimits(isolate=True, decode_seconds=120.0)  # on any machine


def peak_bytes() -> int:
    """The most that this process, or one of its children, ever held in memory.

    Of this process not `ru_maxrss`: it is kept over exec, and so counts the memory of the parent too.
    """
    isolation.end_idle_processes()  # a child counts when it has ended and was waited for
    (own,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) << 10


def decode_in_steps(data: bytes, seconds: float) -> tuple[str, int]:
    """The code of the error, and bytes that this took of memory.

    To be called once in a new process: a child begins with what this process holds, which is not counted.
    """
    limits = AudioLimits(isolate=True, decode_seconds=seconds)
    decoder, code = ClipDecoder(data, sample_rate=SAMPLE_RATE, limits=limits), ""
    before = psutil.Process().memory_info().rss
    goes_on = True
    while goes_on:
        try:
            goes_on = decoder.step()
        except AudioError as error:
            goes_on, code = False, error.code
    return code, peak_bytes() - before


@pytest.fixture(autouse=True)
def no_idle_processes() -> Iterator[None]:
    """A test neither decodes in a process of an earlier test nor leaves one."""
    isolation.end_idle_processes()
    yield
    isolation.end_idle_processes()


# Tags take only time. The others have so much of it that memory ends them, on a slow machine too.
@pytest.mark.parametrize(
    ("name", "seconds"), [("tags", 2.0), ("packets", 2.0 * SLOWEST), ("codebooks", 2.0 * SLOWEST)]
)
def test_no_file_takes_minutes_or_gigabytes(name: str, seconds: float) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as process:  # whatever this one holds by now
        code, memory = process.apply(decode_in_steps, (ATTACKS[name], seconds))
    assert code == "undecodable_audio"
    assert memory < 1 << 29


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_the_sound_is_the_same(subtype: str) -> None:
    data = sound_file(tone(20.0, sample_rate=48_000), sample_rate=48_000, format="OGG", subtype=subtype)
    cut = data[: len(data) // 2]
    for each in (data, cut):
        here = decode(each, sample_rate=SAMPLE_RATE)
        there = decode(each, sample_rate=SAMPLE_RATE, limits=AudioLimits(isolate=True))
        np.testing.assert_array_equal(here.waveform, there.waveform)
        assert here.warnings == there.warnings


def test_errors_are_the_same() -> None:
    data = sound_file(tone(20.0), format="OGG", subtype="VORBIS")
    with pytest.raises(AudioTooLongError, match="longer than 10 s"):
        decode(data, sample_rate=SAMPLE_RATE, limits=AudioLimits(isolate=True, max_seconds=10.0))


LONG = sound_file(tone(20.0, sample_rate=48_000), sample_rate=48_000, format="OGG", subtype="OPUS")


@pytest.fixture
def own() -> Callable[[ClipDecoder], psutil.Process]:
    """Begins to decode; returns the process that does, which no other decoder has had."""

    def begin(decoder: ClipDecoder) -> psutil.Process:
        before = set(psutil.Process().children())
        decoder.step()
        (child,) = set(psutil.Process().children()) - before
        return child

    return begin


Own = Callable[[ClipDecoder], psutil.Process]


def test_a_crash_is_an_error_of_this_file_and_the_next_one_is_answered(own: Own) -> None:
    decoder = ClipDecoder(LONG, sample_rate=SAMPLE_RATE, limits=ISOLATED)
    own(decoder).kill()  # as SIGSEGV does, without a word
    with pytest.raises(AudioError, match="damaged"):
        list(iter(decoder.step, False))
    assert decode(LONG, sample_rate=SAMPLE_RATE, limits=ISOLATED).seconds == pytest.approx(20.0, abs=0.1)


def test_a_process_that_is_done_is_used_again(own: Own) -> None:
    decoder = ClipDecoder(LONG, sample_rate=SAMPLE_RATE, limits=ISOLATED)
    child = own(decoder)
    list(iter(decoder.step, False))
    before = set(psutil.Process().children())
    for _ in range(3):
        decode(LONG, sample_rate=SAMPLE_RATE, limits=ISOLATED)
    after = set(psutil.Process().children())
    assert after <= before  # one of an earlier test may have ended meanwhile
    assert child in after


def test_a_process_whose_clip_is_given_up_ends(own: Own) -> None:
    decoder = ClipDecoder(ATTACKS["tags"], sample_rate=SAMPLE_RATE, limits=ISOLATED)
    child = own(decoder)
    del decoder  # as for a clip that the time of its batch does not reach
    assert not child.is_running()


def test_clips_that_take_turns_have_a_process_each(own: Own) -> None:
    decoders = [ClipDecoder(LONG, sample_rate=SAMPLE_RATE, limits=ISOLATED) for _ in range(3)]
    assert len({own(decoder).pid for decoder in decoders}) == 3
    for decoder in decoders:
        list(iter(decoder.step, False))
        np.testing.assert_array_equal(decoder.clip.waveform, decode(LONG, sample_rate=SAMPLE_RATE).waveform)


def test_no_process_outlives_its_parent() -> None:
    script = """
import sys, psutil
from audiocnn.audio import decode, isolation
from audiocnn.config import AudioLimits
decode(sys.stdin.buffer.read(), sample_rate=44_100, limits=AudioLimits(isolate=True))
(child,) = psutil.Process().children()
print(child.pid)
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, input=LONG, cwd=ROOT, capture_output=True, timeout=600, check=True)
    assert wait_until(lambda: not psutil.pid_exists(int(run.stdout)), 20)


FORKS = """
import audiocnn.gateway
import sys, threading
import numpy as np
from audiocnn.audio import isolation
from audiocnn.audio.decoder import decode
from audiocnn.config import AudioLimits

isolation._MAX_FILES = 1  # a fork for each
sound, matrix = open(sys.argv[1], "rb").read(), np.ones((300, 300), np.float32)
is_over = threading.Event()

def multiply():
    while not is_over.is_set():
        matrix @ matrix

def decode_some():
    for _ in range(25):
        decode(sound, sample_rate=44_100, limits=AudioLimits(isolate=True))

decoders = [threading.Thread(target=decode_some) for _ in range(8)]
multiplier = threading.Thread(target=multiply)
for thread in (multiplier, *decoders):
    thread.start()
for thread in decoders:
    thread.join()
is_over.set()
"""


def test_a_gateway_forks_while_other_threads_compute(tmp_path: Path) -> None:
    sound = tmp_path / "tone.ogg"
    sound.write_bytes(sound_file(tone(1.0), format="OGG", subtype="VORBIS"))
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    command = [sys.executable, "-c", FORKS, str(sound)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)


class SlowSource:
    """A file whose reads wait."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.is_read, self.may_go_on = threading.Event(), threading.Event()
        file = io.BytesIO(data)
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        self.is_read.set()
        self.may_go_on.wait(SLOWEST)
        return self._read(size)


def test_a_process_that_is_started_while_another_thread_opens_a_file_decodes() -> None:
    """soundfile holds a lock meanwhile, which would stay locked in the child."""
    isolation.end_idle_processes()
    source = SlowSource(sound_file(tone(1.0), format="WAV"))
    ogg = sound_file(tone(2.0), format="OGG", subtype="VORBIS")
    with ThreadPoolExecutor(2) as pool:
        opened = pool.submit(SndFile, source, Part(0, source.size, [(0, source.size)]))
        assert source.is_read.wait(SLOWEST)
        limits = AudioLimits(isolate=True, decode_seconds=20.0)
        decoded = pool.submit(decode, ogg, sample_rate=SAMPLE_RATE, limits=limits)
        time.sleep(0.5)  # for the other thread to come to the fork
        source.may_go_on.set()
        assert opened.result(SLOWEST).channels == 1
        assert decoded.result(SLOWEST).seconds == pytest.approx(2.0, abs=0.1)
