"""Tables as spreadsheets and data frames save them, for training and for the batch job."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from audiocnn.inputs import InputError, Notes, find

ROWS = [("filename", "fold", "label"), ("a.wav", "1", "café"), ("b.wav", "2", "dog, barking")]
QUOTED = [[f'"{value}"' for value in row] for row in ROWS]


def lines(separator: str, end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in QUOTED)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("head", ["", "sep={}\n", "\n \n"])
def test_every_way_of_saving_is_read(
    tmp_path: Path, separator: str, end: str, encoding: str, head: str
) -> None:
    table = tmp_path / "sounds.csv"
    table.write_bytes((head.format(separator) + lines(separator, end)).encode(encoding))
    dataset = read_dataset(table)
    assert [(clip.path.name, clip.fold, clip.label) for clip in dataset.clips] == [
        ("a.wav", 1, "café"),
        ("b.wav", 2, "dog, barking"),
    ]
    found = [Path(path).name for path, _ in find([str(table)], Notes())]
    assert found == ["a.wav", "b.wav"]


def read(tmp_path: Path, content: str) -> list[tuple[str, int, str]]:
    table = tmp_path / "sounds.csv"
    table.write_text(content, encoding="utf-8")
    return [(clip.path.name, clip.fold, clip.label) for clip in read_dataset(table).clips]


def test_spaces_case_of_the_header_empty_rows_and_floats(tmp_path: Path) -> None:
    content = " Filename ,FOLD, Label,notes\na.wav , 1.0,siren ,,\n,,\n\n b.wav,2., siren\n"
    assert read(tmp_path, content) == [("a.wav", 1, "siren"), ("b.wav", 2, "siren")]


def test_a_folder_may_have_a_table_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "Sounds.TSV").write_text("path\tfold\tlabel\nx/a.wav\t1\tdog\n")
    (clip,) = read_dataset(tmp_path).clips
    assert (clip.path, clip.label) == (tmp_path / "x" / "a.wav", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,fold,label\na.wav,1,siren\nb.wav,1,Siren\n", "'Siren', 'siren'"),
        ("filename,fold,label\na.wav,1,dog\n\nb.wav,1,rain, heavy\n", "line 4: 4 values.*quotes.*comma"),
        ("filename,fold,label\n\n\na.wav,one,dog\n", "line 4: fold is 'one'"),
        ("filename,fold,label\na.wav,1.5,dog\n", "line 2: fold is '1.5'"),
        ("filename,fold,label\n,,\na.wav,1\n", "line 3: label is ''"),
        ("filename|fold|label\na.wav|1|dog\n", r"lacks the column.*'filename\|fold\|label'"),
        ("name;fold;label\na.wav;1;dog\n", "'name', 'fold', 'label'.*semicolon"),
        ('filename,fold,label\na.wav,1,"dog\n', "line 2: unexpected end"),
        ("\n\n", "is empty"),
        ("filename,fold,label\n,,\n", "has no rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, content)


def test_a_table_of_the_batch_job_says_the_line_too(tmp_path: Path) -> None:
    table = tmp_path / "list.tsv"
    for content, message in (
        ("path\tn\na.wav\t1\n\nb.wav\t2\t3\n", "line 4: 3 values"),
        ("name\tn\na.wav\t1\n", "'name', 'n', with the tab"),
    ):
        table.write_text(content)
        with pytest.raises(InputError, match=message):
            list(find([str(table)], Notes()))


def test_a_name_that_is_no_text_still_finds_its_file(tmp_path: Path) -> None:
    windows = "é.wav".encode("cp1252")
    (tmp_path / "list.csv").write_bytes(b"path\n" + windows + b"\n")
    for name in (windows, "é.wav".encode()):
        file = Path(str(tmp_path)) / name.decode("utf-8", "surrogateescape")
        file.write_bytes(b"x")
        ((path, size),) = find([str(tmp_path / "list.csv")], Notes())
        assert (path, size) == (str(file), 1)
        file.unlink()
