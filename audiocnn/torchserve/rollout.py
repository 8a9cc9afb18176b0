"""Replace the served version without losing a request.

    verify -> copy into the store -> register -> warm -> compare -> make default -> drain old -> unregister

The old version answers until the new one is the default; a failure before that is undone. The next command
undoes a killed one (`audiocnn.torchserve.recovery`).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from audiocnn import files
from audiocnn.torchserve import integrity
from audiocnn.torchserve.acceptance import AcceptanceCriteria, make_default, validate
from audiocnn.torchserve.archives import known_sha256, manifest_version, verify
from audiocnn.torchserve.management_api import Version
from audiocnn.torchserve.recovery import load_previous, register, save_previous, undo
from audiocnn.torchserve.rollout_context import RolloutContext, RolloutError
from audiocnn.torchserve.store import Pending, clear_pending


def rollout(context: RolloutContext, archive: Path, criteria: AcceptanceCriteria, *, keep_old: bool) -> str:
    """Make an archive the default version; returns its version. A failure is undone.

    The old version is drained and unregistered, unless `keep_old`. Raises `RolloutError`, `ArchiveError`,
    `ManagementError`, `ServerError` and `OSError`.
    """
    management = context.management
    version, old = manifest_version(archive, management.model), management.default()
    _check_unregistered(context, version)
    place = _destination(context, archive, version)
    pending = Pending(version, place.name, old.name, old.archive, is_ours=place != archive)
    copy, digest = _copy_verified(context, archive, place, criteria.sha256)
    try:
        _install(context, copy, place, pending, digest)
        context.log(f"registering version {version} ({place.name}) with the settings of {old.name}")
        register(context, place.name, version, old)
        validate(context, version, old.name, criteria)
        make_default(context, version)
    except BaseException as error:  # Ctrl-C as well
        context.log(f"failed: {error or type(error).__name__}")
        _undo_install(context, pending, place)
        raise
    _complete(context, old, keep_old=keep_old)
    return version


def _check_unregistered(context: RolloutContext, version: str) -> None:
    if context.management.is_registered(version):
        raise RolloutError(
            f"version {version} is registered already: give the archive another version, or unregister that "
            f"one: `audiocnn manage drain {version} --unregister`"
        )


def _undo_install(context: RolloutContext, pending: Pending, place: Path) -> None:
    undo(context, pending)
    if pending.is_ours:
        with suppress(OSError):
            integrity.forget(place)


def _complete(context: RolloutContext, old: Version, *, keep_old: bool) -> None:
    save_previous(context, old.name, old.archive)
    clear_pending(context.store)
    if keep_old:
        context.log(f"version {old.name} stays registered, for `rollback`")
    else:
        _retire(context, old.name)


def rollback(context: RolloutContext) -> str:
    """Make the version before the last rollout the default again; returns it. Raises as `rollout` does."""
    name, archive = load_previous(context)
    old = context.management.default()
    if float(name) == float(old.name):
        raise RolloutError(f"version {name} is the default already")
    if context.management.is_registered(name):
        return _switch_back(context, name, old)
    if not archive.is_file():
        raise RolloutError(f"{archive} does not exist: use `rollout` with an archive of version {name}")
    criteria = AcceptanceCriteria(sha256=known_sha256(archive, context.store))
    return rollout(context, archive, criteria, keep_old=False)


def _switch_back(context: RolloutContext, name: str, old: Version) -> str:
    """Return to a version that is still registered."""
    validate(context, name, old.name, AcceptanceCriteria())
    try:
        make_default(context, name)
    except BaseException:
        context.management.set_default(old.name)
        raise
    save_previous(context, old.name, old.archive)
    _retire(context, old.name)
    return name


def _retire(context: RolloutContext, name: str) -> None:
    """Drain and unregister a version; `RolloutError` if it does not become idle, and it stays registered."""
    context.log(f"draining version {name}")
    if not context.management.wait_idle(name, timeout_seconds=context.drain_seconds):
        raise RolloutError(
            f"version {name} still has requests after {context.drain_seconds:.0f} s and stays registered: "
            f"`audiocnn manage drain {name} --unregister` later"
        )
    context.management.unregister(name)
    context.log(f"version {name} is unregistered")


def _destination(context: RolloutContext, archive: Path, version: str) -> Path:
    """The archive's path in the store; its own path if it is in the store already."""
    if archive.parent.resolve() == context.store.resolve():
        return archive
    place = context.store / f"{context.management.model}-{version}.mar"
    if any(registered.archive == place.name for registered in context.management.versions()):
        raise RolloutError(f"{place} belongs to a registered version")
    return place


def _copy_verified(
    context: RolloutContext, archive: Path, place: Path, sha256: str | None
) -> tuple[Path, str]:
    """Copy the archive to a temporary file beside `place` and verify the copy; returns it and its SHA-256.

    An archive that is in its place already is verified there.
    """
    if archive == place:
        return archive, _verify(context, archive, sha256)
    copy = place.with_name(place.name + ".part")
    copy.unlink(missing_ok=True)
    try:
        with archive.open("rb") as source, copy.open("xb") as file:
            shutil.copyfileobj(source, file)
        return copy, _verify(context, copy, sha256)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _verify(context: RolloutContext, archive: Path, sha256: str | None) -> str:
    digest = verify(archive, sha256)
    if sha256 is None:
        context.log(f"not verified: no checksum of {archive.name} is known; its SHA-256 is {digest}")
    else:
        context.log("the archive has the expected SHA-256")
    return digest


def _install(context: RolloutContext, copy: Path, place: Path, pending: Pending, digest: str) -> None:
    """Save the pending state, record the checksum, then move the archive into its place."""
    try:
        pending.save(context.store)
    except OSError:
        if pending.is_ours:
            raise  # otherwise nothing is written to the store, which may be read-only
    _record(context, place, digest, pending.old_archive)
    if pending.is_ours:
        os.replace(copy, place)


def _record(context: RolloutContext, place: Path, digest: str, old_archive: str) -> None:
    """Record the checksum that `audiocnn serve` expects.

    Where a record exists, archives without a line are refused, so the first line adds the served archive too.
    """
    served = context.store / old_archive
    if not integrity.file_for(place).exists() and served.is_file():
        integrity.record(served, files.sha256(served))
    if integrity.recorded(place) != digest:
        integrity.record(place, digest)
