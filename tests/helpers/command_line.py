"""Arguments of the command `audiocnn` as its functions receive them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audiocnn import cli


def parse(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What `audiocnn COMMAND ARGUMENTS` would be called with."""
    return dict(cli.load(command).make_context(command, list(arguments)).params)
