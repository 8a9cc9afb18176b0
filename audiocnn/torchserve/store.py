"""The model store as one command at a time changes it: its lock, and what a killed command left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from audiocnn.torchserve.integrity import write_atomically

STAND_IN = "-stand-in.mar"  # ends the name of the copy that `scale` registers for a while
_LOCK = "rollout.lock"
_PENDING = "rollout.pending.json"


class StoreLockedError(RuntimeError):
    """Another command changes the store."""


@dataclass(frozen=True)
class Pending:
    """A version that is being registered instead of another one, until that is done or undone."""

    version: str
    archive: str  # file name in the store
    old: str  # the version that was the default before
    old_archive: str
    is_ours: bool  # the archive was copied into the store for this

    @property
    def is_stand_in(self) -> bool:
        """It answers only for a while."""
        return self.archive.endswith(STAND_IN)

    def save(self, store: Path) -> None:
        """From now on whoever locks the store next will undo it. Raises `OSError`."""
        write_atomically(store / _PENDING, json.dumps(asdict(self)) + "\n")


def read_pending(store: Path) -> Pending | None:
    """What a command began that was killed since; only known to whoever has the lock."""
    try:
        pending = Pending(**json.loads((store / _PENDING).read_text(encoding="utf-8")))
        return replace(pending, archive=Path(pending.archive).name)
    except (OSError, ValueError, TypeError):
        return None


def clear_pending(store: Path) -> None:
    """It is done, or undone."""
    (store / _PENDING).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(store: Path) -> Iterator[bool]:
    """True within the block: no other process changes the store; `StoreLockedError` if one does.

    The lock ends with its process. False for a store that cannot be written, and so has no lock.
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
                f"another rollout, rollback or scale changes {store}: try again when it has ended"
            ) from None
        yield True


def remove_leftovers(store: Path) -> None:
    """Delete the copies that a killed command left; none while a living one has the lock."""
    with contextlib.suppress(StoreLockedError, OSError), locked(store) as is_locked:
        if is_locked:
            remove_copies(store)


def remove_copies(store: Path) -> None:
    """Delete copies that no command works on; for whoever has the lock. Raises `OSError`."""
    for path in [*store.glob(f"*{STAND_IN}"), *store.glob("*.mar.part")]:
        path.unlink(missing_ok=True)
