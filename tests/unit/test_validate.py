"""Validation of a dataset before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import DatasetError
from training.validate import check, class_counts, print_class_counts


def dataset(folder: Path, *rows: str, header: str = "filename,fold,label", exist: bool = True) -> Dataset:
    """A user's own CSV; its files are empty, because nothing here decodes them."""
    (folder / "own.csv").write_text("\n".join([header, *rows]) + "\n")
    own = read_dataset(folder)
    if exist:
        for clip in own.clips:
            clip.path.touch()
    return own


def problem(own: Dataset, *folds: int) -> str:
    with pytest.raises(DatasetError) as error:
        check(own, folds)
    return str(error.value)


def test_the_real_clips_pass(esc50: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    check(esc50, [1, 2, 3])
    # The only two recordings of folds 1-4 that are in two folds, each with two classes.
    assert "different folds: 131943 in folds 2, 3; 134049 in folds 2, 3" in capsys.readouterr().out
    clips = esc50.folds([1, 2, 3])
    assert class_counts(clips) == dict.fromkeys(sorted(esc50.class_names), 24)
    print_class_counts(clips)
    assert capsys.readouterr().out == "50 classes, 24 clips each\n"


def test_missing_files_are_listed_and_those_of_other_folds_are_not_needed(tmp_path: Path) -> None:
    own = dataset(tmp_path, *(f"{n}.wav,{1 + n // 25},{'ab'[n % 2]}" for n in range(30)), exist=False)
    message = problem(own, 1)
    assert "25 missing" in message
    assert message.count(".wav") == 20
    assert "and 5 more" in message
    for number in range(25):
        (tmp_path / f"{number}.wav").touch()
    check(own, [1])
    assert problem(own, 1, 2).count(".wav") == 5


def test_a_recording_in_two_folds_is_refused_wherever_it_is(tmp_path: Path) -> None:
    rows = ["a1.wav,1,a,tape", "a2.wav,2,a,tape", "a3.wav,7,other,tape", "b.wav,1,b,", "c.wav,2,b,"]
    own = dataset(tmp_path, *rows, header="filename,fold,label,source")
    message = problem(own, 1)
    assert "tape in folds 1, 2, 7" in message
    assert "1 the same recording" in message
    check(dataset(tmp_path, *rows[::3], header="filename,fold,label,source"), [1])


def test_a_csv_without_sources_takes_every_file_as_a_recording(tmp_path: Path) -> None:
    own = dataset(tmp_path, "a.wav,1,a", "b.wav,1,a")
    assert [clip.source for clip in own.clips] == ["a.wav", "b.wav"]
    sourced = dataset(tmp_path, "a.wav,1,a,tape", "b.wav,1,a,", header="filename,fold,label,source")
    assert [clip.source for clip in sourced.clips] == ["tape", "b.wav"]


def test_leaks_are_found_in_the_layouts_of_esc50_and_urbansound8k(tmp_path: Path) -> None:
    for folder, table, text in [
        (
            tmp_path / "esc",
            "meta/esc50.csv",
            "filename,fold,target,category,src_file\n1-9.wav,1,0,dog,9\n2-9.wav,2,0,dog,9\n",
        ),
        (
            tmp_path / "urban",
            "metadata/UrbanSound8K.csv",
            "slice_file_name,fsID,fold,classID,class\n9-1.wav,9,1,0,dog\n9-2.wav,9,2,0,dog\n",
        ),
    ]:
        (folder / table).parent.mkdir(parents=True)
        (folder / table).write_text(text)
        assert "9 (dog) in folds 1, 2" in problem(read_dataset(folder), 1)


def test_a_file_listed_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    own = dataset(tmp_path, "a.wav,1,a", "b.wav,1,a", "sub/../a.wav,1,a")
    message = problem(own, 1)
    assert "a.wav (2 times)" in message
    assert "b.wav" not in message
    assert "same recording" not in message


def test_a_class_without_training_clips_is_named(tmp_path: Path) -> None:
    own = dataset(tmp_path, "a.wav,1,bell", "b.wav,2,bell", "c.wav,2,horn")
    assert "classes without a clip in fold 1: train on more folds, or remove the class:\n  horn" in problem(
        own, 1
    )
    check(own, [1, 2])
    check(own, [2])


def test_one_class_is_refused(tmp_path: Path) -> None:
    own = dataset(tmp_path, "a.wav,1,bell", "b.wav,2,bell")
    assert "1 class, and a model needs two: add recordings of other sounds:\n  bell" in problem(own, 1)


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    own = dataset(tmp_path, "a.wav,1,bell", "a.wav,2,bell", "c.wav,2,horn", exist=False)
    message = problem(own, 1)
    for part in ("own cannot be trained on", "missing", "more than once", "a.wav in folds 1, 2", "horn"):
        assert part in message


def test_the_rarest_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["often"] * 9 + ["rare"] * 2 + ["rarer"]
    own = dataset(tmp_path, *(f"{number}.wav,1,{label}" for number, label in enumerate(labels)))
    assert class_counts(own.clips) == {"often": 9, "rare": 2, "rarer": 1}
    print_class_counts(own.clips)
    assert capsys.readouterr().out == "3 classes, 1 to 9 clips each; rarest: rarer (1), rare (2)\n"
