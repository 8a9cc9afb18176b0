"""Readers of labelled clips: ESC-50, UrbanSound8K, a CSV of a user's own sounds, and a folder per class.

A dataset is a list of clips with a label and a fold. Clips cut from one recording share a fold, so training
on some folds and measuring on another is honest. Where the user gives no folds, recordings are spread over
five.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audiocnn import tables
from audiocnn.errors import DatasetError
from audiocnn.files import as_text
from audiocnn.inputs import SUFFIXES
from audiocnn.tables import Table, TableError, text

FOLDS = 5  # where the user gives none


@dataclass(frozen=True)
class LabelledClip:
    """One row of a dataset."""

    path: Path
    label: str  # one class, or several with semicolons between them: dog;rain
    fold: int
    source: str  # the recording that the clip was cut from

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the clip."""
        return tuple(dict.fromkeys(part.strip() for part in self.label.split(";") if part.strip()))


@dataclass(frozen=True)
class Dataset:
    """Clips and the class names in the order of the dataset's numeric targets."""

    name: str
    clips: tuple[LabelledClip, ...]
    class_names: tuple[str, ...]
    has_table: bool = True  # False: the labels are the names of folders

    @property
    def has_several_labels(self) -> bool:
        """Whether a clip has more than one class: its model has a sigmoid for each."""
        return any(len(clip.labels) > 1 for clip in self.clips)

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
    if root.is_file() and root.suffix.lower() in tables.SUFFIXES:
        return _read_csv(root)
    found = sorted(path for path in root.glob("*") if path.suffix.lower() in tables.SUFFIXES)
    if len(found) == 1 and found[0].is_file():
        return _read_csv(found[0])
    if not found and (clips := _folder_per_class(root)):
        return Dataset(
            root.resolve().name,
            tuple(clips),
            _class_names(clips),
            has_table=False,
        )
    raise DatasetError(
        f"{root} is no dataset: expected meta/esc50.csv (ESC-50), metadata/UrbanSound8K.csv, one CSV file "
        "with the columns filename (or file_path) and label (several: dog;rain), and perhaps fold and "
        "source, or a folder of sound files for each class"
    )


def _class_names(clips: Iterable[LabelledClip]) -> tuple[str, ...]:
    return tuple(sorted({label for clip in clips for label in clip.labels}))


def check_labels(class_names: Iterable[str]) -> None:
    """Raise `DatasetError` if names differ by case or by spaces around them only, or are not UTF-8."""
    class_names = sorted(class_names)
    if unreadable := [name for name in class_names if as_text(name) != name]:
        raise DatasetError(f"labels that are not UTF-8: {', '.join(map(ascii, unreadable))}")
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


def is_sound(path: Path) -> bool:
    """Whether a path below a folder of recordings is that of a sound, by its name; hidden ones are not."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _folder_per_class(root: Path) -> tuple[LabelledClip, ...]:
    """Clips of `root/CLASS/clip.wav` and `root/CLASS/RECORDING/clip.wav`; hidden folders are left out."""
    clips = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        for path in sorted(folder.rglob("*")):
            if is_sound(path.relative_to(folder)):
                source = path if path.parent == folder else path.parent
                clips.append(LabelledClip(path, folder.name, 0, str(source.relative_to(root))))
    return folds_by_recording(clips)


_INTEGERS = {"fold", "target", "classID"}
_FILES = ("file_path", "filename", "path")


def _rows(table: Path, *columns: str | tuple[str, ...], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table, each with a value in all the columns, or one of several, and in the optional ones
    that the table has; numbers are checked here, so that readers need not."""
    names = [name for column in columns for name in ([column] if isinstance(column, str) else column)]
    try:
        content = Table(table, columns={*names, *optional, "source"})
        found = [_only(content, [column] if isinstance(column, str) else column) for column in columns]
        found += [column for column in optional if column in content.columns]
        rows = [_checked(f"{table}, line {line}", row, found) for line, row in content]
    except TableError as error:
        raise DatasetError(str(error)) from error
    if not rows:
        raise DatasetError(f"{table} has no rows")
    return rows


def _only(content: Table, names: Sequence[str]) -> str:
    """The first of the columns that is there."""
    for name in names:
        if name in content.columns:
            return name
    raise DatasetError(f"{content.path} lacks the column {' or '.join(names)}: {content.describe_header()}")


def _checked(place: str, row: dict[str, str], columns: Sequence[str]) -> dict[str, str]:
    values = {column: text(value) for column, value in row.items()}
    for column in columns:
        value = values[column]
        whole = re.fullmatch(r"(\d+)([.,]0*)?", value, re.ASCII)  # data frames write 1.0
        if column in _INTEGERS and whole:
            values[column] = whole[1]
        elif not value or column in _INTEGERS:
            raise DatasetError(f"{place}: {column} is {value!r}")
    return values


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
    rows = _rows(table, _FILES, "label", optional=["fold"])
    column = next(name for name in _FILES if name in rows[0])
    has_folds = "fold" in rows[0]
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
    names = _class_names(clips)
    check_labels(names)
    return Dataset(table.stem, clips if has_folds else folds_by_recording(clips), names)
