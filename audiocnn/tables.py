"""Tables as people save them: CSV with commas, semicolons or tabs, in UTF-8, UTF-16 or Windows-1252."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from audiocnn.errors import AudioCNNError

SUFFIXES = (".csv", ".tsv")

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


class TableError(AudioCNNError, ValueError):
    """A table that cannot be read; the message names the file, and the line if it is one."""


class Table:
    """Iterates over the line number and the values of each row that is not blank, by column.

    Values are stripped. Lines are counted as an editor counts them.

    >>> for line, row in Table(Path("sounds.csv"), columns={"filename", "label"}):
    ...     print(line, row["filename"])
    """

    def __init__(self, path: Path, *, columns: Collection[str]) -> None:
        """`columns` are those of interest: separators and upper case in the header are told by them.

        Raises `TableError` if there is no header, `OSError` if the file cannot be read.
        """
        self.path = path
        self._columns = {name.casefold(): name for name in columns}
        with self._opened() as file:
            self._skipped, header, self._separator = self._read_header(file)
        self.columns = [self._columns.get(name.casefold(), name) for name in header]

    def _opened(self) -> TextIO:
        """Bytes that are not UTF-8 become surrogates, as in names of files."""
        with self.path.open("rb") as file:
            head = file.read(4)
        encoding = "utf-8-sig"
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"
        elif b"\0" in head[:2]:
            encoding = "utf-16-be" if head[0] == 0 else "utf-16-le"
        errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
        return self.path.open(newline="", encoding=encoding, errors=errors)

    def _read_header(self, file: TextIO) -> tuple[int, list[str], str]:
        """Lines before the rows, the names of the columns, and what separates them."""
        for number, line in enumerate(file, start=1):
            if line[:4].lower() == "sep=":  # a hint for spreadsheets
                continue
            if line.strip(" ,;\t\r\n"):
                names = {mark: self._split(line, mark) for mark in _SEPARATORS}
                best = max(names, key=lambda mark: (self._known(names[mark]), len(names[mark])))
                return number, names[best], best
        raise TableError(f"{self.path} is empty")

    def _split(self, line: str, separator: str) -> list[str]:
        try:
            return [text(name) for name in next(csv.reader([line], delimiter=separator, strict=True))]
        except csv.Error:
            return []

    def _known(self, names: list[str]) -> int:
        return sum(name.casefold() in self._columns for name in names)

    def describe_header(self) -> str:
        """What was seen of it, for messages."""
        names = ", ".join(map(repr, self.columns))
        return f"its header has {names}, with the {_SEPARATORS[self._separator]} as separator"

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        with self._opened() as file:
            for _ in range(self._skipped):
                next(file)
            rows = csv.reader(
                file, delimiter=self._separator, strict=True
            )  # else an open quote eats the rest
            try:
                for row in rows:
                    if any(map(str.strip, row)):
                        line = self._skipped + rows.line_num
                        yield line, self._row(line, row)
            except csv.Error as error:
                line = self._skipped + rows.line_num
                raise TableError(f"{self.path}, line {line}: {error}") from error

    def _row(self, line: int, row: list[str]) -> dict[str, str]:
        if any(map(str.strip, row[len(self.columns) :])):
            raise TableError(
                f"{self.path}, line {line}: {len(row)} values for {len(self.columns)} columns of the header. "
                f"Put quotes around a value with a {_SEPARATORS[self._separator]} in it"
            )
        return dict(zip(self.columns, chain(map(str.strip, row), [""] * len(self.columns)), strict=False))


def text(value: str) -> str:
    """The value without spaces around it; what is not UTF-8 is taken for Windows-1252."""
    value = value.strip()
    if value.isprintable():
        return value
    raw = value.encode("utf-8", "surrogateescape")
    return raw.decode("cp1252", "replace") if raw != value.encode("utf-8", "replace") else value
