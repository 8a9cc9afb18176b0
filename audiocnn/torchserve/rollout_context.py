"""The server, the model store and the output of one rollout, rollback or scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audiocnn.client.client import Client
from audiocnn.torchserve.management_api import Management

Connect = Callable[[str | None], Client]  # a client of one version; None: of the default version
Log = Callable[[str], None]  # receives one line of progress; must not raise


class RolloutError(RuntimeError):
    """The change was not made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """What every step needs."""

    management: Management
    connect: Connect
    store: Path  # the model store, locked by this process
    log: Log
    drain_seconds: float = 120.0  # time limit for the old version to become idle
