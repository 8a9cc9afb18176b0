"""`audiocnn detect`: files in, events out in the formats that people open."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from audiocnn.detection_writers import (
    AudacityWriter,
    ClipWriter,
    CsvWriter,
    NdjsonWriter,
    ParquetWriter,
    RavenWriter,
    Recording,
)
from audiocnn.detections import Detection
from audiocnn.recording_time import recording_start, start_in_name, time_at
from tests.helpers.command_line import run
from tests.helpers.sounds import SAMPLE_RATE, sound_file

START = datetime(2026, 11, 25, 6, 30, tzinfo=UTC)
FOUND = [Detection("car_horn", 1.25, 3.0, 0.91, 0.7), Detection("dog/wolf", 2.0, 2.5, 0.8, 0.8)]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "a b.wav", START, 22_050.0)


# --- formats ---


def test_a_raven_table_has_the_columns_that_raven_requires(tmp_path: Path, recording: Recording) -> None:
    RavenWriter(tmp_path / "out").write(recording, FOUND)
    text = (tmp_path / "out" / "a b.selections.txt").read_text("utf-8")
    first, second = csv.DictReader(io.StringIO(text), delimiter="\t")
    required = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)")
    assert [first[name] for name in required] == ["1", "Spectrogram 1", "1", "1.250", "3.000", "0"]
    assert (first["High Freq (Hz)"], first["Class"]) == ("22050", "car_horn")
    assert first["Begin Path"] == str(recording.path)
    assert (second["Selection"], second["Confidence"]) == ("2", "0.8000")


def test_an_audacity_track_is_start_end_and_label_with_tabs(tmp_path: Path, recording: Recording) -> None:
    AudacityWriter(tmp_path / "out").write(recording, FOUND)
    lines = (tmp_path / "out" / "a b.txt").read_text("utf-8").splitlines()
    assert lines[0] == "1.250000\t3.000000\tcar_horn 0.91"
    assert all(len(line.split("\t")) == 3 for line in lines)


def test_json_lines_have_absolute_times(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    NdjsonWriter().write(recording, FOUND)
    NdjsonWriter().write(Recording(Path("x.wav"), None, 1.0), FOUND[:1])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["start_time"] == "2026-11-25T06:30:01.250+00:00"
    assert rows[0]["end_time"] == "2026-11-25T06:30:03.000+00:00"
    assert (rows[2]["file"], rows[2]["start_time"]) == ("x.wav", None)


def test_no_track_takes_the_place_of_another(tmp_path: Path) -> None:
    writer = AudacityWriter(tmp_path)
    for name in ("a.wav", "b/a.wav", "a-2.wav", "c/a.flac"):
        writer.write(Recording(Path(name), None, 1.0), FOUND[:1])
    assert len(list(tmp_path.iterdir())) == 4


def test_a_long_name_is_shortened_and_a_clip_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    recording = Recording(Path("\N{DOG}" * 60 + ".wav"), None, 1.0)
    for writer in (RavenWriter(tmp_path / "raven"), AudacityWriter(tmp_path / "audacity")):
        writer.write(recording, FOUND[:1])
    waveform = np.zeros(5 * SAMPLE_RATE, np.float32)
    cutter = ClipWriter(tmp_path / "clips", padding=0.0, sample_rate=SAMPLE_RATE)
    cutter.cut(recording, FOUND[:1], [waveform])
    assert len(list(tmp_path.glob("*/*"))) == 3
    with pytest.raises(OSError, match="clips cannot be written"):
        cutter.cut(recording, [FOUND[0]._replace(label="x" * 255)], [waveform])


def test_a_moment_beyond_the_year_9999_has_no_time() -> None:
    start = recording_start("99991231_235959.wav", UTC)
    assert time_at(start, 0.5) == "9999-12-31T23:59:59.500+00:00"
    assert time_at(start, 1.0) is None


def test_csv_and_parquet_say_the_same(tmp_path: Path, recording: Recording) -> None:
    local = Recording(recording.path, START.astimezone(ZoneInfo("Asia/Tokyo")), 1.0)
    file = io.StringIO()
    CsvWriter(file).write(local, FOUND)
    writer = ParquetWriter(tmp_path / "out.parquet")
    writer.write(local, FOUND)
    writer.close()
    from_csv = list(csv.DictReader(io.StringIO(file.getvalue())))
    from_parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for text, row in zip(from_csv, from_parquet, strict=True):
        assert {name: str(row[name]) for name in ("file", "class", "start", "end")} == {
            name: text[name] for name in ("file", "class", "start", "end")
        }
        assert datetime.fromisoformat(text["start_time"]) == row["start_time"]
        assert text["start_time"].endswith("+09:00")


def test_clips_are_cut_with_padding_across_blocks(tmp_path: Path, recording: Recording) -> None:
    waveform = np.linspace(-0.5, 0.5, 5 * SAMPLE_RATE).astype(np.float32)
    blocks = np.array_split(waveform, 50)
    ClipWriter(tmp_path / "out", padding=0.5, sample_rate=SAMPLE_RATE).cut(recording, FOUND, blocks)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a b_00001.250-00003.000_car_horn.wav", "a b_00002.000-00002.500_dog_wolf.wav"]
    clip, rate = soundfile.read(tmp_path / "out" / names[0])
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(clip, waveform[round(0.75 * rate) : round(3.5 * rate)], atol=1e-4)


def test_a_clip_ends_with_its_file(tmp_path: Path, recording: Recording) -> None:
    waveform = np.zeros(3 * SAMPLE_RATE, np.float32)
    cutter = ClipWriter(tmp_path / "out", padding=2.0, sample_rate=SAMPLE_RATE)
    cutter.cut(recording, FOUND[:1], [waveform])
    (path,) = (tmp_path / "out").iterdir()
    assert soundfile.info(path).frames == len(waveform)


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    writer = AudacityWriter(tmp_path / "out")
    for folder in ("a", "b"):
        writer.write(Recording(tmp_path / folder / "x.wav", None, 1.0), FOUND)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x-2.txt", "x.txt"]


# --- when it was ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20261125_063000.wav", START),
        ("SM4_20261125_063000.wav", START),
        ("site-7_2026-11-25T06-30-00Z.flac", START),
        ("20261125T063000+0130.wav", datetime(2026, 11, 25, 5, 0, tzinfo=UTC)),
        ("20261125063000.wav", START),
        ("20269925_063000.wav", None),
        ("1-100032-A-0.ogg", None),
        ("recording.wav", None),
    ],
)
def test_times_in_names(name: str, expected: datetime | None) -> None:
    assert start_in_name(name, UTC) == expected


def test_a_name_without_zone_is_local(tmp_path: Path) -> None:
    start = start_in_name("20261125_063000.wav", ZoneInfo("Europe/Berlin"))
    assert time_at(start, 1.5) == "2026-11-25T06:30:01.500+01:00"


def test_the_clock_change_in_a_recording() -> None:
    start = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert time_at(start, 0) == "2026-10-25T02:30:00.000+02:00"
    assert time_at(start, 3600) == "2026-10-25T02:30:00.000+01:00"


def bwf(date: bytes, name: str, folder: Path) -> Path:
    """A Broadcast Wave file: `bext` as EBU Tech 3285 lays it out, before the chunks of a plain file."""
    bext = bytes(320) + date + bytes(602 - 320 - len(date))
    plain = sound_file(np.zeros(100, np.float32))
    chunk = b"bext" + struct.pack("<I", len(bext)) + bext
    path = folder / name
    path.write_bytes(b"RIFF" + struct.pack("<I", len(plain) - 8 + len(chunk)) + b"WAVE" + chunk + plain[12:])
    return path


def test_bwf_origination_wins_over_the_name(tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=2))
    path = bwf(b"2025-01-0212:13:14", "20261125_063000.wav", tmp_path)
    assert soundfile.info(path).frames == 100
    assert recording_start(path, zone) == datetime(2025, 1, 2, 12, 13, 14, tzinfo=zone)
    path = bwf(bytes(18), "20261125_063000.wav", tmp_path)
    assert recording_start(path, UTC) == START


# --- the command ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with 4 s of a synthetic alarm clock from 6 s on, and a file that is no sound."""
    from audiocnn.audio import synthetic

    folder = tmp_path_factory.mktemp("recordings")
    scene = 0.002 * np.random.default_rng(0).standard_normal(16 * SAMPLE_RATE)
    scene[6 * SAMPLE_RATE :][: 4 * SAMPLE_RATE] += 0.5 * synthetic.SOUNDS["clock_alarm"]()[: 4 * SAMPLE_RATE]
    (folder / "20261125_063000.wav").write_bytes(sound_file(scene))
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


