"""The worker of the batch job, as Ray calls it, with the released model: what is answered and written."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from audiocnn import audio, inputs
from audiocnn.audio import synthetic
from audiocnn.batch.aggregate import FileResult, WindowResult, classify_files
from audiocnn.batch.manifest import Manifest
from audiocnn.batch.state import SUFFIXES, JobSettings, Outcome, pairs, place
from audiocnn.batch.summary import join_csv
from audiocnn.batch.worker import Job, Worker
from audiocnn.batch.writers import FILES, WINDOWS
from audiocnn.classifier import Classifier
from audiocnn.embedding_table import EmbeddingTable
from audiocnn.errors import AudioError
from audiocnn.inputs import Notes
from audiocnn.model.loading import served_model_path
from audiocnn.options import Options
from audiocnn.results import Result
from tests.helpers.batch import fill, fill_bad, table
from tests.helpers.command_line import run as run_cli
from tests.helpers.paths import STORE
from tests.helpers.sounds import sound_file, tone

EMBEDDINGS = ("files", "windows", "embeddings")
SETTINGS = JobSettings("0" * 64, 5, 0.0, None, evidence=False, formats=("parquet",), root="/")


# --- what is answered ---


def run(
    classifier: Classifier, *paths: Path, **options: Any
) -> tuple[list[FileResult], list[list[WindowResult]]]:
    files: list[FileResult] = []
    windows: list[list[WindowResult]] = [[]]
    for item in classify_files(classifier, map(str, paths), **options):
        if isinstance(item, FileResult):
            files.append(item)
            windows.append([])
        else:
            windows[-1].append(item[1])
    return files, windows[:-1]


def sounds_in(folder: Path) -> list[Path]:
    """Short, one window, a tail too short, several windows, another rate, a truncated file, silence."""
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.normal(size=44_100 * 31)).astype(np.float32)
    rain = audio.decode(synthetic.wav("rain"), sample_rate=44_100).waveform
    slow = tone(12.3, sample_rate=22_050)
    files = {
        "short.wav": sound_file(tone(0.3)),
        "rain.wav": synthetic.wav("rain"),
        "tail.wav": sound_file(np.concatenate([rain, rain[:8000]])),
        "long.flac": sound_file(np.concatenate([rain, noise]), format="FLAC"),
        "rate.ogg": sound_file(slow, sample_rate=22_050, format="OGG", subtype="VORBIS"),
        "cut.wav": synthetic.wav("siren")[:200_000],
        "silence.wav": sound_file(np.zeros((88_200, 2), np.float32)),
        "loud.wav": sound_file(4 * tone(6.0), subtype="FLOAT"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_answers_are_those_of_the_classifier(tmp_path: Path, classifier: Classifier) -> None:
    """Confidences within 1e-5: windows run in other batches, and the mean is summed one by one."""
    paths = sounds_in(tmp_path)
    files, windows = run(classifier, *paths)
    for path, file, own in zip(paths, files, windows, strict=True):
        (result,) = classifier.predict_batch([path.read_bytes()])
        assert isinstance(result, Result)
        np.testing.assert_allclose(file.probs, result.probs, atol=1e-5, err_msg=path.name)
        assert (file.is_silent, file.warnings) == (result.is_silent, result.clip.warnings), path.name
        assert (file.num_windows, file.seconds) == (len(result.spans), result.clip.seconds)
        if len(result.spans) > 1:
            spans = [(window.start, window.end) for window in own]
            np.testing.assert_allclose(spans, result.spans)
            probs = [window.probs for window in own]
            np.testing.assert_allclose(probs, result.window_probs, atol=1e-5)
        else:
            assert own == []


def test_evidence_is_that_of_the_classifier(tmp_path: Path, classifier: Classifier) -> None:
    paths = sounds_in(tmp_path)[:4]
    files, windows = run(classifier, *paths, evidence=True)
    for path, file, own in zip(paths, files, windows, strict=True):
        options = Options.parse({"evidence": True}, classifier.config)
        (result,) = classifier.predict_batch([path.read_bytes()], [options])
        assert isinstance(result, Result)
        label = int(result.probs.argmax())
        assert file.evidence is not None
        assert (file.evidence.label, file.evidence.start) == (label, result.shown.start)
        np.testing.assert_allclose(file.evidence.values, result.shown.outputs["evidence"][label], atol=1e-3)
        assert all(window.evidence and window.evidence.label == window.probs.argmax() for window in own)


def test_errors_are_those_of_the_classifier_and_hurt_no_neighbour(
    tmp_path: Path, classifier: Classifier
) -> None:
    codes = fill_bad(tmp_path / "bad")
    (tmp_path / "good.wav").write_bytes(synthetic.wav("rain"))
    good, folder = tmp_path / "good.wav", tmp_path / "bad"
    paths = [good, *map(Path, codes), folder, Path("/nul\0.wav"), good]
    files, _ = run(classifier, *paths)
    assert [file.path for file in files] == [str(path) for path in paths]
    got = {file.path: file.error[0] for file in files if file.error}
    assert got == codes | {str(folder): "unreadable_file", "/nul\0.wav": "unreadable_file"}
    for path in map(Path, codes):
        if codes[str(path)] != "unreadable_file":
            (error,) = classifier.predict_batch([path.read_bytes()])
            assert isinstance(error, AudioError)
            assert error.code == codes[str(path)]
    np.testing.assert_allclose(files[0].probs, files[-1].probs, atol=1e-5)


def test_what_must_not_be_read_has_a_row(classifier: Classifier) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        fill(folder / "locked", 1)
        fill(folder / "open", 2)
        (folder / "open" / "s0001.wav").chmod(0)
        (folder / "locked").chmod(0)
        before, notes = os.geteuid(), Notes()
        try:
            os.seteuid(65534 if before == 0 else before)  # root may read everything
            found = [Path(path) for path, _ in inputs.find([str(folder)], notes)]
            files, _ = run(classifier, *sorted(found))
        finally:
            os.seteuid(before)
            (folder / "locked").chmod(0o755)
    assert notes.unlisted == [str(folder / "locked")]
    assert {Path(file.path).name: file.error for file in files} == {
        "locked": ("unreadable_file", "Permission denied"),
        "s0000.wav": None,
        "s0001.wav": ("unreadable_file", "Permission denied"),
    }


def test_a_file_that_breaks_late_keeps_the_windows_before(tmp_path: Path, classifier: Classifier) -> None:
    waveform = tone(20.0)
    waveform[-10] = np.nan
    (tmp_path / "x.wav").write_bytes(sound_file(waveform, subtype="FLOAT"))
    (file,), (own,) = run(classifier, tmp_path / "x.wav")
    assert file.error is not None
    assert file.error[0] == "not_finite_audio"
    assert 3 <= len(own) == file.num_windows <= 6


def test_what_is_no_file_is_closed(tmp_path: Path, classifier: Classifier) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files, _ = run(classifier, *[tmp_path] * 9)
    assert {file.error for file in files} == {("unreadable_file", "It is a folder")}
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("overlap", "starts"), [(0.0, [0, 5, 10, 12]), (4.0, list(range(13)))])
def test_windows_overlap_as_wished(
    tmp_path: Path, classifier: Classifier, overlap: float, starts: list[int]
) -> None:
    (tmp_path / "x.wav").write_bytes(sound_file(tone(17.0)))
    _, (own,) = run(classifier, tmp_path / "x.wav", overlap_seconds=overlap)
    assert [window.start for window in own] == starts


# --- what is written ---


def work(folder: Path, *formats: str, **options: Any) -> list[dict[str, Any]]:
    """All that `in/` holds, through the worker as Ray calls it, into `out/`."""
    out = folder / "out"
    settings = replace(SETTINGS, formats=formats or ("parquet",), root=str(folder / "in"), **options)
    with Manifest(out) as manifest:
        for name, suffix in pairs(settings.tables, SUFFIXES):
            (out / place(name, suffix)).mkdir(parents=True, exist_ok=True)
        manifest.add(inputs.find([str(folder / "in")], Notes()), 4)
        worker = Worker(Job(out, served_model_path(STORE), 1, settings))
        outcomes = []
        for chunk in manifest.pending():
            row = {"chunk": [chunk.id], "start": [chunk.start], "length": [chunk.length]}
            outcomes.append(json.loads(worker(row)["outcome"][0]))
    return outcomes


def test_the_tables(tmp_path: Path, classifier: Classifier) -> None:
    (tmp_path / "in").mkdir()
    paths = sounds_in(tmp_path / "in")
    codes = fill_bad(tmp_path / "in" / "bad")
    outcomes = work(tmp_path, top_k=3, evidence=True)
    rows = table(tmp_path / "out")
    assert [row["file"] for row in rows] == sorted([*map(str, paths), *codes])
    assert sum(outcome["files"] for outcome in outcomes) == len(rows)
    assert sum(sum(outcome["errors"].values()) for outcome in outcomes) == len(codes)
    by_name = {Path(str(row["file"])).name: row for row in rows}
    rain: Any = by_name["rain.wav"]
    options = Options.parse({"evidence": True}, classifier.config)
    (result,) = classifier.predict_batch([synthetic.wav("rain")], [options])
    assert isinstance(result, Result)
    assert rain["class"] == "rain" == rain["predictions"][0]["class"]
    assert rain["confidence"] == pytest.approx(result.probs.max(), abs=1e-5)
    assert (len(rain["predictions"]), rain["num_windows"], rain["duration"]) == (3, 1, 5.0)
    assert (rain["is_silent"], rain["error_code"], rain["warnings"]) == (False, None, [])
    assert len(rain["evidence"]["values"]) == np.prod(rain["evidence"]["shape"])
    assert 0 <= rain["evidence"]["peak_hz"] <= 22_050
    assert "truncated" in str(by_name["cut.wav"]["warnings"])
    assert by_name["silence.wav"]["is_silent"] is True
    empty = by_name["empty.wav"]
    assert (empty["error_code"], empty["class"], empty["duration"]) == ("empty_audio", None, None)
    windows = table(tmp_path / "out", "windows")
    long = ("long.flac", "loud.wav", "rate.ogg")
    assert {row["file"] for row in windows} == {str(tmp_path / "in" / name) for name in long}
    assert list(windows[0]) == WINDOWS.names
    assert list(rows[0]) == FILES.names
    assert not list((tmp_path / "out" / "tmp").iterdir())


def test_embeddings_are_those_of_the_classifier_and_can_be_searched(
    tmp_path: Path, classifier: Classifier
) -> None:
    (tmp_path / "in").mkdir()
    paths = sounds_in(tmp_path / "in")
    fill_bad(tmp_path / "in" / "bad")
    work(tmp_path, "csv", embeddings=True)
    folder = tmp_path / "out" / "embeddings"
    found = EmbeddingTable.load(folder)
    assert found.model == classifier.engine.sha256
    assert set(found.files) == set(map(str, paths))
    for path in paths:
        own = [number for number, file in enumerate(found.files) if file == str(path)]
        result = classifier.predict(path)
        assert result.window_embeddings is not None
        np.testing.assert_allclose(found.vectors[own], result.window_embeddings, atol=1e-3)
        np.testing.assert_allclose(found.starts[own], [start for start, _ in result.spans], atol=1e-3)
    run = ["search", str(tmp_path / "in" / "rain.wav"), "--in", str(folder), "--top-k", "3", "--json"]
    printed = run_cli(*run, "--model", str(served_model_path(STORE)))
    assert printed.returncode == 0, printed.stderr
    nearest = [json.loads(line) for line in printed.stdout.splitlines()]
    similarity = {Path(row["file"]).name: row["similarity"] for row in nearest}
    assert similarity["rain.wav"] == pytest.approx(1.0, abs=1e-3)


def test_a_lost_part_of_the_embeddings_is_made_again(tmp_path: Path) -> None:
    fill(tmp_path / "in", 10)
    work(tmp_path, embeddings=True)
    parts = sorted((tmp_path / "out" / "embeddings").iterdir())
    assert len(parts) == 3
    with Manifest(tmp_path / "out") as manifest:
        for chunk in manifest.pending():
            manifest.record(chunk.id, Outcome(chunk.files, chunk.files))
        assert manifest.clean_up(["parquet"], EMBEDDINGS) == ([], [])
        parts[1].unlink()
        assert [chunk.id for chunk in manifest.clean_up(["parquet"], EMBEDDINGS)[1]] == [1]


def test_events_are_those_of_the_classifier(tmp_path: Path, classifier: Classifier) -> None:
    """Those of `/predict`, file by file, with the times of day that the names of the files tell."""
    (tmp_path / "in").mkdir()
    silence = np.zeros(3 * 44_100, np.float32)
    sound = np.concatenate([silence, synthetic.clock_tick(), silence, synthetic.clock_alarm(), silence])
    fill_bad(tmp_path / "in" / "bad")
    for name in ("20261125_063000.wav", "plain.wav", "silence.wav"):
        data = sound_file(silence if name == "silence.wav" else sound)
        (tmp_path / "in" / name).write_bytes(data)
    outcomes = work(tmp_path, "parquet", "csv", detections=True)
    rows = table(tmp_path / "out", "detections")
    result = classifier.predict(sound_file(sound), Options(detections=True))
    expected = [one.to_dict() for one in result.detections]
    assert {"clock_tick", "clock_alarm"} <= {one["class"] for one in expected}
    for name in ("20261125_063000.wav", "plain.wav"):
        own = [row for row in rows if row["file"] == str(tmp_path / "in" / name)]
        assert [row["class"] for row in own] == [one["class"] for one in expected]
        for row, one in zip(own, expected, strict=True):
            assert (row["start"], row["end"]) == (one["start"], one["end"])
            assert row["peak_confidence"] == pytest.approx(one["peak_confidence"], abs=1e-3)
    assert len(rows) == 2 * len(expected) == sum(outcome["detections"] for outcome in outcomes)
    dated: Any = rows[0]
    began = datetime(2026, 11, 25, 6, 30, tzinfo=UTC) + timedelta(seconds=dated["start"])
    assert dated["start_time"] == began
    assert rows[-1]["start_time"] is None
    join_csv(tmp_path / "out", "detections", top_k=5)
    with (tmp_path / "out" / "detections.csv").open(newline="", encoding="utf-8") as text:
        lines = sorted(csv.DictReader(text), key=lambda line: (line["file"], float(line["start"])))
    assert list(lines[0]) == list(rows[0])
    assert lines[0]["start_time"] == began.isoformat(timespec="milliseconds")
    assert [float(line["start"]) for line in lines] == [row["start"] for row in rows]


def test_csv_has_one_line_of_header_and_a_column_for_each_class(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / 'line\nbreak, "quoted".wav').write_bytes(synthetic.wav("rain"))
    with open(os.fsencode(tmp_path) + b"/in/caf\xe9.wav", "wb") as file:
        file.write(b"")
    work(tmp_path, "csv", top_k=2)
    (path,) = (tmp_path / "out" / "manifest" / "csv" / "files").glob("*.csv")
    with path.open(newline="", encoding="utf-8") as text:
        bad, rain = csv.DictReader(text)
    assert bad["file"] == f"{tmp_path}/in/caf\\xe9.wav"
    assert bad["error_code"] == "empty_audio"
    assert rain["file"] == f'{tmp_path}/in/line\nbreak, "quoted".wav'
    assert rain["class"] == "rain"
    assert float(rain["confidence"]) > float(rain["confidence_2"]) > 0


def test_audacity_gets_a_track_for_every_sound_in_a_mirrored_tree(tmp_path: Path) -> None:
    (tmp_path / "in" / "site 1").mkdir(parents=True)
    sounds_in(tmp_path / "in" / "site 1")
    (tmp_path / "in" / "bad.wav").write_bytes(b"")
    work(tmp_path, "parquet", "audacity", min_confidence=0.3)
    tracks = {path.name: path.read_text() for path in (tmp_path / "out" / "audacity" / "site 1").iterdir()}
    assert set(tracks) == {path.name + ".txt" for path in (tmp_path / "in" / "site 1").iterdir()}
    assert tracks["rain.wav.txt"].startswith("0.000\t5.000\train 0.")
    windows = [row for row in table(tmp_path / "out", "windows") if "long" in str(row["file"])]
    assert tracks["long.flac.txt"].count("\n") == len(windows) > 0
    assert all(row["confidence"] >= 0.3 for row in windows)  # type: ignore[operator]
    assert not (tmp_path / "out" / "audacity" / "bad.wav.txt").exists()


def test_a_track_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "in", 2)
    (tmp_path / "out" / "manifest").mkdir(parents=True)
    (tmp_path / "out" / "audacity" / "s0000.wav.txt").mkdir(parents=True)
    work(tmp_path, "parquet", "audacity")
    rows = table(tmp_path / "out")
    assert "no label track" in str(rows[0]["warnings"])
    assert (rows[0]["error_code"], rows[1]["warnings"]) == (None, [])
    assert (tmp_path / "out" / "audacity" / "s0001.wav.txt").is_file()


def test_what_an_earlier_attempt_wrote_is_gone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sound = tmp_path / "in" / "x.wav"
    sound.write_bytes(sound_file(tone(12.0)))
    formats = ("parquet", "csv", "audacity")
    (first,) = work(tmp_path, *formats)
    assert first["window_rows"] == len(table(tmp_path / "out", "windows")) == 4
    pq.read_table(tmp_path / "out" / "files")  # as pandas does: nothing else is in that folder
    sound.write_bytes(b"")
    (second,) = work(tmp_path, *formats)
    assert (second["errors"], second["window_rows"]) == ({"empty_audio": 1}, 0)
    left = {path.name for path in (tmp_path / "out").rglob("part-*")}
    assert left == {"part-0000000.parquet", "part-0000000.csv"}
    assert not list((tmp_path / "out" / "windows").iterdir())
    assert not (tmp_path / "out" / "audacity" / "x.wav.txt").exists()


def test_a_machine_without_the_sounds_takes_no_part(tmp_path: Path) -> None:
    with Manifest(tmp_path), pytest.raises(FileNotFoundError, match="nowhere is not there on"):
        Worker(
            Job(tmp_path, served_model_path(STORE), 1, SETTINGS, (str(tmp_path), str(tmp_path / "nowhere")))
        )


def test_a_file_at_which_two_workers_died_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path / "in", 3)
    for name, position in (("0-a", "        1"), ("0-b", "        1"), ("0-c", "        2"), ("0-d", "")):
        (tmp_path / "out" / "tmp" / name).mkdir(parents=True)
        (tmp_path / "out" / "tmp" / name / "at").write_text(position)
    (tmp_path / "out" / "manifest").mkdir()
    (outcome,) = work(tmp_path)
    assert outcome["errors"] == {"worker_died": 1}
    assert [row["error_code"] for row in table(tmp_path / "out")] == [None, "worker_died", None]
