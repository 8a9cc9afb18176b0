"""The options of `audiocnn manage` that select a server; missing ones come from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from audiocnn.client.client import Client
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.properties import ca_file, read_properties

_ADDRESSES = {"inference": "http://127.0.0.1:8080", "management": "http://127.0.0.1:8081"}


@dataclass
class ServerOptions:
    """Addresses, configuration, model and tokens of one server."""

    config: Path
    inference: str | None
    management: str | None
    model: str
    key_file: Path

    @cached_property
    def properties(self) -> dict[str, str]:
        """The configuration; empty if both addresses are given and the file does not exist.

        Raises `ConfigError` if the file is needed and cannot be read.
        """
        if self.inference and self.management and not self.config.is_file():
            return {}
        return read_properties(self.config)

    def client(self, version: str | None = None) -> Client:
        """A client of one version (None: the default). It does not retry a worker that failed."""
        return Client(
            self._address("inference", self.inference),
            model=self.model,
            version=version,
            deadline_seconds=60.0,
            max_server_failures=0,
            key_file=self.key_file if self.key_file.is_file() else None,
            management=self._management_url if self.key_file.is_file() else None,
            ca_file=ca_file(self.properties),
        )

    def api(self) -> Management:
        """A client of the management API."""
        return Management(
            self._management_url, self.model, key_file=self.key_file, ca_file=ca_file(self.properties)
        )

    def store(self, given: Path | None = None) -> Path:
        """`given`, or the configured model store."""
        return given or Path(self.properties.get("model_store", "model_store"))

    @property
    def _management_url(self) -> str:
        return self._address("management", self.management)

    def _address(self, name: str, given: str | None) -> str:
        return given or self.properties.get(f"{name}_address", _ADDRESSES[name])
