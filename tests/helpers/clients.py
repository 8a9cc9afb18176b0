"""Programs in the environment of public clients, `.clients`, which `make clients` installs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDER = ROOT / ".clients"
DOCUMENT = ROOT / "docs" / "clients.md"


def run_client(command: Sequence[str | Path], *, folder: Path = ROOT, path: Path | None = None) -> str:
    """What a program of the clients' environment prints; `path` is added to its modules."""
    if not (FOLDER / "bin" / command[0]).is_file():
        message = "the public clients are not installed: make clients"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [FOLDER / "bin" / command[0], *command[1:]],
        cwd=folder,
        env=environment | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def examples() -> dict[str, tuple[str, str]]:
    """Program and output of each example of docs/clients.md, by the first module that it imports."""
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = [re.split(r"[ .]", program.split(maxsplit=1)[1])[0] for program, _ in blocks]
    assert len(set(names)) == len(names)
    return dict(zip(names, blocks, strict=True))
