"""Change the served version, or the number of workers, without losing a request.

    verify -> copy into the store -> register -> warm -> compare -> make default -> drain old -> unregister

Whatever fails before the new version is the default undoes all of it: the old one has answered all along.
What was killed is undone by the next command.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocnn import files
from audiocnn.client.base import Answer, Failure
from audiocnn.client.client import Client
from audiocnn.errors import AudioError, ServerError
from audiocnn.probe import probe_wav
from audiocnn.torchserve import integrity
from audiocnn.torchserve.archives import MANIFEST, known_sha256, manifest_version, verify
from audiocnn.torchserve.integrity import write_atomically
from audiocnn.torchserve.management_api import ApiDisabledError, Management, ManagementError, Version
from audiocnn.torchserve.store import STAND_IN, Pending, clear_pending, read_pending, remove_copies

RECORD = "rollout.json"  # in the store: which version came before
_WARM_CONCURRENCY = 8
_SHOWN = 5

Say = Callable[[str], None]
Connect = Callable[[str | None], Client]  # a client of one version; None: of the default


class RolloutError(RuntimeError):
    """The new version is not served, with the reason."""


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """The server and how to talk to it and about it."""

    management: Management
    connect: Connect
    store: Path
    say: Say
    drain_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class AcceptanceCriteria:
    """What the new version must pass."""

    sha256: str | None = None  # of the archive
    clips: Sequence[Path] = ()
    min_agreement: float = 0.9


def rollout(target: RolloutContext, archive: Path, checks: AcceptanceCriteria, *, keep_old: bool) -> str:
    """Serve an archive instead of the default version; returns its version. Undone if it fails."""
    management, say = target.management, target.say
    version = manifest_version(archive, management.model)
    old = management.default()
    if any(float(each.name) == float(version) for each in management.versions()):
        raise RolloutError(
            f"version {version} is registered already: give the archive another version, or unregister that "
            f"one: `audiocnn manage drain {version} --unregister`"
        )
    place = _destination(target, archive, version)
    pending = Pending(version, place.name, old.name, old.archive, is_ours=place != archive)
    copy, digest = _copy_verified(target, archive, place, checks.sha256)
    try:
        _install(target, copy, place, pending, digest)
        say(f"registering version {version} ({place.name}) with the settings of {old.name}")
        management.register(place.name, version, old)
        _validate(target, version, old, checks)
        _switch(target, version)
    except BaseException as error:  # Ctrl-C as well
        say(f"failed: {error or type(error).__name__}")
        _undo(target, pending)
        if pending.is_ours:
            with suppress(OSError):
                integrity.forget(place)
        raise
    _save_previous(target, old.name, old.archive)
    clear_pending(target.store)
    if keep_old:
        say(f"version {old.name} stays registered, for `rollback`")
    else:
        retire(target, old.name)
    return version


def rollback(target: RolloutContext) -> str:
    """Serve the version from before the last rollout again; returns its name."""
    record = _load_previous(target)
    old = target.management.default()
    name, archive = record["version"], target.store / record["archive"]
    registered = {float(version.name) for version in target.management.versions()}
    if float(name) == float(old.name):
        raise RolloutError(f"version {name} is the default already")
    if float(name) in registered:
        _validate(target, name, old, AcceptanceCriteria())
        try:
            _switch(target, name)
        except BaseException:
            target.management.set_default(old.name)
            raise
        _save_previous(target, old.name, old.archive)
        retire(target, old.name)
        return str(name)
    if not archive.is_file():
        raise RolloutError(f"{archive} is gone: use `rollout` with an archive of version {name}")
    checks = AcceptanceCriteria(sha256=known_sha256(archive, target.store))
    return rollout(target, archive, checks, keep_old=False)


def retire(target: RolloutContext, name: str) -> None:
    """Unregister a version once nothing is left in it; left alone if it does not become idle."""
    target.say(f"draining version {name}")
    if not target.management.wait_idle(name, timeout_seconds=target.drain_seconds):
        raise RolloutError(
            f"version {name} still has requests after {target.drain_seconds:.0f} s and stays registered: "
            f"`audiocnn manage drain {name} --unregister` later"
        )
    target.management.unregister(name)
    target.say(f"version {name} is unregistered")


def scale(target: RolloutContext, workers: int) -> None:
    """So many workers for the default version.

    When TorchServe 0.12 stops a worker it now and then answers what that has in hand with a 500. So for
    fewer workers a copy of the version stands in, and workers are stopped when nothing is in them.
    """
    management, say = target.management, target.say
    current = management.default()
    if workers >= len(current.pids):
        management.scale(current.name, workers)
        return
    try:
        with _standby(target, current, workers):
            management.scale(current.name, workers)
    except (ApiDisabledError, OSError):  # a server that registers nothing, a store that is not ours
        say("waiting for a moment without requests (enable_model_api=true needs no such moment)")
        if not management.wait_idle(current.name, timeout_seconds=10.0):
            say("there is none: a request that a stopped worker has in hand may get a 500 (clients retry it)")
        management.scale(current.name, workers)


@contextmanager
def _standby(target: RolloutContext, current: Version, workers: int) -> Iterator[None]:
    """The default version is idle within the block; a copy with another number answers."""
    management = target.management
    highest = max(float(version.name) for version in management.versions())
    name = f"{highest + 0.001:.6g}"
    source, copy = target.store / current.archive, target.store / f"{management.model}{STAND_IN}"
    verify(source, known_sha256(source, target.store))
    pending = Pending(name, copy.name, current.name, current.archive, is_ours=True)
    pending.save(target.store)
    try:
        copy_as(source, copy, name)
        management.register(copy.name, name, current, workers=workers)
        _switch(target, name)
        if not management.wait_idle(current.name, timeout_seconds=target.drain_seconds):
            raise RolloutError(f"version {current.name} did not become idle: nothing was changed")
        yield
    finally:
        _undo(target, pending)


def copy_as(source: Path, copy: Path, version: str) -> None:
    """The archive under another version number."""
    copy.unlink(missing_ok=True)  # "x" then follows no link
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "x") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename == MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["modelVersion"] = version
                data = json.dumps(manifest).encode()
            new.writestr(item, data, compress_type=zipfile.ZIP_STORED)


def _destination(target: RolloutContext, archive: Path, version: str) -> Path:
    """Where the archive will be in the store: where it is, if it is there already."""
    if archive.parent.resolve() == target.store.resolve():
        return archive
    place = target.store / f"{target.management.model}-{version}.mar"
    if any(each.archive == place.name for each in target.management.versions()):
        raise RolloutError(f"{place} belongs to a registered version")
    return place


def _copy_verified(
    target: RolloutContext, archive: Path, place: Path, sha256: str | None
) -> tuple[Path, str]:
    """The archive beside its place, or where it is if that is its place, and its SHA-256, verified there."""
    if archive == place:
        return archive, _verify(target, archive, sha256)
    copy = place.with_name(place.name + ".part")
    copy.unlink(missing_ok=True)
    try:
        with archive.open("rb") as source, copy.open("xb") as file:
            shutil.copyfileobj(source, file)
        return copy, _verify(target, copy, sha256)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _verify(target: RolloutContext, archive: Path, sha256: str | None) -> str:
    digest = verify(archive, sha256)
    if sha256 is None:
        target.say(f"not verified: no checksum of {archive.name} is known; its SHA-256 is {digest}")
    else:
        target.say("the archive has the expected SHA-256")
    return digest


def _install(target: RolloutContext, copy: Path, place: Path, pending: Pending, digest: str) -> None:
    """Put the archive in its place, what is begun and its checksum on record before."""
    try:
        pending.save(target.store)
    except OSError:
        if pending.is_ours:
            raise  # else the store is perhaps read-only, and nothing is written
    _record(target, place, digest, pending.old_archive)
    if pending.is_ours:
        os.replace(copy, place)


def _record(target: RolloutContext, place: Path, digest: str, old_archive: str) -> None:
    """What `audiocnn.torchserve.launch` will expect of the archive from now on.

    Once a store has a record, archives without a line are refused: with the first line the served one gets
    its own.
    """
    served = target.store / old_archive
    if not integrity.file_for(place).exists() and served.is_file():
        integrity.record(served, files.sha256(served))
    if integrity.recorded(place) != digest:
        integrity.record(place, digest)


def _validate(target: RolloutContext, version: str, old: Version, checks: AcceptanceCriteria) -> None:
    """Real predictions by every worker, then the given clips by both versions."""
    count = 2 * _WARM_CONCURRENCY
    target.say(f"warming version {version} with {count} predictions")
    with target.connect(version) as new:
        for _, result in new.predict_many([probe_wav()] * count, concurrency=_WARM_CONCURRENCY):
            if isinstance(result, Exception):
                raise RolloutError(f"version {version} does not answer: {result}") from result
        if checks.clips:
            with target.connect(old.name) as before:
                _compare(target, checks, new, before)


def _compare(target: RolloutContext, checks: AcceptanceCriteria, new: Client, old: Client) -> None:
    """`RolloutError` if the top classes agree on fewer clips than wanted."""
    ours = [_top(result) for _, result in new.predict_many(checks.clips)]
    theirs = [_top(result) for _, result in old.predict_many(checks.clips)]
    different = [
        f"{clip.name}: {b} -> {a}" for clip, a, b in zip(checks.clips, ours, theirs, strict=True) if a != b
    ]
    agreement = 1 - len(different) / len(checks.clips)
    target.say(f"agreement with the old version on {len(checks.clips)} clips: {agreement:.1%}")
    for line in different[:_SHOWN]:
        target.say(f"  {line}")
    if agreement < checks.min_agreement:
        raise RolloutError(f"agreement {agreement:.1%} is below {checks.min_agreement:.1%}")


def _top(result: Answer | Failure) -> str:
    """The top class, or the code of the clip's error; an answer like any other if both versions say it."""
    if isinstance(result, AudioError):
        return result.code
    if isinstance(result, Exception):
        raise RolloutError(f"a clip got no answer: {result}") from result
    return str(result["predictions"][0]["class"]) if result["predictions"] else "(none)"


