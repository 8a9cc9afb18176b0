"""TorchServe's authorization tokens."""

from __future__ import annotations

import json
from pathlib import Path


class KeyFile:
    """TorchServe's `key_file.json`. Its keys expire, and every start of the server replaces them."""

    def __init__(self, path: Path, kind: str = "inference") -> None:
        self._path = path
        self._kind = kind
        self._key = self._read(kind)

    @property
    def authorization(self) -> str | None:
        """The `Authorization` header with the key that was read last; None if there is none."""
        return f"Bearer {self._key}" if self._key else None

    def renewal(self) -> tuple[str, dict[str, str]]:
        """Path and headers of the request to the management API that writes a new key to the file."""
        return f"/token?type={self._kind}", {"Authorization": f"Bearer {self._read('API')}"}

    def reload(self, refused: str | None) -> bool:
        """Read the file again; returns whether the key differs from the refused `Authorization` header."""
        self._key = self._read(self._kind)
        return self._key is not None and self.authorization != refused

    def _read(self, name: str) -> str | None:
        try:
            return str(json.loads(self._path.read_text(encoding="utf-8"))[name]["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or being written; the next refusal reads it again
