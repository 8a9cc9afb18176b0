"""What the benchmarks share on the command line: paths, and a progress line."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

CONFIG = Path("config.properties")
STORE = Path("model_store")
CHECKPOINT = Path("checkpoints/esc50")


def add_path(parser: argparse.ArgumentParser, option: str, default: Path, help_text: str) -> None:
    """An option that takes a file or folder."""
    parser.add_argument(option, type=Path, default=default, help=f"{help_text} (%(default)s)")


def status_line(console: Console) -> Progress:
    """A spinner, the elapsed time and the current step, for runs whose length is not known."""
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)
