"""The batch job without Ray: what is listed, what is remembered, what is written."""

from __future__ import annotations

import csv
import io
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

from audiocnn import audio, cli, inputs
from audiocnn.audio import synthetic
from audiocnn.batch.aggregate import FileResult, WindowResult, classify_files
from audiocnn.batch.audacity import label_name
from audiocnn.batch.manifest import Manifest, ResumeError, archive_previous
from audiocnn.batch.state import SUFFIXES, JobSettings, Outcome, pairs, place, read_paths
from audiocnn.batch.summary import join_csv
from audiocnn.batch.worker import Job, Worker
from audiocnn.batch.writers import FILES, WINDOWS, shown
from audiocnn.classifier import Classifier
from audiocnn.embedding_table import EmbeddingTable
from audiocnn.errors import AudioError
from audiocnn.inputs import InputError, Notes
from audiocnn.model.loading import served_model_path
from audiocnn.options import Options
from audiocnn.results import Result
from tests.helpers.batch import TINY, fill, fill_bad, table
from tests.helpers.command_line import run as run_cli
from tests.helpers.paths import STORE
from tests.helpers.sounds import sound_file, tone

EMBEDDINGS = ("files", "windows", "embeddings")
SETTINGS = JobSettings("0" * 64, 5, 0.0, None, evidence=False, formats=("parquet",), root="/")


def find(*texts: object, limit: int | None = None) -> tuple[list[str], Notes]:
    notes = Notes()
    return [path for path, _ in inputs.find([str(text) for text in texts], notes, limit=limit)], notes


# --- what is listed ---


def test_folders_are_searched_for_sounds(tmp_path: Path) -> None:
    names = ["a.wav", "B.FLAC", "deep/er/c.mp3", "deep.wav/d.ogg", "line\nbreak.wav", "ключ🔑.wav"]
    for name in [*names, "notes.txt", ".hidden.wav", ".trash/e.wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(TINY)
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb") as file:
        file.write(TINY)
    found, notes = find(tmp_path)
    assert sorted(found) == sorted([*(str(tmp_path / name) for name in names), f"{tmp_path}/caf\udce9.wav"])
    assert (notes.hidden, notes.others) == (2, 1)
    assert "no sounds by their name" in " ".join(notes.lines())
    assert len(find(tmp_path, limit=3)[0]) == 3


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "in" / "deep", 1)
    fill(tmp_path / "elsewhere", 1)
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self.wav").symlink_to(tmp_path / "in" / "self.wav")
    names = ("deep/s0000.wav", "other/s0000.wav", "self.wav")
    expected = sorted(str(tmp_path / "in" / name) for name in names)
    found, notes = find(tmp_path / "in")
    assert sorted(found) == expected
    assert notes.loops == [str(tmp_path / "in" / "deep" / "up")]
    found, notes = find(f"{tmp_path}/in/**/*.wav")
    assert sorted(found) == expected
    assert notes.loops


def test_a_link_above_the_input_is_no_circle(tmp_path: Path) -> None:
    fill(tmp_path / "b", 1)
    fill(tmp_path / "elsewhere", 1)
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "b" / "more").symlink_to(tmp_path / "elsewhere")
    for text in ("here/b", "here/b/**/*.wav", "here/b/**"):
        found, notes = find(tmp_path / text)
        assert sorted(found) == [f"{tmp_path}/here/b/{name}s0000.wav" for name in ("more/", "")]
        assert not notes.loops


def test_what_is_in_folders_below_stars_is_found(tmp_path: Path) -> None:
    fill(tmp_path / "rec" / "a" / "night" / "deep", 1)
    fill(tmp_path / "rec" / "day", 1)
    night, day = (f"{tmp_path}/rec/{name}/s0000.wav" for name in ("a/night/deep", "day"))
    assert set(find(f"{tmp_path}/rec/**/night")[0]) == {night}
    assert set(find(f"{tmp_path}/rec**")[0]) == {night, day}
    assert find(f"{tmp_path}/rec/**/*")[0].count(night) == 1


