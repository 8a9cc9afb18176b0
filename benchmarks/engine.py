"""How fast the bare network runs: `python -m benchmarks.engine`.

Engines x batch x threads, in interleaved rounds of processes of their own (a process's thread pools
cannot be resized), medians, in clips a second; and against the machine's limit: the network's
arithmetic over that of a large matrix product, float32, with as many threads, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
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

from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine

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
    """Name -> what `Engine` loads, for the files that there are."""
    names = {"onnx float32": "audiocnn.onnx", "onnx int8": "audiocnn-int8.onnx", "torchscript": "audiocnn.pt"}
    files = {name: store / file for name, file in names.items() if (store / file).is_file()}
    return {"eager": checkpoint_folder} | files


def rate(function: Callable[[], object], seconds: float) -> float:
    """Calls a second of a function, median over calls, after two unmeasured ones."""
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

    On one processor the first may be less than half of what the machine can do: Intel's library on AMD's.
    """
    a, b = torch.rand(MATRIX, MATRIX, device=device), torch.rand(MATRIX, MATRIX, device=device)
    products: list[Callable[[], object]] = [lambda: float((a @ b)[0, 0])]  # which waits for a GPU
    if device == "cpu":
        session = _matrix_session(threads)
        feed = {"a": a.numpy(), "b": b.numpy()}
        products.append(lambda: session.run(["product"], feed))
    return max(rate(product, seconds) for product in products) * 2 * MATRIX**3 / 1e9


def _matrix_session(threads: int) -> Any:
    a, b, product = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [MATRIX, MATRIX])
        for name in ("a", "b", "product")
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["product"])], "matmul", [a, b], [product]
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure_here(
    paths: dict[str, Path], batches: list[int], threads: int, seconds: float, device: str
) -> Any:
    """One round in this process: clips/s by engine and batch, and GFLOP/s of the matrix product."""
    torch.set_num_threads(threads)
    result: dict[str, Any] = {"gflops": matrix_gflops(seconds, threads, device)}
    for name, path in paths.items():
        engine = Engine(path, device=device, threads=threads)
        config = engine.config.frontend
        log_mels = np.random.default_rng(0).normal(size=(max(batches), 1, config.n_mels, config.num_frames))
        for batch in batches:
            chunk = log_mels[:batch].astype(np.float32)
            calls = rate(lambda e=engine, x=chunk: e.run(x), seconds)  # type: ignore[misc]
            result[f"{name}/{batch}"] = calls * batch
    return result


def measure(args: argparse.Namespace) -> tuple[dict[Key, list[float]], dict[int, list[float]]]:
    """All rounds, each number of threads in a process of its own: clips/s, and GFLOP/s by threads."""
    rates: dict[Key, list[float]] = {}
    limits: dict[int, list[float]] = {}
    jobs = [threads for _ in range(args.rounds) for threads in args.threads]
    for threads in track(jobs, "measuring", console=Console(stderr=True)):
        command = [sys.executable, "-m", "benchmarks.engine", "--one-round", str(threads)]
        command += ["--seconds", str(args.seconds), "--batches", *map(str, args.batches)]
        command += ["--checkpoint", str(args.checkpoint), "--store", str(args.store), "--device", args.device]
        # A pool of waiting threads beside the measured one halves its speed.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        for name, value in json.loads(done.stdout).items():
            if name == "gflops":
                limits.setdefault(threads, []).append(value)
            else:
                engine, _, batch = name.partition("/")
                rates.setdefault((engine, int(batch), threads), []).append(value)
    return rates, limits


def summarise(
    rates: dict[Key, list[float]], limits: dict[int, list[float]], gflop: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, fastest first, and the ratios: of each engine's best setting, round by round, median."""
    rows: list[dict[str, Any]] = []
    for (engine, batch, threads), values in rates.items():
        clips = statistics.median(values)
        share = statistics.median(v * gflop / limit for v, limit in zip(values, limits[threads], strict=True))
        rows.append(
            {
                "engine": engine,
                "batch": batch,
                "threads": threads,
                "clips_per_second": clips,
                "share_of_limit": share,
            }
        )
    rows.sort(key=lambda row: -row["clips_per_second"])
    best: dict[str, dict[str, Any]] = {row["engine"]: row for row in reversed(rows)}

    def ratio(ours: str, theirs: str) -> float | None:
        if ours not in best or theirs not in best:
            return None
        a, b = (rates[(name, best[name]["batch"], best[name]["threads"])] for name in (ours, theirs))
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    summary = {
        "int8_over_fp32": ratio("onnx int8", "onnx float32"),
        "int8_over_eager": ratio("onnx int8", "eager"),
        "onnx_over_eager": ratio("onnx float32", "eager"),
        "share_of_limit": best.get("onnx float32", rows[0])["share_of_limit"],
        "gflop_per_clip": gflop,
        "gflops_limit": {str(threads): statistics.median(values) for threads, values in limits.items()},
        "rows": rows,
    }
    return rows, summary


def print_table(rows: list[dict[str, Any]], device: str) -> None:
    """For people. The limit is that of float32 products: int8 may pass it."""
    table = Table("engine", "batch", "threads", "clips/s", "of the float32 limit", title=f"on {device}")
    for row in rows:
        numbers = [f"{row['clips_per_second']:.1f}", f"{row['share_of_limit']:.0%}"]
        table.add_row(row["engine"], str(row["batch"]), str(row["threads"]), *numbers)
    Console().print(table)


def main() -> int:
    """Entry point; the last line is JSON."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="(1 2 4 8)")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="(1 and all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0; int8 runs on CPUs only (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="batches 1 and 8, 3 rounds of half a second")
    parser.add_argument("--one-round", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.batches, args.seconds, args.rounds = [1, 8], 0.5, 3
    paths = engines(args.checkpoint, args.store)
    if args.device != "cpu":
        paths.pop("onnx int8", None)
    if args.one_round:
        result = measure_here(paths, args.batches, args.one_round, args.seconds, args.device)
        print(json.dumps(result))
        return 0
    rates, limits = measure(args)
    rows, summary = summarise(rates, limits, flops_per_clip(args.checkpoint) / 1e9)
    print_table(rows, args.device)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
