"""Classify sound files without a server: `python -m audiocnn clip.wav`.

`python -m audiocnn listen clip.wav` plays one to a running gateway and prints what it hears.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn import listen
from audiocnn.answer import render
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioError, BadOption, ModelFileError
from audiocnn.labels import describe
from audiocnn.options import Options
from audiocnn.precision import served

STORE = Path("model_store")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m audiocnn", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="sound files")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--top-k", default="3", help="classes per file (%(default)s)")
    parser.add_argument("--min-confidence", default="0", help="leave out what is less sure (%(default)s)")
    parser.add_argument(
        "--model", type=Path, help=f".onnx, .pt or checkpoint folder (the file that is served from {STORE})"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (all)")
    return parser.parse_args(arguments)


def answer_file(classifier: Classifier, path: Path, options: Options) -> dict[str, Any]:
    """The answer or the error of one file, as JSON-ready objects with its name in front."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return {"file": str(path), "error": {"code": "unreadable_file", "message": str(error)}}
    (result,) = classifier.classify([data], [options])
    if isinstance(result, AudioError):
        return {"file": str(path), **result.to_dict()}
    return {"file": str(path), **render(result, classifier.engine)}


def _add_rows(table: Table, answer: dict[str, Any]) -> None:
    name = escape(Path(answer["file"]).name)
    if error := answer.get("error"):
        table.add_row(name, "", f"[red]{error['code']}[/red]", escape(error["message"]))
        return
    flags = [word for word in ("is_silent", "is_unknown") if answer[word]] + answer["warnings"]
    for row in answer["predictions"]:
        label = describe(row["class"])
        table.add_row(name, label.emoji, row["class"], f"{row['confidence']:.3f}  {' '.join(flags)}")
        name = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all answered; 1: some files had errors; 2: the model or an option is wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["listen"]:
        return listen.main(words[1:])
    args = parse_arguments(words)
    try:
        classifier = Classifier.load(args.model or served(STORE), threads=args.threads)
        raw = {"top_k": args.top_k, "min_confidence": args.min_confidence}
        options = Options.parse(raw, classifier.config)
    except (ModelFileError, BadOption) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("file", "", "class", "confidence")
    failed = False
    for path in args.files:
        answer = answer_file(classifier, path, options)
        failed |= "error" in answer
        if args.json:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        else:
            _add_rows(table, answer)
    if not args.json:
        Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
