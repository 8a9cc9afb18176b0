"""Checks of an archive before TorchServe loads it: archives run code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from audiocnn import files
from audiocnn.torchserve import integrity

MANIFEST = "MAR-INF/MANIFEST.json"


class ArchiveError(ValueError):
    """The archive must not be loaded; the message says why."""


def manifest_version(archive: Path, model: str) -> str:
    """The version in an archive's manifest; `ArchiveError` if it is damaged or holds another model."""
    try:
        with zipfile.ZipFile(archive) as file:
            if damaged := file.testzip():
                raise ArchiveError(f"{archive} is damaged: {damaged} does not match its checksum")
            described = json.loads(file.read(MANIFEST))["model"]
            name, version = described["modelName"], str(described["modelVersion"])
            float(version)
    except ArchiveError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise ArchiveError(f"{archive} is not a model archive: {error}") from error
    if name != model:
        raise ArchiveError(f"{archive} holds the model {name!r}, not {model!r}")
    return version


def known_sha256(archive: Path, store: Path, given: str | None = None) -> str | None:
    """The SHA-256 that an archive must have, None if none is known.

    `given` is 64 hex digits or a file with them. Otherwise the checksum comes from the record that `make
    archive` or a rollout wrote outside the store, or, for an archive outside the store, from a file
    `NAME.sha256` beside it. A checksum inside the store is ignored, because a user who can write the store
    can replace both. Raises `ArchiveError` for an archive that is missing from an existing record, and for
    a checksum that cannot be read.
    """
    try:
        if given:
            return given.lower() if integrity.is_digest(given) else integrity.read(Path(given))
        if found := integrity.recorded(archive):
            return found
        if archive.parent.resolve() == store.resolve():
            _refuse_unrecorded(archive, store)
            return None
        beside = archive.with_name(archive.name + ".sha256")
        return integrity.read(beside, name=archive.name) if beside.is_file() else None
    except OSError as error:
        problem = f"{given} is neither 64 hex digits nor a file" if given else f"no SHA-256 of {archive}"
        raise ArchiveError(f"{problem}: {error}") from error


def _refuse_unrecorded(archive: Path, store: Path) -> None:
    record = integrity.file_for(archive)
    if record.exists():
        raise ArchiveError(
            f"{archive} has no SHA-256 in {record}: not loaded. If you trust it: "
            f"(cd {record.parent} && sha256sum {store.resolve().name}/{archive.name} >> {record.name})"
        )


def verify(archive: Path, expected: str | None) -> str:
    """The archive's SHA-256; `ArchiveError` if it is not the `expected` one."""
    actual = files.sha256(archive)
    if expected not in (None, actual):
        raise ArchiveError(f"{archive} has the SHA-256 {actual}, expected {expected}: not loaded")
    return actual