def test_globs_and_tables_name_files(tmp_path: Path) -> None:
    fill(tmp_path / "x", 3)
    fill(tmp_path / "y", 2)
    assert len(find(f"{tmp_path}/?/s0001.wav")[0]) == 2
    assert len(find(f"{tmp_path}/*")[0]) == 5  # folders that match are searched
    assert len(find(f"{tmp_path}/**")[0]) == 5
    list_file = tmp_path / "list.csv"
    for column in inputs.COLUMNS:
        text = f"id,{column}\n1,x/s0000.wav\n2,x/missing.wav\n3,{tmp_path}/y/s0001.wav\n"
        list_file.write_text(text, encoding="utf-8-sig")
        names = ["x/s0000.wav", "x/missing.wav", "y/s0001.wav"]
        assert find(list_file)[0] == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\nx.wav\n", "none of the columns"),
        ("path,n\n,1\n", "line 2: path is empty"),
        ('path\n"x.wav\ny.wav\n', "unexpected end"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        find(tmp_path / "list.csv")


def test_what_is_not_there_is_said_before_anything_is_done(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(InputError, match="there is no"):
        inputs.find([str(tmp_path), str(tmp_path / "nowhere")], Notes())
    with pytest.raises(InputError, match="nothing matches"):
        find(tmp_path / "*.flac")


def test_the_root_is_what_all_inputs_are_in(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    fill(tmp_path / "b", 1)
    assert inputs.root_of([str(tmp_path / "a")]) == str(tmp_path / "a")
    assert inputs.root_of([str(tmp_path / "a"), str(tmp_path / "b" / "s0000.wav")]) == str(tmp_path)
    assert inputs.root_of([f"{tmp_path}/a/*/x?.wav"]) == str(tmp_path / "a")


# --- what is remembered ---


def listing(count: int, size: int = 1000) -> list[tuple[str, int]]:
    return [(f"/in/{number:05}.wav", size) for number in range(count)]


def test_every_file_is_in_one_chunk_whatever_is_given_twice(tmp_path: Path) -> None:
    odd = [("/in/line\nbreak.wav", 1), ("/in/caf\udce9.wav", 1), ("/in/🔑.wav", 1)]
    with Manifest(tmp_path / "out") as manifest:
        listed = manifest.add([*odd, *listing(200), *listing(50)], 64)
        assert (listed.new, listed.known, listed.duplicates, listed.gone) == (203, 0, 50, 0)
        chunks = manifest.pending()
        assert [chunk.files for chunk in chunks] == [64, 64, 64, 11]
        paths = [p for c in chunks for p in read_paths(tmp_path / "out", c.start, c.length)]
    assert sorted(paths) == sorted(path for path, _ in [*odd, *listing(200)])


def test_chunks_of_long_recordings_have_fewer_files(tmp_path: Path) -> None:
    with Manifest(tmp_path / "out") as manifest:
        manifest.add([*listing(4, 30 << 20), ("/in/day.wav", 10 << 30)], 64)
        assert [(chunk.files, chunk.bytes >> 20) for chunk in manifest.pending()] == [
            (2, 60),
            (2, 60),
            (1, 10240),
        ]


def test_a_listing_that_fails_changes_nothing(tmp_path: Path) -> None:
    def breaks() -> Any:
        yield from listing(500)
        raise InputError("the table ends here")

    with Manifest(tmp_path / "out") as manifest:
        with pytest.raises(InputError):
            manifest.add(breaks(), 64)
        assert (manifest.count(), manifest.pending()) == (0, [])
        assert manifest.add(listing(3), 64).new == 3


def test_new_files_become_new_chunks_and_old_ones_stay(tmp_path: Path) -> None:
    with Manifest(tmp_path / "out") as manifest:
        manifest.add(listing(100), 64)
        manifest.record(0, Outcome(64))
        listed = manifest.add([*listing(70), ("/in/00000b.wav", 1)], 64)
        assert (listed.new, listed.known, listed.duplicates, listed.gone) == (1, 70, 0, 30)
        assert [(chunk.id, chunk.files) for chunk in manifest.pending()] == [(1, 36), (2, 1)]


def test_what_was_in_work_and_what_was_lost_is_done_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "manifest").mkdir(parents=True)
    (out / "files").mkdir()
    with Manifest(out) as manifest:
        manifest.add(listing(40), 10)
        for number in (0, 1):
            manifest.record(number, Outcome(10, 10, 50.0, {"empty_audio": number} if number else {}))
        (out / "files" / "part-0000000.parquet").touch()  # of 1 it is gone
        (out / "files" / "part-0000002.parquet").touch()  # written, not recorded
        (out / "tmp" / "3-abc").mkdir(parents=True)  # begun
        in_work, lost = manifest.clean_up(["parquet"])
        assert ([c.id for c in in_work], [c.id for c in lost]) == ([2, 3], [1])
        assert [chunk.id for chunk in manifest.pending()] == [1, 2, 3]
        assert manifest.total() == Outcome(10, 10, 50.0)
        assert not (out / "tmp").exists()


def test_every_part_that_is_lost_is_made_again(tmp_path: Path) -> None:
    kinds = (
        "files/{}.parquet",
        "windows/{}.parquet",
        "manifest/csv/files/{}.csv",
        "manifest/csv/windows/{}.csv",
    )
    names = [kind.format("part-0000000") for kind in kinds]
    with Manifest(tmp_path) as manifest:
        manifest.add(listing(10), 10)
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).touch()
        for name in names:
            manifest.record(0, Outcome(10, 30, 500.0, window_rows=30))
            assert manifest.clean_up(["parquet", "csv"]) == ([], [])
            (tmp_path / name).unlink()
            assert [chunk.id for chunk in manifest.clean_up(["parquet", "csv"])[1]] == [0]
            (tmp_path / name).touch()
        manifest.record(0, Outcome(10, 10, 50.0, detections=3))
        events = ("files", "windows", "detections")
        assert [chunk.id for chunk in manifest.clean_up(["parquet", "csv"], events)[1]] == [0]
        manifest.record(0, Outcome(10, 10, 50.0))  # short files have no rows in `windows`
        (tmp_path / names[1]).unlink()
        (tmp_path / names[3]).unlink()
        assert manifest.clean_up(["parquet", "csv"]) == ([], [])


def test_files_that_could_not_be_read_can_be_tried_again(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        manifest.add(listing(30), 10)
        for number, code in enumerate(["empty_audio", "unreadable_file"]):
            manifest.record(number, Outcome(10, 9, 50.0, {code: 1}))
        assert [chunk.id for chunk in manifest.forget("unreadable_file")] == [1]
        assert [chunk.id for chunk in manifest.pending()] == [1, 2]


def test_a_run_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Manifest(out) as manifest:
        assert manifest.load_or_create(replace(SETTINGS, root="/nothing/found/there")) != (SETTINGS, False)
        assert manifest.load_or_create(SETTINGS) == (SETTINGS, False)
        manifest.add(listing(1), 64)
    with Manifest(out) as manifest, pytest.raises(ResumeError, match="detections was False, is True"):
        manifest.load_or_create(replace(SETTINGS, detections=True))
    with Manifest(out) as manifest:
        assert manifest.load_or_create(replace(SETTINGS, root="/elsewhere")) == (SETTINGS, True)
        other = replace(SETTINGS, top_k=3, formats=("csv", "audacity"), model="1" * 64)
        with pytest.raises(ResumeError) as caught:
            manifest.load_or_create(other)
    for words in ("top-k was 5, is 3", "formats was parquet, is csv,audacity", "model was 000", "--fresh"):
        assert words in str(caught.value)


def test_one_run_at_a_time_and_only_in_its_own_folder(tmp_path: Path) -> None:
    with Manifest(tmp_path / "out"), pytest.raises(ResumeError, match="another run"):
        Manifest(tmp_path / "out")
    fill(tmp_path / "sounds", 1)
    with pytest.raises(ResumeError, match="not empty"):
        Manifest(tmp_path / "sounds")
    with pytest.raises(ResumeError, match="not empty"):
        archive_previous(tmp_path / "sounds")
    with Manifest(tmp_path / "out"), pytest.raises(ResumeError, match="another run"):
        archive_previous(tmp_path / "out")
    aside = archive_previous(tmp_path / "out")
    assert aside is not None
    assert (aside / "manifest" / "manifest.sqlite").is_file()
    assert not (tmp_path / "out").exists()


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.sqlite", _flip),
        ("manifest.sqlite", lambda path: path.write_bytes(b"no database" * 1000)),
        ("manifest.sqlite", Path.unlink),
        ("chunks.jsonl", lambda path: os.truncate(path, 10)),
    ],
    ids=["zeros", "no database", "gone", "short list"],
)
def test_a_damaged_manifest_is_said_and_begun_anew_with_fresh(
    tmp_path: Path, name: str, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 500)
    out = tmp_path / "out"
    with Manifest(out) as manifest:
        manifest.load_or_create(SETTINGS)
        manifest.add(inputs.find([str(tmp_path / "in")], Notes()), 4)
        manifest.record(0, Outcome(files=4))
    (out / "files").mkdir()
    (out / "files" / "part-0000000.parquet").write_bytes(b"rows")
    damage(out / "manifest" / name)
    arguments = [str(tmp_path / "in"), "--out", str(out), "--model", str(served_model_path(STORE))]
    assert cli.main(["batch", *arguments]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "--fresh" in said
    assert "the same command resumes" not in said
    assert (out / "files" / "part-0000000.parquet").read_bytes() == b"rows"
    aside = archive_previous(out)  # what --fresh does first
    assert aside is not None
    assert (aside / "files" / "part-0000000.parquet").read_bytes() == b"rows"
    with Manifest(out) as manifest:
        assert manifest.count() == 0


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
        before = os.geteuid()
        try:
            os.seteuid(65534 if before == 0 else before)  # root may read everything
            found, notes = find(folder)
            files, _ = run(classifier, *map(Path, sorted(found)))
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


@pytest.mark.parametrize("where", [0, 4, 12, 40, 44, 100_000])
def test_a_disk_that_fails_is_no_bad_file(where: int) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= where:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        list(audio.stream(Failing(synthetic.wav("rain")), sample_rate=44_100, warnings=[]))


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


def work(folder: Path, *formats: str, **wishes: Any) -> list[dict[str, Any]]:
    """All that `in/` holds, through the worker as Ray calls it, into `out/`."""
    out = folder / "out"
    settings = replace(SETTINGS, formats=formats or ("parquet",), root=str(folder / "in"), **wishes)
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


def test_names_of_tracks() -> None:
    assert label_name("/in/a/b.wav", "/in") == "a/b.wav.txt"
    assert label_name("/elsewhere/b.wav", "/in") == "elsewhere/b.wav.txt"
    assert len(label_name("/in/" + "ж" * 125 + ".wav", "/in").encode()) <= 255
    assert shown("/in/caf\udce9 ж\n.wav") == "/in/caf\\xe9 ж\n.wav"


def test_a_file_at_which_two_workers_died_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path / "in", 3)
    for name, position in (("0-a", "        1"), ("0-b", "        1"), ("0-c", "        2"), ("0-d", "")):
        (tmp_path / "out" / "tmp" / name).mkdir(parents=True)
        (tmp_path / "out" / "tmp" / name / "at").write_text(position)
    (tmp_path / "out" / "manifest").mkdir()
    (outcome,) = work(tmp_path)
    assert outcome["errors"] == {"worker_died": 1}
    assert [row["error_code"] for row in table(tmp_path / "out")] == [None, "worker_died", None]


# --- the command ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k", "0"], "greater than or equal to 1"),
        (["--min-confidence", "2"], "less than or equal to 1"),
        (["--format", "xml"], "none of parquet, csv, audacity"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert cli.main(["batch", str(tmp_path), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overlap", "5"], "it must be from 0 to 4.9 seconds"),
        (["--model", "nowhere.onnx"], "there is no model at nowhere.onnx"),
        ([], "no sound files in"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (tmp_path / "in").mkdir()
    assert cli.main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_fresh_touches_no_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "recordings", 1)
    monkeypatch.chdir(tmp_path / "recordings")
    model = str(served_model_path(STORE))
    assert cli.main(["batch", ".", "--out", ".", "--fresh", "--model", model]) == 2
    assert "not from this command" in capsys.readouterr().err
    with Manifest(tmp_path / "out"):
        assert cli.main(["batch", ".", "--out", "../out", "--fresh", "--model", model]) == 2
    assert "another run" in capsys.readouterr().err
    assert cli.main(["batch", "nowhere", "--out", "../out", "--fresh", "--model", model]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"recordings", "out"}
