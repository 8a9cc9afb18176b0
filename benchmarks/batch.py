"""What the batch job costs: `python -m benchmarks.batch --data DIR`.

In interleaved rounds, with as many processes of one thread each as there are cores:

    engine       the bare network, fed with log-mels that are ready: no file is read
    classifier   files -> answers by `audiocnn.classifier`, each process its share: the same work without Ray
    batch        the command, `audiocnn batch`, from the first chunk's begin to the last one's end

and then whether all answers of the command are those of the classifier.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from audiocnn import audio, inputs
from audiocnn.audio import windows
from audiocnn.classifier import Classifier
from audiocnn.model.engine import MAX_BATCH
from audiocnn.model.loading import served_model_path
from audiocnn.results import Result

ARMS = ("engine", "classifier", "batch")


def child(arm: str, model: Path, paths: Sequence[str]) -> None:
    """One process of an arm: loads, warms, says so, waits for a line, works, says when it was done."""
    classifier = Classifier.load(model, threads=1)
    work = feed_engine if arm == "engine" else classify
    work(classifier, paths[: 2 * MAX_BATCH])
    print("ready", flush=True)
    sys.stdin.readline()
    work(classifier, paths)
    print(json.dumps(time.time()), flush=True)


def feed_engine(classifier: Classifier, paths: Sequence[str]) -> None:
    """As many clips as there are paths through the network, in full batches."""
    config = classifier.config.frontend
    shape = (MAX_BATCH, 1, config.n_mels, config.num_frames)
    log_mels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for _ in range(0, len(paths), MAX_BATCH):
        classifier.engine.run(log_mels)


def classify(classifier: Classifier, paths: Sequence[str]) -> None:
    """Read, decode, log-mel, network."""
    for first in range(0, len(paths), MAX_BATCH):
        classifier.predict_batch([Path(path).read_bytes() for path in paths[first : first + MAX_BATCH]])


def bare(arm: str, args: argparse.Namespace, count: int) -> float:
    """Clips a second of an arm without Ray: all processes start together, the slowest one ends it."""
    command = [sys.executable, "-m", "benchmarks.batch", "--data", str(args.data), "--model", str(args.model)]
    command += ["--child", arm, "--workers", str(args.workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--share", str(share)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for share in range(args.workers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.time()
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        outputs.append(float(output))
    return count / (max(outputs) - began)


def command(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The summary of one run of the command."""
    arguments = [
        str(args.data),
        "--out",
        str(out),
        "--model",
        str(args.model),
        "--workers",
        str(args.workers),
    ]
    subprocess.run(
        [sys.executable, "-m", "audiocnn", "batch", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def shares(classifier: Classifier, paths: Sequence[str]) -> dict[str, float]:
    """Milliseconds a clip of one process with one thread: decoding, log-mel, network."""
    sums = dict.fromkeys(("decode", "log_mel", "network"), 0.0)
    config = classifier.config.frontend

    def lap(name: str, began: float) -> float:
        now = time.perf_counter()
        sums[name] += 1000 * (now - began) / len(paths)
        return now

    for first in range(0, len(paths), MAX_BATCH):
        now = time.perf_counter()
        group = paths[first : first + MAX_BATCH]
        clips = [audio.decode(Path(path).read_bytes(), sample_rate=config.sample_rate) for path in group]
        now = lap("decode", now)
        with torch.inference_mode():
            cut = [windows.cut(clip.waveform, config) for clip in clips]
            stack = [classifier.engine.log_mel(torch.from_numpy(w[None])) for clip in cut for w in clip]
        log_mels = torch.cat(stack).numpy()
        now = lap("log_mel", now)
        classifier.engine.run(log_mels)
        lap("network", now)
    return sums


def compare(classifier: Classifier, paths: Sequence[str], out: Path) -> dict[str, float]:
    """Rows, and how far they are from the classifier's answers."""
    rows = ds.dataset(list(map(str, sorted((out / "files").glob("*.parquet"))))).to_table().to_pylist()
    by_file = {row["file"]: row for row in rows}
    assert len(by_file) == len(rows) == len(paths)
    same, furthest = 0, 0.0
    for path in paths:
        (result,) = classifier.predict_batch([Path(path).read_bytes()])
        assert isinstance(result, Result)
        top = int(result.probs.argmax())
        row = by_file[path]
        same += row["class"] == classifier.config.class_names[top]
        furthest = max(furthest, abs(row["confidence"] - float(result.probs[top])))
    return {"rows": len(rows), "same_class": same, "largest_difference": furthest}


def listed(folder: Path) -> list[str]:
    """All sounds below a folder."""
    return sorted(path for path, _ in inputs.find([str(folder)], inputs.Notes()))


def main() -> int:
    """Entry point; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ESC-50/audio"), help="folder (%(default)s)")
    parser.add_argument(
        "--model", type=Path, default=served_model_path(Path("model_store")), help="(%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="(all cores)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--wav", action="store_true", help="the same clips as 16-bit WAV")
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.model, listed(args.data)[args.share :: args.workers])
        return 0
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.wav:
            args.data = as_wav(args.data, Path(folder) / "wav")
        paths = listed(args.data)
        for number in range(args.rounds):
            for arm in ARMS[:2]:
                rates[arm].append(bare(arm, args, len(paths)))
            out = Path(folder) / str(number)
            run = command(args, out)["run"]
            rates["batch"].append(run["files_per_second"])
            whole.append(run["files"] / run["seconds"])
            print({arm: round(values[-1], 1) for arm, values in rates.items()}, file=sys.stderr, flush=True)
        classifier = Classifier.load(args.model, threads=1)
        summary: dict[str, Any] = {
            "clips": len(paths),
            "kind": Path(paths[0]).suffix,
            "workers": args.workers,
        }
        summary |= {"model": args.model.name, "clips_per_second": medians(rates)}
        summary["with_start_up"] = statistics.median(whole)
        summary["ms_a_clip"] = shares(classifier, paths[::4])
        for arm in ARMS[:2]:
            ratios = [ours / theirs for ours, theirs in zip(rates["batch"], rates[arm], strict=True)]
            summary[f"of_bare_{arm}"] = statistics.median(ratios)
        summary["answers"] = compare(classifier, paths, out)
    print_table(summary)
    print(json.dumps(summary))
    return 0


def as_wav(source: Path, target: Path) -> Path:
    """The same clips as 16-bit WAV, which takes next to no time to decode."""
    target.mkdir()
    for path, _ in inputs.find([str(source)], inputs.Notes()):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(target / f"{Path(path).stem}.wav", samples, rate)
    return target


def medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """By arm."""
    return {arm: statistics.median(values) for arm, values in rates.items()}


def print_table(summary: dict[str, Any]) -> None:
    """For people."""
    table = Table(
        "", "clips/s", "the batch job over it", title=f"{summary['clips']} clips, {summary['model']}"
    )
    for arm, rate in summary["clips_per_second"].items():
        ratio = summary.get(f"of_bare_{arm}")
        table.add_row(arm, f"{rate:.1f}", f"{ratio:.2f}" if ratio else "")
    table.add_row("batch, with the start of Ray", f"{summary['with_start_up']:.1f}", "")
    Console().print(table)
    total = sum(summary["ms_a_clip"].values())
    for name, ms in summary["ms_a_clip"].items():
        print(f"{name:8} {ms:5.2f} ms a clip and core, {ms / total:4.0%}")
    print("answers ", summary["answers"])


if __name__ == "__main__":
    sys.exit(main())
