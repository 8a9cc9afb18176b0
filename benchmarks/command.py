"""What the benchmarks share on the command line: help with an example, a progress line, one line of JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

CONFIG = Path("config.properties")
STORE = Path("model_store")
CHECKPOINT = Path("checkpoints/esc50")


def new_parser(name: str, doc: str | None, example: str) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`, described by its docstring."""
    program = f"python -m benchmarks.{name}"
    return argparse.ArgumentParser(
        prog=program,
        description=doc,
        epilog=f"Example:\n  {program} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_path(parser: argparse.ArgumentParser, option: str, default: Path, help_text: str) -> None:
    """An option that takes a file or folder."""
    parser.add_argument(option, type=Path, default=default, help=f"{help_text} (%(default)s)")


def status_line(console: Console) -> Progress:
    """A spinner, the elapsed time and the current step, for runs whose length is not known."""
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)
