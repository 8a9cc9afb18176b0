"""The batch job without Ray and without a model: what is listed, what is remembered, what is refused."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiocnn import audio, cli, inputs
from audiocnn.audio import synthetic
from audiocnn.batch.audacity import label_name
from audiocnn.batch.manifest import Manifest, ResumeError, archive_previous
from audiocnn.batch.state import JobSettings, Outcome, read_paths
from audiocnn.files import as_text
from audiocnn.inputs import InputError, Notes
from audiocnn.model.loading import served_model_path
from tests.helpers.batch import TINY, fill
from tests.helpers.paths import STORE

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


# --- what is read and written ---


@pytest.mark.parametrize("where", [0, 4, 12, 40, 44, 100_000])
def test_a_disk_that_fails_is_no_bad_file(where: int) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= where:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        list(audio.stream(Failing(synthetic.wav("rain")), sample_rate=44_100, warnings=[]))


def test_names_of_tracks() -> None:
    assert label_name("/in/a/b.wav", "/in") == "a/b.wav.txt"
    assert label_name("/elsewhere/b.wav", "/in") == "elsewhere/b.wav.txt"
    assert len(label_name("/in/" + "ж" * 125 + ".wav", "/in").encode()) <= 255
    assert as_text("/in/caf\udce9 ж\n.wav") == "/in/caf\\xe9 ж\n.wav"


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
