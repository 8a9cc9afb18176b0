"""Write an HTML report of an evaluation, with plots.

`report.html` is self-contained: the plots are embedded.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from audiocnn import command
from audiocnn.errors import DatasetError
from audiocnn.labels import describe
from training.plots import Report, class_words, write_plots

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 0 auto; padding: 1rem; max-width: 62rem; font: 1rem/1.5 system-ui, sans-serif; }}
img {{ max-width: 100%; height: auto; }}
td, th {{ padding: .2rem .7rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums; }}
td.n, th.n {{ text-align: right; }}
.worst td, .warning {{ font-weight: 600; color: #d1495b; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def render_page(report: Report, plots: dict[str, bytes]) -> str:
    """The page as HTML, from the report of `training.evaluate` and the PNG bytes of `write_plots`."""
    title = f"AudioCNN on {report['dataset']}, fold {', '.join(map(str, report['folds']))}"
    parts = [f"<h1>{escape(title)}</h1>", *_introduction(report), _summary(report)]
    parts += ["<h2>Classes</h2>", _classes(report)]
    parts += ["<h2>Most frequent mistakes</h2>", _mistakes(report)]
    parts += ["<h2>Confusion matrix</h2>", _image(plots["confusion"], "confusion matrix")]
    parts += [
        "<h2>Calibration</h2>",
        "<p>15 bins of equally many clips, with one standard error. Above the diagonal the model is "
        "underconfident, below it overconfident.</p>",
        _image(plots["reliability"], "reliability diagram"),
    ]
    if "robustness" in report:
        parts += ["<h2>Robustness</h2>", _robustness(report["robustness"])]
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def _introduction(report: Report) -> list[str]:
    text = (
        f"{report['num_clips']} clips, each decoded from its file by the serving code, without test-time "
        f"augmentation. Model <code>{escape(report['model_sha256'][:12])}</code>."
    )
    if not report["trained_on"]:
        return [f"<p>{text}</p>"]
    warning = f"The model was trained on fold {report['trained_on']}: this is not its accuracy on new clips."
    return [f"<p>{text}</p>", f'<p class="warning">{escape(warning)}</p>']


def _summary(report: Report) -> str:
    accuracy, count = report["accuracy"], report["num_clips"]
    error = (accuracy * (1 - accuracy) / count) ** 0.5  # standard error of a share of independent clips
    rows = [
        ("accuracy", f"{accuracy:.2%} ± {error:.1%}"),
        ("top-3 accuracy", f"{report['top3_accuracy']:.2%}"),
        ("macro F1", f"{report['macro_f1']:.3f}"),
        ("calibration error (ECE)", f"{report['ece']:.2%}"),
        ("negative log-likelihood", f"{report['nll']:.3f}"),
    ]
    if "accuracy_tta" in report:
        rows.append(("accuracy, mean of five shifts", f"{report['accuracy_tta']:.2%}"))
    return _table(("measure", "value"), rows)


def _classes(report: Report) -> str:
    """Precision, recall and F1 of every class, best F1 first."""
    ranked = sorted(report["per_class"].items(), key=lambda item: -item[1]["f1"])
    rows = [
        (_name(name), *(f"{row[key]:.2f}" for key in ("precision", "recall", "f1")), str(row["support"]))
        for name, row in ranked
    ]
    return _table(("class", "precision", "recall", "F1", "clips"), rows)


def _mistakes(report: Report) -> str:
    rows = [
        (f"{_name(row['true'])} → {_name(row['predicted'])}", str(row["count"]))
        for row in report["worst_confusions"]
    ]
    return _table(("true → predicted", "clips"), rows)


def _robustness(result: dict[str, Any]) -> str:
    rows = [("clean", f"{result['clean']:.2%}", "")]
    rows += [
        (escape(row["condition"]), f"{row['accuracy']:.2%}", f"{100 * row['difference']:+.2f}")
        for row in result["conditions"]
    ]
    worst = [row[0] for row in rows].index(escape(result["worst"]))
    return _table(("condition", "accuracy", "difference"), rows, worst=worst)


def _name(name: str) -> str:
    """The class for people, with its emoji, escaped."""
    return f"{describe(name).emoji} {escape(class_words(name))}"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, worst: int = -1) -> str:
    """A table of HTML cells; columns after the first are numbers, and the row `worst` is marked."""

    def line(tag: str, cells: Sequence[str], attribute: str = "") -> str:
        inner = "".join(f"<{tag}{' class=n' if i else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr{attribute}>{inner}</tr>"

    body = [line("td", row, " class=worst" if i == worst else "") for i, row in enumerate(rows)]
    return f"<table>{line('th', heads)}{''.join(body)}</table>"


def write_report(report: Report, folder: Path) -> Path:
    """Write plots and `report.html` of what `training.evaluate.evaluate` returned; returns the page's path.

    Raises `KeyError` for a report of an older version that lacks a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render_page(report, write_plots(report, folder)), encoding="utf-8")
    return page


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON that training.evaluate --json wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for page and plots")


@command.entry_point(_options, "metrics.json --out report")
def main(args: argparse.Namespace) -> None:
    """Write the report of a JSON file. Raises `DatasetError` if it cannot be used."""
    try:
        print(write_report(json.loads(args.file.read_text(encoding="utf-8")), args.out))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(str(error)) from error
    except KeyError as error:
        raise DatasetError(f"{args.file} has no {error}: measure again with training.evaluate") from error


if __name__ == "__main__":
    sys.exit(main())
