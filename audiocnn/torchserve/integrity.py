"""The record of archive checksums, outside the model store: write access to the store does not change it.

Each archive of `model_store/` has a line in `audiocnn.mar.sha256` beside the store, in the format of
`sha256sum`: `sha256sum --check audiocnn.mar.sha256` verifies it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from audiocnn.errors import ModelFileError

RECORD = "audiocnn.mar.sha256"
_DIGITS = 64


def file_for(archive: Path) -> Path:
    """The record for an archive in a model store."""
    return archive.parent.resolve().with_name(RECORD)


def record(archive: Path, digest: str) -> Path:
    """Record the SHA-256 that an archive must have; returns the record. Raises `OSError`."""
    _change(archive, digest)
    return file_for(archive)


def forget(archive: Path) -> None:
    """Remove an archive's line from the record. Raises `OSError`."""
    if recorded(archive):
        _change(archive, None)


def _change(archive: Path, digest: str | None) -> None:
    path, name = file_for(archive), _name(archive)
    with _locked(path):
        lines = _lines(path) if path.is_file() else []
        lines = [line for line in lines if line.partition("  ")[2] != name]
        lines += [f"{digest}  {name}"] if digest else []
        write_atomically(path, "".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the record, so that concurrent writers do not lose lines."""
    import fcntl  # late: it does not exist on Windows

    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically; on an error, such as a full disk, the old one stays. Raises `OSError`.

    Symbolic links are replaced, not followed: a user who can write the folder must not redirect the write.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file() and not path.is_symlink():
            shutil.copymode(path, part)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def recorded(archive: Path) -> str | None:
    """The recorded SHA-256 of an archive in a model store; None if there is none."""
    path, name = file_for(archive), _name(archive)
    if not path.is_file():
        return None
    digests = [line.partition("  ")[0] for line in _lines(path) if line.partition("  ")[2] == name]
    return digests[-1] if digests else None


def _name(archive: Path) -> str:
    """The archive's path in the record: store and file name. Links in the store are not followed."""
    return f"{archive.parent.resolve().name}/{archive.name}"


def read(path: Path, *, name: str | None = None) -> str:
    """The SHA-256 in a file: the one before the file name `name`, else the first.

    Raises `ModelFileError` if there is none.
    """
    rows = [line.split() for line in _lines(path)]
    named = [row[0] for row in rows if len(row) > 1 and Path(row[1].lstrip("*")).name == name]
    unnamed = [row[0] for row in rows if row and (name is None or len(row) == 1)]
    digest = next(iter([*named, *unnamed]), "")
    if not is_digest(digest):
        raise ModelFileError(f"{path} has no SHA-256 in hex digits" + (f" of {name}" if name else ""))
    return digest.lower()


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in hex digits."""
    return len(text) == _DIGITS and all(c in "0123456789abcdef" for c in text.lower())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
