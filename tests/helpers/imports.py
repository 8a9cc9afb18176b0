"""What the files of the project import."""

from __future__ import annotations

import ast
from pathlib import Path

OURS = ("audiocnn", "training", "export", "handler", "gateway", "batch", "benchmarks")


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
