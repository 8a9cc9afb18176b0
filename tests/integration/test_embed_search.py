"""`audiocnn embed` and `audiocnn search`: a sound finds its like."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from audiocnn.audio import synthetic
from audiocnn.embedding_table import EmbeddingTable
from audiocnn.inputs import InputError
from audiocnn.search import cosine_similarities, nearest
from tests.helpers.command_line import run as run_cli
from tests.helpers.paths import STORE
from tests.helpers.sounds import sound_file

MODEL = ("--model", str(STORE / "audiocnn.onnx"), "--threads", "1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic sounds; the siren is 10 s long."""
    folder = tmp_path_factory.mktemp("library")
    for name, make in synthetic.SOUNDS.items():
        waveform = make()
        (folder / f"{name}.wav").write_bytes(
            sound_file(np.concatenate([waveform, waveform]) if name == "siren" else waveform)
        )
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_quieter_copy_finds_its_original(library: Path, tmp_path: Path, suffix: str) -> None:
    table = tmp_path / f"sounds{suffix}"
    run = run_cli("embed", str(library), "--out", str(table), *MODEL)
    assert run.returncode == 0, run.stderr
    assert "7 windows of 5 files, 256 numbers each" in run.stdout
    query = tmp_path / "query.wav"
    query.write_bytes(sound_file(synthetic.SOUNDS["siren"]()[44_100:] * 0.5))
    run = run_cli("search", str(query), "--in", str(table), "--top-k", "3", "--json", *MODEL)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert Path(rows[0]["file"]).name == "siren.wav"
    assert len(rows) == len({row["file"] for row in rows}) == 3
    assert rows[0]["similarity"] > rows[1]["similarity"] + 0.1
    read = EmbeddingTable.load(table)
    assert read.vectors.shape == (7, 256)
    assert sorted(zip(read.starts, read.ends, strict=True))[-1] == (5.0, 10.0)


def test_a_table_of_another_model_is_refused(library: Path, tmp_path: Path) -> None:
    table = tmp_path / "sounds.npz"
    assert run_cli("embed", str(library / "rain.wav"), "--out", str(table), *MODEL).returncode == 0
    other = ("--model", str(STORE / "audiocnn-waveform.onnx"))
    run = run_cli("search", str(library / "rain.wav"), "--in", str(table), *other)
    assert run.returncode == 2
    assert "another model" in run.stderr
    (tmp_path / "no.parquet").write_text("text")
    run = run_cli("search", str(library / "rain.wav"), "--in", str(tmp_path / "no.parquet"), *MODEL)
    assert run.returncode == 2
    assert "no table of `audiocnn embed`" in run.stderr


def test_files_with_errors_are_named_and_the_rest_is_written(library: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    files = [str(library / "rain.wav"), str(tmp_path / "bad.wav")]
    run = run_cli("embed", *files, "--out", str(tmp_path / "x.npz"), *MODEL)
    assert run.returncode == 1
    assert "bad.wav" in run.stderr
    assert EmbeddingTable.load(tmp_path / "x.npz").files == files[:1]
    assert run_cli("embed", files[1], "--out", str(tmp_path / "y.npz"), *MODEL).returncode == 2
    assert "must end in" in run_cli("embed", *files, "--out", "x.txt", *MODEL).stderr


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 cut off", b"\x93NUMPY"])
def test_a_missing_or_damaged_table_is_an_input_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "table.npz").write_bytes(content)
    with pytest.raises(InputError):
        EmbeddingTable.load(tmp_path / "table.npz")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_recording_may_be_long_and_its_name_no_text(tmp_path: Path, library: Path, suffix: str) -> None:
    path = tmp_path / os.fsdecode(b"\xff.wav")
    path.write_bytes(sound_file(np.zeros(8_000 * 605, np.float32), sample_rate=8_000))
    table = tmp_path / f"table{suffix}"
    done = run_cli("embed", str(path), "--out", str(table), *MODEL)
    assert done.returncode == 0, done.stderr
    assert EmbeddingTable.load(table).files[0] == f"{tmp_path}/\\xff.wav"


def test_a_folder_that_cannot_be_written_is_said_before_the_work(library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("embed", str(library), "--out", str(tmp_path / "file" / "x.npz"), *MODEL)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_similarity_leaves_out_what_all_sounds_have_in_common() -> None:
    common = np.full(4, 100.0, np.float32)
    vectors = common + np.eye(4, dtype=np.float32)[:3]
    similarity = cosine_similarities(common + np.array([0.9, 0.1, 0, 0], np.float32), vectors)
    assert similarity.argmax() == 0
    assert similarity[0] > 0.5 > similarity[1]
    table = EmbeddingTable(["a", "a", "b"], np.zeros(3), np.ones(3), vectors, "m")
    assert [row["file"] for row in nearest(vectors[0], table, 5)] == ["a", "b"]
