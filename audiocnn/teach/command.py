"""Teach a model your own sounds: `audiocnn teach FOLDER --out mine`, with a folder for each class."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from audiocnn import __version__
from audiocnn.arrays import FloatArray
from audiocnn.backbone.backbone import NAMES, Backbone
from audiocnn.config import Config
from audiocnn.datasets import LabelledClip, check_labels
from audiocnn.errors import DatasetError
from audiocnn.files import check_writable, write_text
from audiocnn.printing import json_line, print_text
from audiocnn.teach import artefact, int8, report
from audiocnn.teach.background import COUNT
from audiocnn.teach.examples import (
    BACKGROUND,
    Example,
    check_contents,
    check_recordings,
    load_clips,
    read_examples,
    refuse,
)
from audiocnn.teach.features import MADE, FeatureTable, compute, made_table, view_features, views_for
from audiocnn.teach.fit import TaughtHead, fit

_COMPARED = 8  # windows on which the written file is compared with the features

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Teaching:
    """What `teach` made."""

    config: Config
    summary: dict[str, Any]
    warnings: list[str]


def teach(
    source: Path,
    out: Path,
    *,
    backbone: str | None = None,
    background: Path | None = None,
    add: bool = False,
    threads: int | None = None,
    console: Console | None = None,
) -> Teaching:
    """Fit a head on the clips of `source` and write the folder `out`; with `add` the classes in `out` stay.

    `backbone` None: `aisfx`, or the one that `out` was taught with. Raises `DatasetError` for clips that
    cannot be used, `ModelFileError` for a backbone or folder.
    """
    began, console = time.monotonic(), console or Console(quiet=True)
    known = _known(out, backbone) if add else None
    network = Backbone(_backbone_name(out, backbone, add=add), threads=threads)
    print_text(console, f"backbone {network.name}: {network.attribution}")
    check_writable(out)
    table, clips, warnings = _features(read_examples(source, background), network, known, console)
    with console.status("fitting, leaving each recording out in turn"):
        head = fit(table)
    summary = report.summarise(head, table)
    config = _config(head, table, network, summary)
    _write(out, config, head, table, network, summary, clips)
    seconds = round(time.monotonic() - began, 1)
    return Teaching(config, summary | {"seconds": seconds}, warnings)


def _known(out: Path, backbone: str | None) -> FeatureTable:
    own = artefact.read_config(out).provenance
    if backbone and backbone != own["backbone"]:
        raise DatasetError(
            f"{out} was taught with the backbone {own['backbone']}: add to it without --backbone, or teach "
            "all classes again"
        )
    return FeatureTable.load(out / artefact.FEATURES)


def _backbone_name(out: Path, backbone: str | None, *, add: bool) -> str:
    return str(artefact.read_config(out).provenance["backbone"]) if add else backbone or NAMES[0]


def _features(
    dataset: Any, network: Backbone, known: FeatureTable | None, console: Console
) -> tuple[FeatureTable, list[Example], list[str]]:
    """The table to fit on, with that of earlier classes, the new clips, and warnings."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        reading = progress.add_task("reading", total=len(dataset.clips))
        clips = _load(dataset.clips, network, lambda: progress.advance(reading))
        pairs = [(str(clip.path), clip.label, clip.sha256) for clip in clips]
        before = [] if known is None else list(zip(known.names, known.labels, known.digests, strict=True))
        check_contents([*before, *pairs])
        labels = [clip.label for clip in clips] + list(known.labels if known else ())
        check_labels(set(labels))
        recordings = [clip.recording for clip in clips] + list(known.recordings if known else ())
        warnings = check_recordings(labels, recordings)
        needs_made = BACKGROUND not in labels
        num_windows = sum(len(clip.windows) for clip in clips)
        views = views_for(num_windows, 2 * _COMPARED + COUNT * needs_made)
        total = num_windows * len(views) + COUNT * needs_made
        computing = progress.add_task("computing features", total=total)

        def advance(count: int) -> None:
            progress.advance(computing, count)

        table = compute(clips, network, views, advance)
        if needs_made:
            table = table.merged(made_table(network, advance))
    return (known.merged(table) if known else table), clips, warnings


