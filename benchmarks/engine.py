"""Throughput of the bare network: `python -m benchmarks.engine`.

Engines x batch x threads, in interleaved rounds of separate processes (the thread pools of a process cannot
be resized): median clips a second, and their share of the machine's limit, which is the speed of a large
float32 matrix product with as many threads in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from audiocnn import command
from audiocnn.model import checkpoint, openvino_graph
from audiocnn.model.engine import Engine
from benchmarks.command import CHECKPOINT, STORE, add_path

_OPENVINO = "openvino int8"
MATRIX = 1536  # of the large product: 28 MB of operands, more than a cache keeps
Key = tuple[str, int, int]  # engine, batch, threads


def flops_per_clip(folder: Path) -> int:
    """Multiplications and additions of the network for one window."""
    config, _, model = checkpoint.load(folder)
    log_mel = torch.zeros(1, 1, config.frontend.n_mels, config.frontend.num_frames)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(log_mel)
    return int(counter.get_total_flops())


def engines(checkpoint_folder: Path, store: Path) -> dict[str, Path]:
    """The existing files for `Engine` by name."""
    names = {"onnx float32": "audiocnn.onnx", "onnx int8": "audiocnn-int8.onnx", "torchscript": "audiocnn.pt"}
    if openvino_graph.is_installed():
        names[_OPENVINO] = "audiocnn-int8.onnx"
    files = {name: store / file for name, file in names.items() if (store / file).is_file()}
    return {"eager": checkpoint_folder} | files


def rate(function: Callable[[], object], seconds: float) -> float:
    """Calls a second, median, after two calls of warm-up."""
    times: list[float] = []
    for _ in range(2):
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


def matrix_gflops(seconds: float, threads: int, device: str) -> float:
    """GFLOP/s of a large float32 matrix product: the better of PyTorch's and, on a CPU, ONNX Runtime's.

    MKL on AMD reaches less than half of the machine's limit.
    """
    a, b = torch.rand(MATRIX, MATRIX, device=device), torch.rand(MATRIX, MATRIX, device=device)
    products: list[Callable[[], object]] = [lambda: float((a @ b)[0, 0])]  # indexing waits for a GPU
    if device == "cpu":
        session = _matrix_session(threads)
        feed = {"a": a.numpy(), "b": b.numpy()}
        products.append(lambda: session.run(["product"], feed))
    return max(rate(product, seconds) for product in products) * 2 * MATRIX**3 / 1e9


def _matrix_session(threads: int) -> Any:
    kind = f"float[{MATRIX},{MATRIX}]"
    graph = f"matmul ({kind} a, {kind} b) => ({kind} product) {{ product = MatMul(a, b) }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {graph}')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure_here(
    paths: dict[str, Path], batches: list[int], threads: int, seconds: float, device: str
) -> tuple[dict[Key, float], float]:
    """One round in this process: clips/s, and GFLOP/s of the matrix product."""
    torch.set_num_threads(threads)
    limit, rates = matrix_gflops(seconds, threads, device), {}
    for name, path in paths.items():
        os.environ[openvino_graph.VARIABLE] = "openvino" if name == _OPENVINO else "onnxruntime"
        engine = Engine(path, device=device, threads=threads)
        config = engine.config.frontend
        log_mels = np.random.default_rng(0).normal(size=(max(batches), 1, config.n_mels, config.num_frames))
        for batch in batches:
            chunk = log_mels[:batch].astype(np.float32)
            calls = rate(lambda e=engine, x=chunk: e.run(x), seconds)  # type: ignore[misc]
            rates[name, batch, threads] = calls * batch
    return rates, limit


def measure(args: argparse.Namespace) -> tuple[dict[Key, list[float]], dict[int, list[float]]]:
    """All rounds, each number of threads in a process of its own: clips/s, and GFLOP/s by threads."""
    rates: dict[Key, list[float]] = {}
    limits: dict[int, list[float]] = {}
    paths = engines(args.checkpoint, args.store)
    if args.device != "cpu":
        paths.pop("onnx int8", None)
    jobs = [threads for _ in range(args.rounds) for threads in args.threads]
    for threads in track(jobs, "measuring", console=Console(stderr=True)):
        # A second pool of spinning threads halves the speed.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found, limit = pool.apply(measure_here, (paths, args.batches, threads, args.seconds, args.device))
        limits.setdefault(threads, []).append(limit)
        for key, value in found.items():
            rates.setdefault(key, []).append(value)
    return rates, limits


def rows_of(
    rates: dict[Key, list[float]], limits: dict[int, list[float]], gflop: float
) -> list[dict[str, Any]]:
    """Medians of each measurement, fastest first."""
    rows = []
    for (engine, batch, threads), values in rates.items():
        shares = [value * gflop / limit for value, limit in zip(values, limits[threads], strict=True)]
        row = {"engine": engine, "batch": batch, "threads": threads}
        row |= {"clips_per_second": statistics.median(values), "share_of_limit": statistics.median(shares)}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["clips_per_second"])


def summarise(rates: dict[Key, list[float]], limits: dict[int, list[float]], gflop: float) -> dict[str, Any]:
    """The JSON line. Ratios are medians over rounds, between the best settings of two engines."""
    rows = rows_of(rates, limits, gflop)
    best = {row["engine"]: row for row in reversed(rows)}

    def ratio(ours: str, theirs: str) -> float | None:
        if ours not in best or theirs not in best:
            return None
        a, b = (rates[(name, best[name]["batch"], best[name]["threads"])] for name in (ours, theirs))
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    return {
        "int8_over_fp32": ratio("onnx int8", "onnx float32"),
        "openvino_over_onnx_int8": ratio(_OPENVINO, "onnx int8"),
        "int8_over_eager": ratio("onnx int8", "eager"),
        "onnx_over_eager": ratio("onnx float32", "eager"),
        "share_of_limit": best.get("onnx float32", rows[0])["share_of_limit"],
        "gflop_per_clip": gflop,
        "gflops_limit": {str(threads): statistics.median(values) for threads, values in limits.items()},
        "rows": rows,
    }


def print_table(rows: list[dict[str, Any]], device: str) -> None:
    """Print a row for each measurement. int8 may exceed the float32 limit."""
    table = Table("engine", "batch", "threads", "clips/s", "of the float32 limit", title=f"on {device}")
    for row in rows:
        numbers = [f"{row['clips_per_second']:.1f}", f"{row['share_of_limit']:.0%}"]
        table.add_row(row["engine"], str(row["batch"]), str(row["threads"]), *numbers)
    Console().print(table)


def _options(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    add_path(parser, "--checkpoint", CHECKPOINT, "checkpoint folder")
    add_path(parser, "--store", STORE, "folder of exported files")
    parser.add_argument("--batches", type=command.count, nargs="+", default=[1, 2, 4, 8], help="(1 2 4 8)")
    parser.add_argument(
        "--threads", type=command.count, nargs="+", default=sorted({1, cores}), help="(1 and all)"
    )
    parser.add_argument("--seconds", type=command.positive, default=2.0, help="per measurement (%(default)s)")
    parser.add_argument("--rounds", type=command.count, default=5, help="interleaved rounds (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0; int8 runs on CPUs only (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="batches 1 and 8, 3 rounds of half a second")


@command.entry_point(_options, "--batches 1 8 --threads 1")
def main(args: argparse.Namespace) -> None:
    """Entry point; the last line is JSON."""
    if args.quick:
        args.batches, args.seconds, args.rounds = [1, 8], 0.5, 3
    summary = summarise(*measure(args), flops_per_clip(args.checkpoint) / 1e9)
    print_table(summary["rows"], args.device)
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
