"""The command `audiocnn` in this process: it starts at once, and without importing torch again."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from audiocnn import cli


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def parse(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What `audiocnn COMMAND ARGUMENTS` would be called with."""
    return dict(cli.load(command).make_context(command, list(arguments)).params)


def run(*words: object, data: bytes = b"") -> Finished:
    """`audiocnn WORDS`, with `data` as standard input."""
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.main(list(map(str, words)))
    finally:
        sys.stdin = stdin
    return Finished(code, out.getvalue(), err.getvalue())
