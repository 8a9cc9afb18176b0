"""Programs in the environment of public clients, `.clients`, which `make clients` installs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.helpers.paths import ROOT

FOLDER = ROOT / ".clients"
DOCUMENT = ROOT / "docs" / "clients.md"


def run_client(command: Sequence[str | Path], *, folder: Path = ROOT, path: Path | None = None) -> str:
    """What a program of the clients' environment prints; `path` is added to its modules."""
    environment = _environment() | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        _found(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_client(command: Sequence[str | Path], log: BinaryIO) -> subprocess.Popen[bytes]:
    """A program of the clients' environment that goes on."""
    return subprocess.Popen(_found(command), cwd=ROOT, env=_environment(), stdout=log, stderr=log)


def _found(command: Sequence[str | Path]) -> list[str | Path]:
    program = FOLDER / "bin" / command[0]
    if not program.is_file():
        message = "the public clients are not installed: make clients"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return [program, *command[1:]]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"NO_PROXY": "*"}


def examples() -> dict[str, tuple[str, str]]:
    """Program and output of each example of docs/clients.md, by the first module that it imports."""
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = [re.split(r"\W+", program, maxsplit=2)[1] for program, _ in blocks]
    assert len(set(names)) == len(names)
    return dict(zip(names, blocks, strict=True))
