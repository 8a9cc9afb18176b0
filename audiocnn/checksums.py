"""SHA-256 of archives, kept where who can change an archive cannot change it: outside the model store.

Every archive of `model_store/` has its line in `audiocnn.mar.sha256` beside the store, in the format of
`sha256sum`, so that `sha256sum --check audiocnn.mar.sha256` says the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from audiocnn.errors import ModelFileError

RECORD = "audiocnn.mar.sha256"
_DIGITS = 64


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_for(archive: Path) -> Path:
    """Where the checksum of an archive in a model store is kept."""
    return archive.resolve().parent.with_name(RECORD)


def record(archive: Path, digest: str) -> Path:
    """Write down the checksum that an archive must have from now on; returns the file."""
    path = file_for(archive)
    forget(archive)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{digest}  {archive.resolve().relative_to(path.parent)}\n")
    return path


def forget(archive: Path) -> None:
    """Nothing is on record for the archive any more; for one that is removed."""
    path = file_for(archive)
    if path.is_file():
        name = str(archive.resolve().relative_to(path.parent))
        kept = [line for line in _lines(path) if line.partition("  ")[2] != name]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def recorded(archive: Path) -> str | None:
    """The checksum on record for an archive in a model store; None if there is none."""
    path = file_for(archive)
    if not path.is_file():
        return None
    name = str(archive.resolve().relative_to(path.parent))
    digests = [line.partition("  ")[0] for line in _lines(path) if line.partition("  ")[2] == name]
    return digests[-1] if digests else None


def read(path: Path, *, name: str | None = None) -> str:
    """The checksum in a file: the one in front of a file name `name`, or else the first.

    Raises `ModelFileError` if there is none.
    """
    rows = [line.split() for line in _lines(path)]
    named = [row[0] for row in rows if len(row) > 1 and Path(row[1].lstrip("*")).name == name]
    unnamed = [row[0] for row in rows if row and (name is None or len(row) == 1)]
    digest = next(iter([*named, *unnamed]), "")
    if not is_digest(digest):
        raise ModelFileError(f"{path} holds no SHA-256 in hex digits" + (f" of {name}" if name else ""))
    return digest.lower()


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in hex digits."""
    return len(text) == _DIGITS and all(c in "0123456789abcdef" for c in text.lower())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
