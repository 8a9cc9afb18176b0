"""The cost of the batch job: `python -m benchmarks.batch --data DIR`.

In interleaved rounds, with one single-threaded process for each core:

    engine       the bare network on ready log-mels: no file is read
    classifier   files to results by `audiocnn.classifier`, each process a share: the same work without Ray
    batch        the command `audiocnn batch`, from the start of the first chunk to the end of the last one

Then the memory of the command is measured, and all its results are compared with those of the classifier.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.dataset as ds
import soundfile
from rich.console import Console
from rich.table import Table

from audiocnn import audio, command
from audiocnn.audio import windows
from audiocnn.classifier import Classifier
from audiocnn.model.engine import MAX_BATCH
from audiocnn.model.loading import served_model_path
from audiocnn.results import Result
from benchmarks.command import STORE, add_path
from benchmarks.corpus import sound_files

_ENVIRONMENT = dict(os.environ)  # of the command
KINDS = ("engine", "classifier", "batch")
_MEMORY_SECONDS = 0.2  # between two looks at the memory


def work(kind: str, model: Path, paths: Sequence[Path], barrier: threading.Barrier) -> tuple[float, float]:
    """In a process of its own: load, warm up, wait for the others, work; the times of begin and end."""
    classifier = Classifier.load(model, threads=1)
    run = run_engine if kind == "engine" else classify
    run(classifier, paths[: 2 * MAX_BATCH])
    barrier.wait()
    began = time.time()
    run(classifier, paths)
    return began, time.time()


def run_engine(classifier: Classifier, paths: Sequence[Path]) -> None:
    """As many random log-mels as there are paths through the network, in full batches."""
    config = classifier.config.frontend
    shape = (MAX_BATCH, 1, config.n_mels, config.num_frames)
    log_mels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for _ in range(0, len(paths), MAX_BATCH):
        classifier.engine.run(log_mels)


def classify(classifier: Classifier, paths: Sequence[Path]) -> None:
    """Read, decode, log-mel, network."""
    for first in range(0, len(paths), MAX_BATCH):
        classifier.predict_batch([path.read_bytes() for path in paths[first : first + MAX_BATCH]])


def rate_without_ray(kind: str, model: Path, shares: Sequence[Sequence[Path]]) -> float:
    """Clips a second of processes that start together, until the slowest one has finished."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(shares), context) as pool:
        barrier = manager.Barrier(len(shares))
        futures = [pool.submit(work, kind, model, share, barrier) for share in shares]
        times = [future.result() for future in futures]
    seconds = max(end for _, end in times) - min(begin for begin, _ in times)
    return sum(map(len, shares)) / seconds


def batch_command(args: argparse.Namespace, out: Path) -> list[str]:
    """`audiocnn batch` of these options."""
    words = [sys.executable, "-m", "audiocnn", "batch", str(args.data), "--out", str(out)]
    return [*words, "--model", str(args.model), "--workers", str(args.workers)]