def _load(rows: Sequence[LabelledClip], network: Backbone, advance: Callable[[], None]) -> list[Example]:
    clips: list[Example] = []
    problems: list[str] = []
    for loaded in load_clips(rows, network.frontend):
        (problems if isinstance(loaded, str) else clips).append(loaded)  # type: ignore[arg-type]
        advance()
    refuse(problems)
    return clips


def _config(head: TaughtHead, table: FeatureTable, network: Backbone, summary: dict[str, Any]) -> Config:
    provenance = {
        "taught_by": f"audiocnn {__version__}",
        "backbone": network.name,
        "attribution": network.attribution,
        "licence": network.licence,
        "licence_id": network.licence_id,
        "clips": report.counts(table),
        "background": "made" if any(name.startswith(MADE) for name in table.names) else "recorded",
        "background_left_out": list(head.resembling),
        "passes": len(table.features),
        "shrinkage": head.shrinkage,
        "accuracy": summary["accuracy"],
        "interval": summary["interval"],
    }
    return Config(
        class_names=head.class_names,
        frontend=network.frontend,
        model=None,
        embedding_size=head.weight.shape[1],
        has_background=True,
        unknown_threshold=head.unknown_threshold,
        thresholds=head.thresholds,
        fingerprint=network.fingerprint,
        provenance=provenance,
    )


def _write(
    out: Path,
    config: Config,
    head: TaughtHead,
    table: FeatureTable,
    network: Backbone,
    summary: dict[str, Any],
    clips: Sequence[Example],
) -> None:
    metadata = artefact.metadata_of(config, network.metadata())
    name = artefact.model_name(network.path)
    artefact.write_model(network.path, head, metadata, out / name)
    for other in {artefact.MODEL, artefact.MODEL_INT8} - {name}:
        (out / other).unlink(missing_ok=True)
    windows = np.concatenate([clip.windows for clip in clips])
    expected = head.logits(view_features(windows[:_COMPARED], "clean", network))
    summary["parity"] = artefact.check_parity(out / name, windows[:_COMPARED], expected)
    serves = name
    if network.takes_waveform:
        serves, summary["int8"] = _quantise(out, windows)
    table.save(out / artefact.FEATURES)
    write_text(out / artefact.CONFIG, config.to_json())
    write_text(out / artefact.CARD, report.model_card(config, summary))
    write_text(out / artefact.NOTICE, report.notice(config))
    artefact.write_reports(out, name, serves, {"taught": summary})


def _quantise(out: Path, windows: FloatArray) -> tuple[str, dict[str, float]]:
    """The name of the file to serve, and how int8 compares with float32; int8 that differs is removed."""
    chosen, path = int8.chosen(windows), out / artefact.MODEL_INT8
    int8.write_int8(out / artefact.MODEL, chosen, path)
    comparison = int8.compare(path, out / artefact.MODEL, chosen)
    if int8.is_acceptable(comparison):
        return artefact.MODEL_INT8, comparison
    path.unlink()
    return artefact.MODEL, comparison


@app.command(epilog="Example: audiocnn teach recordings/ --out mine")
def main(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder for each class, or a CSV with filename and label."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the model.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="aisfx (CC BY 4.0; downloaded once), released (offline; non-commercial), or an .onnx file "
            "of this project (aisfx).",
        ),
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Recordings without any of the classes (sounds that are made)."),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the classes that --out has already.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as one JSON line.")] = False,
) -> None:
    """Teach a model your own sounds from a few recordings of each. Exit code 2: clips that cannot be used."""
    console = Console(stderr=as_json)
    taught = teach(
        source, out, backbone=backbone, background=background, add=add, threads=threads, console=console
    )
    for warning in taught.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    report.print_report(taught.summary, console)
    print_text(
        console,
        f"{taught.summary['seconds']:g} s. The model is in {out} (licence of the backbone: "
        f"{taught.config.provenance['licence']}, see {out / artefact.NOTICE}).\n"
        f"  audiocnn classify --model {out} FILE\n  make serve CHECKPOINT={out}",
    )
    if as_json:
        print(json_line(taught.summary))
