"""The import rule: what each part of the project may import of the others."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TOP = ("audiocnn", "training", "export", "handler", "benchmarks", "tests")
PARTS = ("client", "gateway", "batch", "torchserve")  # sub-packages of `audiocnn` beside its core
HEAVY = {"torch", "numpy", "soundfile", "onnxruntime"}  # what light modules do without
COMMANDS = (
    "bench",
    "cli",
    "classify",
    "detect",
    "listen",
    "__main__",
)  # modules of the command line; the core is all else
LIGHT_NAMES = (
    "config",
    "errors",
    "files",
    "inputs",
    "labels",
    "levels",
    "logs",
    "options",
    "private_folder",
    "probe",
    "request_body",
    "tables",
    "tracing",
)
LIGHT = {f"audiocnn.{name}" for name in LIGHT_NAMES}

# What the code outside `audiocnn` and every part of it may import beside itself.
ALLOWED = {
    "core": set(),
    "client": {"core"},
    "gateway": {"core", "client"},
    "torchserve": {"core", "client"},
    "batch": {"core"},
    "commands": {"core", *PARTS},
    "training": {"core", *PARTS},
    "export": {"core", *PARTS},
    "handler": {"core"},
}


def module_path(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@cache
def imports_of(path: Path, *, late: bool = True) -> set[str]:
    """All modules that a file imports, by dotted name; those inside functions too if `late`."""
    tree = ast.parse(path.read_text())
    nested = {
        id(node)
        for function in ([] if late else ast.walk(tree))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    names = set()
    for node in ast.walk(tree):
        if not late and id(node) in nested:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if module_path(name) else str(node.module) for name in inner}
    return names


def own_imports(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] in TOP}


def heavy_imports(path: Path) -> set[str]:
    return HEAVY & {name.split(".")[0] for name in imports_of(path)}


def part_of(name: str) -> str:
    """The part of the project that a module belongs to."""
    top, _, rest = name.partition(".")
    if top != "audiocnn":
        return top
    first = rest.split(".")[0]
    return first if first in PARTS else "commands" if first in COMMANDS else "core"


def files_of(package: str) -> list[tuple[str, Path]]:
    """Name and path of every module of a package."""
    found = []
    for path in sorted((ROOT / package).glob("**/*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def violations(name: str, path: Path) -> set[str]:
    part, ours = part_of(name), own_imports(path)
    if name == "audiocnn":  # `Client` and `AsyncClient`, loaded when they are asked for
        return {other for other in ours if part_of(other) not in ("core", "client")}
    found = {other for other in ours if part_of(other) not in ALLOWED[part] | {part}}
    if part == "client":
        found |= {other for other in ours if part_of(other) == "core" and other not in LIGHT}
    if name in LIGHT:
        found |= ours - LIGHT - {"audiocnn"}
    if part == "client" or name in LIGHT:
        found |= heavy_imports(path)
    return found


@pytest.mark.parametrize("package", ["audiocnn", "training", "export", "handler"])
def test_each_part_imports_only_what_it_may(package: str) -> None:
    files = files_of(package)
    assert files
    for name, path in files:
        assert violations(name, path) == set(), path


def test_the_command_line_imports_the_parts_late() -> None:
    early = imports_of(ROOT / "audiocnn" / "cli.py", late=False)
    assert {name for name in early if part_of(name) in PARTS} == set()


def test_light_modules_are_there() -> None:
    assert [name for name in sorted(LIGHT) if module_path(name) is None] == []
