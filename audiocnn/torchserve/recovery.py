"""Undo an interrupted rollout or scale, and keep the previous version for `rollback`."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from audiocnn.errors import ServerError
from audiocnn.torchserve.integrity import write_atomically
from audiocnn.torchserve.management_api import ConflictError, ManagementError, Version
from audiocnn.torchserve.rollout_context import RolloutContext, RolloutError
from audiocnn.torchserve.store import Pending, clear_pending, read_pending, remove_copies

_PREVIOUS = "rollout.json"  # in the store: the version before the last rollout
_REGISTRATION_SECONDS = 10.0  # time limit for the server to complete a killed command's registration


def recover(context: RolloutContext) -> None:
    """Complete or undo a killed command: a new version stays if it is the default already."""
    if pending := read_pending(context.store):
        context.log(f"an earlier command was killed while version {pending.version} was registered")
        if _is_default(context, pending.version) and not pending.is_standby:
            context.log(f"version {pending.version} is the default and stays")
            save_previous(context, pending.old, pending.old_archive)
            clear_pending(context.store)
        else:  # keeps the checksum: a user who can write the store could name any archive here
            _wait_registered(context, pending.version)
            undo(context, pending)
    with suppress(OSError):  # a read-only store
        remove_copies(context.store)


def _wait_registered(context: RolloutContext, version: str) -> None:
    """Wait for a registration that the server may still be working on: it does not end with its client."""
    deadline = time.monotonic() + _REGISTRATION_SECONDS
    while not context.management.is_registered(version) and time.monotonic() < deadline:
        time.sleep(0.2)


def _is_default(context: RolloutContext, version: str) -> bool:
    return float(context.management.default().name) == float(version)


def undo(context: RolloutContext, pending: Pending) -> None:
    """Make the old version the default, unregister the other one and delete its archive.

    An error is logged, and the next command tries again.
    """
    try:
        _restore_default(context, pending)
        in_use = {version.archive for version in context.management.versions()}
        if pending.is_ours and pending.archive not in in_use:
            (context.store / pending.archive).unlink(missing_ok=True)
            remove_copies(context.store)
        clear_pending(context.store)
    except (ManagementError, ServerError, OSError) as error:
        context.log(f"could not be undone, the next command tries again: {error}")


def _restore_default(context: RolloutContext, pending: Pending) -> None:
    management = context.management
    if not management.is_registered(pending.version):
        return
    if not management.version(pending.old).is_default:
        management.set_default(pending.old)
        management.wait_idle(pending.version, timeout_seconds=context.drain_seconds)
    management.unregister(pending.version)
    context.log(f"version {pending.old} is the default, {pending.version} is unregistered")


def register(
    context: RolloutContext, archive: str, name: str, like: Version, *, workers: int | None = None
) -> None:
    """`Management.register`; replaces a registration by a killed command that completes only now."""
    try:
        context.management.register(archive, name, like, workers=workers)
    except ConflictError:
        context.log(f"version {name} was registered by an earlier command meanwhile: registering it again")
        context.management.unregister(name)
        context.management.register(archive, name, like, workers=workers)


def save_previous(context: RolloutContext, version: str, archive: str) -> None:
    """Store the version that `rollback` returns to. An error is logged."""
    try:
        record = {"version": version, "archive": archive}
        write_atomically(context.store / _PREVIOUS, json.dumps(record) + "\n")
    except OSError as error:  # a read-only store, a full disk
        context.log(f"`rollback` cannot return to version {version}: {error}")


def load_previous(context: RolloutContext) -> tuple[str, Path]:
    """Version before the last rollout, and its archive in the store; `RolloutError` if there is none."""
    path = context.store / _PREVIOUS
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return str(record["version"]), context.store / Path(record["archive"]).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RolloutError(f"{path} records no earlier rollout") from error
