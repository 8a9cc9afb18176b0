"""A temporary folder that the next process deletes if ours was killed before it could."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

_LOCK = "lock"


class PrivateFolder:
    """A folder below the system's temporary one, locked as long as this process lives."""

    def __init__(self, prefix: str) -> None:
        """Create it. Raises `OSError`."""
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Delete it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_abandoned(prefix: str, is_used: Callable[[Path], bool] = lambda _: False) -> None:
    """Delete folders of this user whose process was killed, unless `is_used` says that others need them."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                _remove_if_abandoned(path, is_used)


def _remove_if_abandoned(path: Path, is_used: Callable[[Path], bool]) -> None:
    with (path / _LOCK).open("r+") as lock:  # a folder without one is somebody else's, or not locked yet
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_used(path):
            shutil.rmtree(path, ignore_errors=True)
