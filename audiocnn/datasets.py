"""Readers of labelled clips: ESC-50, UrbanSound8K, a CSV of a user's own sounds, and a folder per class.

A dataset is a list of clips with a label and a fold. Clips cut from one recording share a fold, so training
on some folds and measuring on another is honest. Where the user gives no folds, recordings are spread over
five.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from audiocnn.errors import DatasetError
from audiocnn.inputs import SUFFIXES

FOLDS = 5  # where the user gives none


@dataclass(frozen=True)
class LabelledClip:
    """One row of a dataset."""

    path: Path
    label: str
    fold: int
    source: str  # the recording that the clip was cut from


@dataclass(frozen=True)
class Dataset:
    """Clips and the class names in the order of the dataset's numeric targets."""

    name: str
    clips: tuple[LabelledClip, ...]
    class_names: tuple[str, ...]

    def folds(self, wanted: Iterable[int]) -> list[LabelledClip]:
        """The clips of the wanted folds; `DatasetError` if one of the folds has none."""
        wanted = set(wanted)
        have = {clip.fold for clip in self.clips}
        if missing := sorted(wanted - have):
            raise DatasetError(f"{self.name} has no fold {missing}; it has {sorted(have)}")
        return [clip for clip in self.clips if clip.fold in wanted]


def read_dataset(root: Path) -> Dataset:
    """Read ESC-50, UrbanSound8K, a CSV file, a folder with one CSV in it, or a folder with one per class.

    In the folder of a class each file is a recording; the files of a folder in it are one recording. Raises
    `DatasetError` if the folder is none of these.
    """
    if (table := root / "meta" / "esc50.csv").is_file():
        return _read_esc50(root, table)
    if (table := root / "metadata" / "UrbanSound8K.csv").is_file():
        return _read_urbansound8k(root, table)
    tables = [root] if root.suffix == ".csv" else sorted(root.glob("*.csv"))
    if len(tables) == 1 and tables[0].is_file():
        return _read_csv(tables[0])
    if not tables and (clips := _folder_per_class(root)):
        return Dataset(root.resolve().name, tuple(clips), tuple(sorted({clip.label for clip in clips})))
    raise DatasetError(
        f"{root} is no dataset: expected meta/esc50.csv (ESC-50), metadata/UrbanSound8K.csv, one CSV file "
        "with the columns filename (or file_path) and label, and perhaps fold and source, or a folder of "
        "sound files for each class"
    )


def check_labels(class_names: Iterable[str]) -> None:
    """Raise `DatasetError` if names differ by case or by spaces around them only."""
    same = defaultdict(list)
    for name in class_names:
        same[name.strip().casefold()].append(name)
    if found := [", ".join(map(repr, names)) for names in same.values() if len(names) > 1]:
        raise DatasetError(
            f"labels that differ by case or spaces only: {'; '.join(found)}: write each in one way"
        )


def folds_by_recording(clips: Iterable[LabelledClip], count: int = FOLDS) -> tuple[LabelledClip, ...]:
    """The clips with folds from 1 to `count`: all clips of a recording in one, each class spread over all."""
    clips = tuple(clips)
    recordings = dict.fromkeys(clip.source for clip in sorted(clips, key=lambda c: (c.label, c.source)))
    fold_of = {source: 1 + number % count for number, source in enumerate(recordings)}
    return tuple(replace(clip, fold=fold_of[clip.source]) for clip in clips)


def _folder_per_class(root: Path) -> tuple[LabelledClip, ...]:
    """Clips of `root/CLASS/clip.wav` and `root/CLASS/RECORDING/clip.wav`; hidden folders are left out."""
    clips = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                source = path if path.parent == folder else path.parent
                clips.append(LabelledClip(path, folder.name, 0, str(source.relative_to(root))))
    return folds_by_recording(clips)


_INTEGERS = {"fold", "target", "classID"}


def _rows(table: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a table, each with all the columns; numbers are checked here, so that readers need not."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8: {error}") from error
    if not rows:
        raise DatasetError(f"{table} has no rows")
    if missing := [column for column in columns if column not in rows[0]]:
        raise DatasetError(f"{table} lacks the column {', '.join(missing)}")
    for number, row in enumerate(rows, start=2):
        for column in columns:
            if not row[column] or (column in _INTEGERS and not row[column].isdecimal()):
                raise DatasetError(f"{table}, line {number}: {column} is {row[column]!r}")
    return rows


def _names_by_target(rows: list[dict[str, str]], target: str, name: str) -> tuple[str, ...]:
    return tuple(label for _, label in sorted({(int(row[target]), row[name]) for row in rows}))


def _read_esc50(root: Path, table: Path) -> Dataset:
    rows = _rows(table, "filename", "fold", "target", "category", "src_file")
    clips = tuple(
        LabelledClip(root / "audio" / row["filename"], row["category"], int(row["fold"]), row["src_file"])
        for row in rows
    )
    return Dataset("ESC-50", clips, _names_by_target(rows, "target", "category"))


def _read_urbansound8k(root: Path, table: Path) -> Dataset:
    rows = _rows(table, "slice_file_name", "fsID", "fold", "classID", "class")
    clips = tuple(
        LabelledClip(
            root / "audio" / f"fold{row['fold']}" / row["slice_file_name"],
            row["class"],
            int(row["fold"]),
            row["fsID"],
        )
        for row in rows
    )
    return Dataset("UrbanSound8K", clips, _names_by_target(rows, "classID", "class"))


def _read_csv(table: Path) -> Dataset:
    header = table.read_text("latin-1").partition("\n")[0]
    names = [name.strip('"\r ï»¿') for name in header.split(",")]
    column = "file_path" if "file_path" in names else "filename"
    has_folds = "fold" in names
    rows = _rows(table, column, "label", *(["fold"] if has_folds else []))
    # The column `source` is optional, and so is its value: a clip without one is a recording of its own.
    clips = tuple(
        LabelledClip(
            table.parent / row[column],
            row["label"],
            int(row["fold"]) if has_folds else 0,
            row.get("source") or row[column],
        )
        for row in rows
    )
    clips = clips if has_folds else folds_by_recording(clips)
    return Dataset(table.stem, clips, tuple(sorted({clip.label for clip in clips})))
