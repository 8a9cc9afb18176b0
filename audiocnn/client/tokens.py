"""TorchServe's authorization tokens."""

from __future__ import annotations

import json
from pathlib import Path


class KeyFile:
    """TorchServe's `key_file.json`: keys that expire, and are new after every start of the server."""

    def __init__(self, path: Path, kind: str = "inference") -> None:
        self._path = path
        self._kind = kind
        self._key = self._read(kind)

    @property
    def authorization(self) -> str | None:
        """The header's value with the key that was read last; None if the file had none."""
        return f"Bearer {self._key}" if self._key else None

    def renewal(self) -> tuple[str, dict[str, str]]:
        """Path and headers of the management API's request for a new key, which it writes to the file."""
        return f"/token?type={self._kind}", {"Authorization": f"Bearer {self._read('API')}"}

    def reload(self, refused: str | None) -> bool:
        """Read the file again; whether its key is another than the one that was refused."""
        self._key = self._read(self._kind)
        return self._key is not None and self.authorization != refused

    def _read(self, name: str) -> str | None:
        try:
            return str(json.loads(self._path.read_text(encoding="utf-8"))[name]["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing, or being written this moment: the refusal that follows leads back here
