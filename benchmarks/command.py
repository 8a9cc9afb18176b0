"""What the benchmarks share on the command line: paths, and a progress line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

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


def print_rows(rows: Mapping[str, Mapping[str, float]], first: str) -> None:
    """Print a table to the standard error: a row for each key, which is in the column `first`."""
    table = Table(first, *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()))
    Console(stderr=True).print(table)
