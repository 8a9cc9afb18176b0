"""Change the number of workers without losing a request.

TorchServe 0.12 sometimes answers the request of a worker that it stops with 500. To stop workers, a copy of
the version (the standby) therefore takes the traffic until the version is idle.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiocnn.torchserve.acceptance import make_default
from audiocnn.torchserve.archives import MANIFEST, known_sha256, verify
from audiocnn.torchserve.management_api import ApiDisabledError, Version
from audiocnn.torchserve.recovery import register, undo
from audiocnn.torchserve.rollout_context import RolloutContext, RolloutError
from audiocnn.torchserve.store import STANDBY, Pending

_IDLE_SECONDS = 10.0  # time limit for a pause in the traffic, where no standby can be registered


def scale(context: RolloutContext, workers: int) -> None:
    """Run `workers` workers of the default version; returns when they are ready."""
    management = context.management
    current = management.default()
    if workers >= len(current.pids):
        management.scale(current.name, workers)
        return
    try:
        with _standby(context, current, workers):
            management.scale(current.name, workers)
    except (ApiDisabledError, OSError):  # enable_model_api=false, or a read-only store
        context.log("waiting for a moment without requests (not needed with enable_model_api=true)")
        if not management.wait_idle(current.name, timeout_seconds=_IDLE_SECONDS):
            context.log("there was none: requests of a stopped worker may get 500 (clients retry them)")
        management.scale(current.name, workers)


@contextmanager
def _standby(context: RolloutContext, current: Version, workers: int) -> Iterator[None]:
    """Within the block a copy of `current` is the default version, and `current` is idle."""
    management = context.management
    highest = max(float(version.name) for version in management.versions())
    name = f"{highest + 0.001:.6g}"
    source, copy = context.store / current.archive, context.store / f"{management.model}{STANDBY}"
    verify(source, known_sha256(source, context.store))
    pending = Pending(name, copy.name, current.name, current.archive, is_ours=True)
    pending.save(context.store)
    try:
        copy_as(source, copy, name)
        register(context, copy.name, name, current, workers=workers)
        make_default(context, name)
        if not management.wait_idle(current.name, timeout_seconds=context.drain_seconds):
            raise RolloutError(f"version {current.name} did not become idle: nothing was changed")
        yield
    finally:
        undo(context, pending)


def copy_as(source: Path, copy: Path, version: str) -> None:
    """Copy an archive with another version in its manifest."""
    copy.unlink(missing_ok=True)  # "x" below creates the file and follows no link
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "x") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename == MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["modelVersion"] = version
                data = json.dumps(manifest).encode()
            new.writestr(item, data, compress_type=zipfile.ZIP_STORED)