def test_all_outputs_of_a_file_that_is_damaged_and_has_no_text_as_its_name(
    folder: Path, tmp_path: Path, narrow: Path
) -> None:
    scene, _ = soundfile.read(folder / "20261125_063000.wav", dtype="float32")
    scene[-100:] = np.nan
    path = tmp_path / os.fsdecode(b"\xff.wav")
    path.write_bytes(sound_file(scene, subtype="FLOAT"))
    out = tmp_path / "out"
    names = ("--raven", "--audacity", "--clips", "--csv", "--parquet")
    outputs = [argument for name in names for argument in (name, out / name.strip("-"))]
    done = run("detect", path, "--ndjson", *outputs, "--classes", "clock_alarm", "--min-confidence", "0.3")
    assert done.returncode == 1
    assert "not_finite_audio" in done.stderr
    files = {json.loads(line)["file"] for line in done.stdout.splitlines()}
    assert (
        files
        == {row["file"] for row in pq.read_table(out / "parquet").to_pylist()}
        == {f"{tmp_path}/\\xff.wav"}
    )
    assert len(list((out / "clips").iterdir())) == len(done.stdout.splitlines())


def test_all_outputs_of_one_run(folder: Path, tmp_path: Path) -> None:
    names = ("--raven", "--audacity", "--clips", "--csv", "--parquet")
    outputs = [argument for name in names for argument in (name, str(tmp_path / name.strip("-")))]
    done = run(
        "detect", str(folder), "--ndjson", *outputs, "--classes", "clock_alarm", "--min-confidence", "0.3"
    )
    assert done.returncode == 1  # one file is broken
    assert "broken.wav: unsupported_format: " in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["class"] for row in rows} == {"clock_alarm"}
    assert rows[0]["start"] == pytest.approx(6.0, abs=1.0)
    assert rows[-1]["end"] == pytest.approx(10.0, abs=1.0)
    began = datetime.fromisoformat(rows[0]["start_time"])
    assert began == START + timedelta(seconds=rows[0]["start"])
    assert len(pq.read_table(tmp_path / "parquet")) == len(rows)
    assert len((tmp_path / "csv").read_text().splitlines()) == len(rows) + 1
    table = (tmp_path / "raven" / "20261125_063000.selections.txt").read_text()
    assert len(table.splitlines()) == len(rows) + 1
    assert len((tmp_path / "audacity" / "20261125_063000.txt").read_text().splitlines()) == len(rows)
    clips = sorted((tmp_path / "clips").iterdir())
    assert len(clips) == len(rows)
    seconds = rows[0]["end"] - rows[0]["start"]
    assert soundfile.info(clips[0]).duration == pytest.approx(seconds + 2, abs=0.01)


