"""What `audiocnn teach` reports: accuracy on left-out recordings, confusions, advice, and the model card."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn.config import Config
from audiocnn.model.card import front_matter
from audiocnn.printing import print_text
from audiocnn.teach.background import KINDS
from audiocnn.teach.features import FeatureTable
from audiocnn.teach.fit import FEW_CLIPS, REJECTED_SHARE, TaughtHead

_Z = 1.959964  # of a two-sided 95 % interval
_FEW_ERRORS = 3


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927), 0 to 1."""
    share, square = correct / count, _Z**2 / count
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / count / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(head: TaughtHead, table: FeatureTable) -> dict[str, Any]:
    """Numbers over left-out recordings, JSON-ready. Shares are from 0 to 1."""
    known = head.held_out.known
    predicted = known.probs.argmax(axis=1)
    is_unknown = known.probs.max(axis=1) < head.unknown_threshold
    correct = int((predicted == known.target).sum())
    pairs = Counter((int(t), int(p)) for t, p in zip(known.target, predicted, strict=True) if t != p)
    names = head.class_names
    return {
        "accuracy": head.held_out.accuracy,
        "interval": list(wilson_interval(correct, len(known.target))),
        "num_clips": len(known.target),
        "num_groups": head.held_out.num_groups,
        "known_refused": float(is_unknown.mean()),
        "classes": {name: _class_row(head, table, number) for number, name in enumerate(names)},
        "confusions": [[names[t], names[p], count] for (t, p), count in pairs.most_common()],
        "background_refused": _background_refused(head),
        "unknown_threshold": head.unknown_threshold,
    }


def _class_row(head: TaughtHead, table: FeatureTable, number: int) -> dict[str, Any]:
    known = head.held_out.known
    own = known.target == number
    recordings = {table.recordings[clip] for clip in known.clip[own]}
    share = float((known.probs[own].argmax(axis=1) == number).mean())
    return {"recordings": len(recordings), "clips": int(own.sum()), "correct": share}


def _background_refused(head: TaughtHead) -> float | None:
    """Share of the user's own background recordings that are unknown; None: there are none."""
    probs = head.held_out.probs[head.held_out.target == len(head.class_names)]
    if not len(probs):
        return None
    return float((probs.max(axis=1) < head.unknown_threshold).mean())


def print_report(summary: dict[str, Any], console: Console) -> None:
    """Print the numbers, a table of the classes, and advice."""
    low, high = summary["interval"]
    print_text(
        console,
        f"accuracy on recordings that were left out: {summary['accuracy']:.1%} of {summary['num_clips']} "
        f"clips (95 % interval {low:.1%} to {high:.1%})",
    )
    mistaken: dict[str, list[str]] = {}
    for true, predicted, count in summary["confusions"]:
        mistaken.setdefault(true, []).append(f"{predicted} {count}")
    table = Table("class", "recordings", "clips", "correct", "mistaken for")
    for name, row in summary["classes"].items():
        cells = (str(row["recordings"]), str(row["clips"]), f"{row['correct']:.0%}")
        table.add_row(escape(name), *cells, escape(", ".join(mistaken.get(name, [])[:_FEW_ERRORS])))
    console.print(table)
    print_text(console, _threshold_line(summary))
    print_text(console, advice(summary))


def _threshold_line(summary: dict[str, Any]) -> str:
    line = f"Unknown below a confidence of {summary['unknown_threshold']:.2f}"
    if summary["num_clips"] < FEW_CLIPS:
        return f"{line}: fewer than {FEW_CLIPS} clips are too few to measure a threshold."
    share = f"{summary['known_refused']:.1%} of the left-out clips"
    return f"{line}: {share}, about {REJECTED_SHARE:.0%} of new ones."


def advice(summary: dict[str, Any]) -> str:
    """The worst class, and what to record more of."""
    classes: dict[str, dict[str, Any]] = summary["classes"]
    worst = min(classes, key=lambda name: (classes[name]["correct"], classes[name]["recordings"]))
    if classes[worst]["correct"] == 1.0:
        fewest = min(classes, key=lambda name: classes[name]["recordings"])
        return (
            f"No class was mistaken. The fewest recordings are of {fewest} ({classes[fewest]['recordings']})."
        )
    rivals = [predicted for true, predicted, _ in summary["confusions"] if true == worst]
    return (
        f"Worst class: {worst} ({classes[worst]['correct']:.0%}). Record more of {worst}, in other places "
        f"and with other microphones, and of {rivals[0]}, which it is mistaken for."
    )


def model_card(config: Config, summary: dict[str, Any]) -> str:
    """Markdown."""
    own = config.provenance
    low, high = summary["interval"]
    rows = "\n".join(
        f"| {name} | {row['recordings']} | {row['clips']} | {row['correct']:.0%} |"
        for name, row in summary["classes"].items()
    )
    refused = summary["background_refused"]
    window = f"{config.frontend.clip_seconds:g} s at {config.frontend.sample_rate:,} Hz"
    background = (
        f"made sounds ({', '.join(kind.__name__ for kind in KINDS)})"
        if refused is None
        else f"the user's own recordings, {refused:.0%} of them refused when left out"
    )
    scores = {"accuracy": summary["accuracy"]}
    return f"""{front_matter(config, scores, "(left out)")}# Model card: {", ".join(config.class_names)}

Written by `audiocnn teach`.

## Model
Linear discriminant analysis (shrinkage {own["shrinkage"]:g}) on {config.embedding_size} features of
{own["attribution"]}.
Windows of {window}.

## Licence
The last layer belongs to the owner of the recordings. Licence of the network below it: {own["licence"]}; its
attribution, in `NOTICE`, goes with every copy of the ONNX file.

## Accuracy on recordings that were left out
{summary["accuracy"]:.1%} of {summary["num_clips"]} clips, 95 % interval {low:.1%} to {high:.1%}. Recordings
were left out in {summary["num_groups"]} groups, each predicted by a layer that was fitted without it.

| class | recordings | clips | correct |
|---|---|---|---|
{rows}

## Unknown sounds
{_threshold_line(summary)} Background: {background}.

## Out of scope
Uses where a missed or false detection causes harm: alarms, medicine, security, evidence.
"""


def notice(config: Config) -> str:
    """The attribution that the backbone's licence asks for."""
    own = config.provenance
    return (
        f"The ONNX files in this folder contain, unchanged but for their format, the weights of\n"
        f"{own['attribution']}\nLicence: {own['licence']}"
        f"{' (https://creativecommons.org/licenses/by/4.0/)' if own['licence'] == 'CC BY 4.0' else ''}.\n"
        "The last linear layer was fitted on the recordings of the person who made this folder.\n"
    )


def counts(table: FeatureTable) -> dict[str, int]:
    """Clips of each class of a table; made background is left out."""
    is_real = [digest != recording for digest, recording in zip(table.digests, table.recordings, strict=True)]
    labels = np.array(table.labels)[is_real]
    names, numbers = np.unique(labels, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, numbers, strict=True)}
