"""The command `audiocnn` in this process: it starts at once, and without importing torch again."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
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
    stdin = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
    try:
        return finished(lambda: cli.main(list(map(str, words))))
    finally:
        sys.stdin = stdin


def finished(main: Callable[[], int]) -> Finished:
    """What a command that returns its exit code printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main()
    return Finished(code, out.getvalue(), err.getvalue())