def test_the_command_and_predict_agree(folder: Path, classifier_of_command: object) -> None:
    from audiocnn.classifier import Classifier
    from audiocnn.options import Options

    assert isinstance(classifier_of_command, Classifier)
    path = folder / "20261125_063000.wav"
    done = run("detect", str(path), "--ndjson", "--min-confidence", "0.3")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    options = Options(detections=True, min_confidence=0.3)
    answer = classifier_of_command.predict(path, options).to_dict()["detections"]
    assert [{name: row[name] for name in ("class", "start", "end")} for row in rows] == [
        {name: row[name] for name in ("class", "start", "end")} for row in answer
    ]


@pytest.fixture(scope="module")
def classifier_of_command() -> object:
    import audiocnn

    return audiocnn.load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start-time", "yesterday"], "write 2026-11-25T06:30:00+01:00"),
        (["--timezone", "Mars/Olympus"], "there is no Mars/Olympus"),
        (["--hop-seconds", "9"], "from 0.5 to 5"),
        (["--classes", "unicorn"], "unicorn"),
    ],
)
def test_wrong_options_end_with_2(folder: Path, narrow: Path, arguments: list[str], message: str) -> None:
    done = run("detect", folder / "20261125_063000.wav", "--model", narrow, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_start_time_is_that_of_one_file(folder: Path, narrow: Path) -> None:
    done = run("detect", folder, "--start-time", "2026-11-25T06:30:00Z", "--model", narrow)
    assert done.returncode == 2
    assert "of one file, but there are 2" in done.stderr
