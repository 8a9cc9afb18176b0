"""What is checked about an archive before TorchServe may load it: archives run code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from audiocnn import files
from audiocnn.torchserve import integrity

MANIFEST = "MAR-INF/MANIFEST.json"


class ArchiveError(ValueError):
    """The archive is not to be loaded, with the reason."""


def manifest_version(archive: Path, model: str) -> str:
    """The version that TorchServe will read from an archive; `ArchiveError` if it is not one of ours."""
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
        raise ArchiveError(f"{archive} is no model archive: {error}") from error
    if name != model:
        raise ArchiveError(f"{archive} holds the model {name!r}, not {model!r}")
    return version


def known_sha256(archive: Path, store: Path, given: str | None = None) -> str | None:
    """The checksum that an archive must have: given as hex digits or as a file, or on record.

    On record is what `make archive` or a rollout wrote outside the store, or for an archive that is not
    in the store a file `NAME.sha256` beside it. One in the model store is not looked at: who can change
    the archive there can change it too. None if nothing is known; `ArchiveError` for an archive of a store
    that has a record, but of others: whoever can write into the store could add one.
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
        what = f"{given} is neither 64 hex digits nor a file" if given else f"no SHA-256 of {archive}"
        raise ArchiveError(f"{what}: {error}") from error


def _refuse_unrecorded(archive: Path, store: Path) -> None:
    record = integrity.file_for(archive)
    if record.exists():
        raise ArchiveError(
            f"{archive} has no SHA-256 in {record}: not loaded. If you trust it: "
            f"(cd {record.parent} && sha256sum {store.resolve().name}/{archive.name} >> {record.name})"
        )


def verify(archive: Path, expected: str | None) -> str:
    """The archive's SHA-256; `ArchiveError` if another one was expected."""
    actual = files.sha256(archive)
    if expected not in (None, actual):
        raise ArchiveError(f"{archive} has the SHA-256 {actual}, expected {expected}: not loaded")
    return actual