def _switch(target: RolloutContext, version: str) -> None:
    """Make a version the default, and see that it answers as such."""
    target.management.set_default(version)
    target.say(f"version {version} is the default")
    with target.connect(None) as client:
        client.predict(probe_wav())


def recover(target: RolloutContext) -> None:
    """Finish or undo what a killed command began: a new version stays if it was the default already."""
    if pending := read_pending(target.store):
        target.say(f"an earlier command was killed while version {pending.version} was registered")
        if float(target.management.default().name) == float(pending.version) and not pending.is_stand_in:
            target.say(f"version {pending.version} is the default and stays")
            _save_previous(target, pending.old, pending.old_archive)
            clear_pending(target.store)
        else:  # its checksum stays: who can write the store could make us forget any
            _undo(target, pending)
    with suppress(OSError):  # a store that cannot be written
        remove_copies(target.store)


def _undo(target: RolloutContext, pending: Pending) -> None:
    """The old version is the default, the other one and its archive are gone; says what remains."""
    try:
        _restore(target, pending)
        in_use = {each.archive for each in target.management.versions()}
        if pending.is_ours and pending.archive not in in_use:
            (target.store / pending.archive).unlink(missing_ok=True)
            remove_copies(target.store)
        clear_pending(target.store)
    except (ManagementError, ServerError, OSError) as error:
        target.say(f"could not be undone, the next command tries again: {error}")


def _restore(target: RolloutContext, pending: Pending) -> None:
    management = target.management
    if not any(float(each.name) == float(pending.version) for each in management.versions()):
        return
    if not management.version(pending.old).is_default:
        management.set_default(pending.old)
        management.wait_idle(pending.version, timeout_seconds=target.drain_seconds)
    management.unregister(pending.version)
    target.say(f"version {pending.old} is the default, {pending.version} is unregistered")


def _save_previous(target: RolloutContext, version: str, archive: str) -> None:
    """What `rollback` goes back to."""
    try:
        record = {"version": version, "archive": archive}
        write_atomically(target.store / RECORD, json.dumps(record) + "\n")
    except OSError as error:  # a store that cannot be written, a full disk
        target.say(f"`rollback` will not know version {version}: {error}")


def _load_previous(target: RolloutContext) -> dict[str, Any]:
    path = target.store / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"version": str(record["version"]), "archive": Path(record["archive"]).name}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RolloutError(f"no rollout is on record in {path}") from error
