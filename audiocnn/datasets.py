"""Readers of labelled clips: ESC-50, UrbanSound8K, and a plain CSV of a user's own sounds.

A dataset is a list of clips with a label and a fold. The folds are the dataset's own: clips cut from
one recording share a fold, so training on some folds and measuring on another is honest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from audiocnn.errors import DatasetError


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
    """Read an ESC-50 folder, an UrbanSound8K folder, a CSV file, or a folder with one CSV in it.

    Raises `DatasetError` if the folder is none of these.
    """
    if (table := root / "meta" / "esc50.csv").is_file():
        return _read_esc50(root, table)
    if (table := root / "metadata" / "UrbanSound8K.csv").is_file():
        return _read_urbansound8k(root, table)
    tables = [root] if root.suffix == ".csv" else sorted(root.glob("*.csv"))
    if len(tables) == 1 and tables[0].is_file():
        return _read_csv(tables[0])
    raise DatasetError(
        f"{root} is no dataset: expected meta/esc50.csv (ESC-50), metadata/UrbanSound8K.csv, or one CSV "
        "file with the columns filename (or file_path), fold and label, and perhaps source"
    )


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
    column = "file_path" if "file_path" in table.read_text("latin-1").partition("\n")[0] else "filename"
    rows = _rows(table, column, "fold", "label")
    # The column `source` is optional, and so is its value: a clip without one is a recording of its own.
    clips = tuple(
        LabelledClip(
            table.parent / row[column], row["label"], int(row["fold"]), row.get("source") or row[column]
        )
        for row in rows
    )
    return Dataset(table.stem, clips, tuple(sorted({clip.label for clip in clips})))
