"""What `training.evaluate` measured, as pictures and one page: `python -m training.report FILE --out DIR`.

`report.html` needs nothing beside it: the pictures are inside, each for a light and for a dark screen.
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

from audiocnn.labels import describe
from training.plots import DARK, LIGHT, Report, by_f1, draw, words

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: {light.paper}; --ink: {light.ink}; --faint: {light.faint}; --good: {light.good};
  --bad: {light.bad}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: {dark.paper}; --ink: {dark.ink};
  --faint: {dark.faint}; --good: {dark.good}; --bad: {dark.bad}; }} }}
body {{ margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: .5rem 0; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .4rem; }}
p {{ margin: .4rem 0; max-width: 44rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; }}
.tiles div {{ border: 1px solid var(--faint); border-radius: .5rem; padding: .5rem .8rem; }}
.tiles b {{ display: block; font-size: 1.45rem; font-weight: 600; color: var(--good); }}
.tiles span {{ font-size: .85rem; }}
.wide {{ overflow-x: auto; }}
.wide img {{ min-width: 48rem; }}
img {{ width: 100%; height: auto; display: block; }}
.small img {{ max-width: 40rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid var(--faint); }}
td.n, th.n {{ text-align: right; }}
tr.worst td, .warning {{ color: var(--bad); font-weight: 600; }}
summary {{ cursor: pointer; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def render_page(report: Report, pictures: dict[str, dict[str, bytes]]) -> str:
    """The whole page as HTML."""
    title = f"AudioCNN on {report['dataset']}, {_folds(report)}"
    parts = [f"<h1>{escape(title)}</h1>", _introduction(report), _tiles(report)]
    parts += ["<h2>Which sounds</h2>", _picture(pictures["f1"], "F1 of every class", "small")]
    parts += [_class_table(report), "<h2>What is taken for what</h2>", _mistakes(report)]
    parts += [
        "<p>Clips by what they are (rows) and what they were heard as (columns). The lines part the groups "
        "of classes; on a small screen the picture scrolls sideways.</p>",
        _picture(pictures["confusion"], "confusion matrix", "wide"),
    ]
    parts += [
        "<h2>How far the confidence can be believed</h2>",
        "<p>Clips sorted by confidence, in 15 bins of equal size; the bars are one standard error. "
        "Above the line the model is better than it says, below it is too sure.</p>",
        _picture(pictures["reliability"], "reliability curve", "small"),
    ]
    if "robustness" in report:
        parts += ["<h2>Away from the benchmark</h2>", _robustness(report["robustness"])]
        parts += [_picture(pictures["robustness"], "accuracy under every condition", "small")]
    return _PAGE.format(title=escape(title), body="\n".join(parts), light=LIGHT, dark=DARK)


def _folds(report: Report) -> str:
    folds = ", ".join(str(fold) for fold in report["folds"])
    return f"fold{'s' if len(report['folds']) > 1 else ''} {folds}"


def _introduction(report: Report) -> str:
    lines = [
        f"<p>{report['num_clips']} clips, each sent as a file through the code that serves, once, without "
        f"test-time augmentation. Model <code>{escape(report['model_sha256'][:12])}</code>.</p>"
    ]
    if report["trained_on"]:
        lines.append(
            f'<p class="warning">The model was trained on fold {escape(str(report["trained_on"]))}: this is '
            "not its accuracy.</p>"
        )
    return "\n".join(lines)


def _tiles(report: Report) -> str:
    accuracy, n = report["accuracy"], report["num_clips"]
    error = (accuracy * (1 - accuracy) / n) ** 0.5  # of a share of n independent clips
    tiles = [
        (f"{accuracy:.2%}", f"accuracy, ± {100 * error:.1f} standard error"),
        (f"{report['top3_accuracy']:.2%}", "true class in the top 3"),
        (f"{report['macro_f1']:.3f}", "macro F1"),
        (f"{report['ece']:.2%}", "calibration error (ECE)"),
        (f"{report['nll']:.3f}", "negative log-likelihood"),
    ]
    if "accuracy_tta" in report:
        tiles.append((f"{report['accuracy_tta']:.2%}", "with five shifts averaged, for comparison"))
    if "robustness" in report:
        result = report["robustness"]
        worst = next(row for row in result["conditions"] if row["condition"] == result["worst"])
        tiles.append((f"{worst['accuracy']:.2%}", f"worst condition: {escape(result['worst'])}"))
    return f'<div class="tiles">{"".join(f"<div><b>{a}</b><span>{b}</span></div>" for a, b in tiles)}</div>'


def _picture(themes: dict[str, bytes], alt: str, kind: str) -> str:
    light, dark = (f"data:image/png;base64,{base64.b64encode(themes[t]).decode()}" for t in ("light", "dark"))
    return (
        f'<div class="{kind}"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{alt}" src="{light}"></picture></div>'
    )


def _name(name: str) -> str:
    """The class for people, with its emoji, safe in HTML."""
    return f"{describe(name).emoji} {escape(words(name))}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, worst: int = -1) -> str:
    """Rows of HTML cells, the first column words, the others numbers."""

    def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
        inner = "".join(f"<{tag}{' class=n' if i else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr{kind}>{inner}</tr>"

    body = [line("td", row, " class=worst" if i == worst else "") for i, row in enumerate(rows)]
    return "<table>" + line("th", heads) + "".join(body) + "</table>"


def _class_table(report: Report) -> str:
    rows = [
        (_name(name), f"{r['precision']:.2f}", f"{r['recall']:.2f}", f"{r['f1']:.2f}", str(r["support"]))
        for name, r in by_f1(report)
    ]
    table = _table(("class", "precision", "recall", "F1", "clips"), rows)
    return f"<details><summary>All numbers</summary><div class=wide>{table}</div></details>"


def _mistakes(report: Report) -> str:
    if not report["worst_confusions"]:
        return "<p>Nothing: every clip was named rightly.</p>"
    rows = [
        (f"{_name(row['true'])} → {_name(row['predicted'])}", str(row["count"]))
        for row in report["worst_confusions"]
    ]
    return _table(("is → heard as", "clips"), rows)


def _robustness(result: dict[str, Any]) -> str:
    rows = [("clean", f"{result['clean']:.2%}", "")]
    rows += [
        (escape(r["condition"]), f"{r['accuracy']:.2%}", f"{100 * r['difference']:+.2f}")
        for r in result["conditions"]
    ]
    worst = [row[0] for row in rows].index(escape(result["worst"]))
    return _table(("condition", "accuracy", "difference"), rows, worst=worst)


def write_report(report: Report, folder: Path) -> Path:
    """Write the pictures and `report.html` of what `training.evaluate.evaluate` returned; the page's path.

    Raises `KeyError` for the numbers of an older evaluation that lack something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render_page(report, draw(report, folder)), encoding="utf-8")
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="what evaluate --json wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and report.html")
    args = parser.parse_args(arguments)
    try:
        print(write_report(json.loads(args.file.read_text(encoding="utf-8")), args.out))
    except (OSError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"error: {args.file} has no {error}: measure again with training.evaluate", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
