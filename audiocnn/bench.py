"""Latency and throughput of a model file without a server: `audiocnn bench`.

Every row (provider, threads, batch) runs in processes of its own, in interleaved rounds, as
`onnxruntime_perf_test` measures: load, first run, warm-up, then run after run of the same random input. Only
the network is timed: neither decoding nor the spectrogram. `audiocnn tune` measures a whole server.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn import __version__
from audiocnn.machine import cpu_flags, cpu_name
from audiocnn.model import openvino_graph
from audiocnn.model.engine import BATCH_SIZES, INT8, Engine
from audiocnn.model.loading import find_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DEVICES = {"cpu": "cpu", "openvino": "cpu", "cuda": "cuda:0"}
PERCENTILES = (50, 90, 95, 99, 99.9)
_MIN_RUNS = 10


@dataclass(frozen=True)
class Cell:
    """A row of the table."""

    provider: str  # a key of `DEVICES`
    threads: int
    batch: int  # windows a run


@dataclass(frozen=True)
class Round:
    """What one process measured."""

    load_ms: float
    first_ms: float
    run_ms: list[float]
    cpu_percent: float  # of one core, during the timed runs
    peak_mb: float  # resident memory
    window_seconds: float


def measure(model: Path, cell: Cell, seconds: float, warm_up: int) -> Round:
    """Load and run the model in this process, for `seconds` and at least ten times."""
    os.environ[openvino_graph.VARIABLE] = "openvino" if cell.provider == "openvino" else "onnxruntime"
    began = time.perf_counter()
    engine = Engine(model, device=DEVICES[cell.provider], threads=cell.threads)
    load_ms = 1000 * (time.perf_counter() - began)
    config = engine.config.frontend
    noise = np.random.default_rng(0).normal(0, 0.1, config.window_samples).astype(np.float32)
    stack = np.stack([engine.prepare(noise)] * cell.batch)
    first_ms, *_ = [_run_ms(engine, stack) for _ in range(1 + warm_up)]
    times: list[float] = []
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds or len(times) < _MIN_RUNS:
        times.append(_run_ms(engine, stack))
    cpu_percent = 100 * (time.process_time() - cpu_began) / (time.perf_counter() - began)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Round(load_ms, first_ms, times, cpu_percent, peak_mb, config.clip_seconds)


def _run_ms(engine: Engine, stack: np.ndarray[Any, Any]) -> float:
    began = time.perf_counter()
    engine.run(stack)
    return 1000 * (time.perf_counter() - began)


def summary(cell: Cell, rounds: Sequence[Round]) -> dict[str, Any]:
    """A row of the table: all runs of all rounds together, medians of the rest."""
    times = np.concatenate([each.run_ms for each in rounds])
    clips_per_second = cell.batch * len(times) / (times.sum() / 1000)
    of_rounds = {
        name: round(float(np.median([getattr(each, name) for each in rounds])), 2)
        for name in ("load_ms", "first_ms", "cpu_percent", "peak_mb")
    }
    latencies = {"min_ms": times.min(), "mean_ms": times.mean()}
    latencies |= {f"p{p:g}_ms": np.percentile(times, p) for p in PERCENTILES}
    return (
        asdict(cell)
        | {"runs": len(times), "clips_per_second": round(clips_per_second, 2)}
        | {"times_real_time": round(clips_per_second * rounds[0].window_seconds, 1)}
        | {name: round(float(value), 3) for name, value in latencies.items()}
        | of_rounds
    )


def machine() -> dict[str, Any]:
    """Processor, its vector instructions, and versions."""
    flags = [flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma"))]
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "flags": " ".join(flags),
        "python": platform.python_version(),
        "audiocnn": __version__,
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    } | ({"openvino": metadata.version("openvino")} if openvino_graph.is_installed() else {})


def bench_rows(
    model: Path, cells: Sequence[Cell], *, seconds: float, rounds: int, warm_up: int
) -> list[dict[str, Any]]:
    """The table. Raises `ModelFileError` if the model cannot be loaded."""
    measured: dict[Cell, list[Round]] = {cell: [] for cell in cells}
    order = [cell for _ in range(rounds) for cell in cells]
    console = Console(stderr=True)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for cell in track(order, description="measuring", console=console, disable=not console.is_terminal):
            arguments = (model, cell, seconds / rounds, warm_up)
            measured[cell].append(pool.apply(measure, arguments))
    return [summary(cell, measured[cell]) for cell in cells]


def _numbers(text: str, name: str, allowed: Sequence[int] | None = None) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or (allowed and not set(found) <= set(allowed)):
        expected = ",".join(map(str, allowed)) if allowed else "whole numbers from 1, such as 1,2"
        raise typer.BadParameter(f"{text!r}: expected {expected}", param_hint=name)
    return found


def _providers(text: str, model: Path) -> list[str]:
    is_int8 = model.stem.endswith(INT8)
    if not text:
        return ["cpu", "openvino"] if is_int8 and openvino_graph.is_preferred() else ["cpu"]
    wanted = [name.strip() for name in text.split(",")]
    if not set(wanted) <= DEVICES.keys():
        raise typer.BadParameter(f"{text!r}: expected {','.join(DEVICES)}", param_hint="--providers")
    if "openvino" in wanted and not (is_int8 and openvino_graph.is_installed()):
        raise typer.BadParameter(
            f"OpenVINO runs int8 files, not {model.name}, and must be installed (pip install openvino)",
            param_hint="--providers",
        )
    return wanted


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "provider" else "right")
    for row in rows:
        table.add_row(*(f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 250).print(table)


@app.command(epilog="Example: audiocnn bench --threads 1,2 --batches 1,8 --csv bench.csv")
def bench(
    model: Annotated[
        Path | None, typer.Option(help="A model file or folder.  [default: the served one]")
    ] = None,
    batches: Annotated[str, typer.Option(help="Windows a run.")] = "1,8",
    threads: Annotated[str, typer.Option(help="CPU threads.  [default: 1 and all]")] = "",
    providers: Annotated[
        str,
        typer.Option(
            help="`cpu` and `cuda` are ONNX Runtime's.  [default: cpu, and openvino if it is used here]"
        ),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="Time of every row.")] = 6.0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs that are not counted, in every round.")] = 10,
    to_csv: Annotated[Path | None, typer.Option("--csv", help="Write the table.")] = None,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the table and the machine.")] = None,
) -> None:
    """Measure latency and throughput of a model. Exit code 2: no such model, provider or number."""
    path = find_model(model)
    wanted = _providers(providers, path)
    cores = os.cpu_count() or 1
    counts = _numbers(threads or ",".join(map(str, sorted({1, cores}))), "--threads")
    sizes = _numbers(batches, "--batches", BATCH_SIZES)
    cells = [Cell(*each) for each in product(wanted, counts, sizes)]
    rows = bench_rows(path, cells, seconds=seconds, rounds=rounds, warm_up=warm_up)
    _write(rows, path, to_csv, to_json)
    print(f"{path}, {', '.join(f'{name} {value}' for name, value in machine().items())}")
    _print_table(rows)


def _write(rows: Sequence[dict[str, Any]], model: Path, to_csv: Path | None, to_json: Path | None) -> None:
    if to_csv:
        with to_csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if to_json:
        document = {"model": str(model), "machine": machine(), "rows": rows}
        to_json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
