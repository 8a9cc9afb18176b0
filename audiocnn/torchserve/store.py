"""The model store's lock, and the state from which an interrupted command is undone."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from audiocnn.torchserve.integrity import write_atomically

STANDBY = "-standby.mar"  # suffix of the copy that `scale` registers temporarily
_LOCK = "rollout.lock"
_PENDING = "rollout.pending.json"


class StoreLockedError(RuntimeError):
    """Another command is changing the store."""


@dataclass(frozen=True)
class Pending:
    """A version that replaces the default, stored until the command has completed or was undone."""

    version: str
    archive: str  # file name in the store
    old: str  # the version that was the default before
    old_archive: str
    is_ours: bool  # this command copied the archive into the store

    @property
    def is_standby(self) -> bool:
        """Whether it is the temporary copy of `scale`."""
        return self.archive.endswith(STANDBY)

    def save(self, store: Path) -> None:
        """Save it for the next command, which undoes it if this one is killed. Raises `OSError`."""
        write_atomically(store / _PENDING, json.dumps(asdict(self)) + "\n")


def read_pending(store: Path) -> Pending | None:
    """The state of a command that was killed, if there is one. Needs the lock."""
    try:
        pending = Pending(**json.loads((store / _PENDING).read_text(encoding="utf-8")))
        return replace(pending, archive=Path(pending.archive).name)
    except (OSError, ValueError, TypeError):
        return None


def clear_pending(store: Path) -> None:
    """Delete the state: the command has completed or was undone."""
    (store / _PENDING).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(store: Path) -> Iterator[bool]:
    """Hold the store's lock within the block; `StoreLockedError` if another process has it.

    Yields False for a store that cannot be written: it has no lock. The lock ends with its process.
    """
    try:
        lock = (store / _LOCK).open("a")
    except OSError:
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(
                f"another rollout, rollback or scale is changing {store}: try again when it has ended"
            ) from None
        yield True


def remove_leftovers(store: Path) -> None:
    """Delete the copies of a killed command, unless a running command has the lock."""
    with contextlib.suppress(StoreLockedError, OSError), locked(store) as is_locked:
        if is_locked:
            remove_copies(store)


def remove_copies(store: Path) -> None:
    """Delete temporary copies of archives. Needs the lock. Raises `OSError`."""
    for path in [*store.glob(f"*{STANDBY}"), *store.glob("*.mar.part")]:
        path.unlink(missing_ok=True)
