"""Label sound files without a server: `audiocnn classify rain.wav`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn import inputs
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioError
from audiocnn.files import as_text
from audiocnn.inputs import Notes, short_names
from audiocnn.labels import describe
from audiocnn.options import Options
from audiocnn.printing import json_line

_STANDARD_INPUT = "-"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def classify_file(classifier: Classifier, path: str, options: Options) -> dict[str, Any]:
    """The answer or the error of one file, as JSON-ready objects with its name in front."""
    try:
        answer = classifier.predict(sys.stdin.buffer if path == _STANDARD_INPUT else path, options).to_dict()
    except OSError as error:
        answer = {"error": {"code": "unreadable_file", "message": str(error)}}
    except AudioError as error:
        answer = error.to_dict()
    return {"file": path, **answer}


def add_rows(table: Table, name: str, answer: dict[str, Any]) -> None:
    """The rows of a file that could be read: its classes; of a long one, those of its windows as well."""
    name = escape(as_text(name))
    if answer["is_silent"]:
        table.add_row(name, "", "silence", "")
        return
    flags = ["is_unknown"] * answer["is_unknown"] + answer["warnings"]
    for row in answer["predictions"]:
        table.add_row(name, *_cells(row), escape(" ".join(flags)))
        name, flags = "", []
    for window in answer.get("windows", []):
        table.add_row("", *_cells(window), f"{window['start']:.1f} to {window['end']:.1f} s", style="dim")


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return describe(row["class"]).emoji, escape(row["class"]), f"{row['confidence']:.3f}"


@app.command(epilog="Example: audiocnn classify recordings/ '*.flac' --json")
def classify(
    paths: Annotated[
        list[str], typer.Argument(metavar="FILES", help="Files, folders, globs, or - for standard input.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of a table.")
    ] = False,
    top_k: Annotated[str, typer.Option(help="Classes per file.")] = "3",
    min_confidence: Annotated[str, typer.Option(help="Leave out less confident classes.")] = "0",
    model: Annotated[
        Path | None,
        typer.Option(help=".onnx, .pt or folder (model_store, else the released model)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """Label sound files. Exit code 0: all answered; 1: some files had errors; 2: wrong model or option."""
    classifier = Classifier.load(model, threads=threads)
    options = Options.parse({"top_k": top_k, "min_confidence": min_confidence}, classifier.config)
    table, errors = Table("file", "", "class", "confidence", ""), []
    found = inputs.find_all(paths, Notes(), keep_missing=True)
    names = short_names([path for path in found if path != _STANDARD_INPUT])
    for path in found:
        answer = classify_file(classifier, path, options)
        if as_json:
            print(json_line(answer), flush=True)
        elif "error" not in answer:
            add_rows(table, names.get(path, path), answer)
        if "error" in answer:
            errors.append(answer)
    if not as_json:
        if table.row_count:
            Console().print(table)
        for answer in errors:
            reason = answer["error"]
            print(f"{answer['file']}: {reason['code']}: {reason['message']}", file=sys.stderr)
    raise typer.Exit(int(bool(errors)))