def run_batch(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run the command; returns the key `run` of its summary."""
    subprocess.run(batch_command(args, out), env=_ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    run: dict[str, Any] = json.loads((out / "summary.json").read_text())["run"]
    return run


def peak_memory(args: argparse.Namespace, out: Path) -> dict[str, int]:
    """Largest proportional set size in a run of its own, in MB: of the driver and of a worker."""
    process = psutil.Popen(batch_command(args, out), env=_ENVIRONMENT, stdout=subprocess.DEVNULL)
    peaks = {"driver": 0, "worker": 0}
    while process.poll() is None:
        with suppress(psutil.Error):  # a process that has ended meanwhile
            workers = [
                each for each in process.children(recursive=True) if "MapWorker" in "".join(each.cmdline())
            ]
            for kind, each in [("driver", process), *(("worker", worker) for worker in workers)]:
                peaks[kind] = max(peaks[kind], round(each.memory_full_info().pss / 1e6))
        time.sleep(_MEMORY_SECONDS)
    return peaks


def stage_times(classifier: Classifier, paths: Sequence[Path]) -> dict[str, float]:
    """Milliseconds a clip, in one process with one thread: decoding, log-mel, network."""
    sums = dict.fromkeys(("decode", "log_mel", "network"), 0.0)
    config = classifier.config.frontend
    for first in range(0, len(paths), MAX_BATCH):
        times = [time.perf_counter()]
        group = paths[first : first + MAX_BATCH]
        clips = [audio.decode(path.read_bytes(), sample_rate=config.sample_rate) for path in group]
        times.append(time.perf_counter())
        cut = [windows.cut(clip.waveform, config) for clip in clips]
        log_mels = np.stack([classifier.engine.prepare(window) for clip in cut for window in clip])
        times.append(time.perf_counter())
        classifier.engine.run(log_mels)
        times.append(time.perf_counter())
        for name, began, ended in zip(sums, times, times[1:], strict=False):
            sums[name] += 1000 * (ended - began) / len(paths)
    return sums


def compare(classifier: Classifier, paths: Sequence[Path], out: Path) -> dict[str, float]:
    """The number of rows, how many have the classifier's class, and the largest difference in confidence."""
    rows = ds.dataset(list(map(str, sorted((out / "files").glob("*.parquet"))))).to_table().to_pylist()
    by_file = {row["file"]: row for row in rows}
    assert len(by_file) == len(rows) == len(paths)
    same, largest = 0, 0.0
    for path in paths:
        (result,) = classifier.predict_batch([path.read_bytes()])
        assert isinstance(result, Result)
        name, confidence = result.predictions[0]
        row = by_file[str(path)]
        same += row["class"] == name
        largest = max(largest, abs(row["confidence"] - confidence))
    return {"rows": len(rows), "same_class": same, "largest_difference": largest}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds and the comparison; returns the JSON line."""
    paths = sound_files(args.data)
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with_start_up, shares = [], [paths[number :: args.workers] for number in range(args.workers)]
    for number in range(args.rounds):
        for kind in KINDS[:2]:
            rates[kind].append(rate_without_ray(kind, args.model, shares))
        out = folder / str(number)
        run = run_batch(args, out)
        rates["batch"].append(run["files_per_second"])
        with_start_up.append(run["files"] / run["seconds"])
        latest = {kind: round(values[-1], 1) for kind, values in rates.items()}
        print(latest, file=sys.stderr, flush=True)
    classifier = Classifier.load(args.model, threads=1)
    ratios = {
        f"of_bare_{kind}": statistics.median(a / b for a, b in zip(rates["batch"], rates[kind], strict=True))
        for kind in KINDS[:2]
    }
    return {
        "clips": len(paths),
        "kind": paths[0].suffix,
        "workers": args.workers,
        "model": args.model.name,
        "clips_per_second": {kind: statistics.median(values) for kind, values in rates.items()},
        "with_start_up": statistics.median(with_start_up),
        "peak_memory_mb": peak_memory(args, folder / "memory"),
        "ms_a_clip": stage_times(classifier, paths[::4]),
        **ratios,
        "answers": compare(classifier, paths, out),
    }


def as_wav(source: Path, target: Path) -> Path:
    """The same clips as 16-bit WAV, which decode fast."""
    target.mkdir()
    for path in sound_files(source):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(target / f"{path.stem}.wav", samples, rate)
    return target


def print_table(summary: dict[str, Any]) -> None:
    """Print throughputs, then milliseconds by stage."""
    title = f"{summary['clips']} clips, {summary['model']}"
    table = Table("", "clips/s", "the batch job over it", title=title)
    for kind, rate in summary["clips_per_second"].items():
        ratio = summary.get(f"of_bare_{kind}")
        table.add_row(kind, f"{rate:.1f}", f"{ratio:.2f}" if ratio else "")
    table.add_row("batch, with the start of Ray", f"{summary['with_start_up']:.1f}", "")
    Console().print(table)
    total = sum(summary["ms_a_clip"].values())
    for name, ms in summary["ms_a_clip"].items():
        print(f"{name:8} {ms:5.2f} ms a clip and core, {ms / total:4.0%}")
    memory = summary["peak_memory_mb"]
    print(f"memory   {memory['driver']} MB (driver), {memory['worker']} MB (largest worker)")
    print("answers ", summary["answers"])


def _options(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "--data", Path("data/ESC-50/audio"), "folder of sound files")
    add_path(parser, "--model", served_model_path(STORE), "model file")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=command.count, default=cores, help="processes (%(default)s)")
    parser.add_argument("--rounds", type=command.count, default=3, help="interleaved rounds (%(default)s)")
    parser.add_argument("--wav", action="store_true", help="the same clips as 16-bit WAV")


@command.entry_point(_options, "--data recordings --rounds 1")
def main(args: argparse.Namespace) -> None:
    """Entry point; the last line is JSON."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of those without Ray
    with tempfile.TemporaryDirectory() as folder:
        if args.wav:
            args.data = as_wav(args.data, Path(folder) / "wav")
        summary = measure(args, Path(folder))
    print_table(summary)
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
