"""The memory of the batch job: `python -m benchmarks.batch_memory --files 20000 --hours 3`.

Many short files through an untrained network of width 8: the memory of the process that was started, from
quarter to quarter of the run, and the time a file takes. Then one recording of 1/30 of the hours and one of
all: the largest memory of the worker. Everything is synthesised in a temporary folder (about 1 GB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch

from audiocnn.config import Config, ModelConfig
from audiocnn.labels import ESC50
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN

RATE = 44_100


@dataclass
class Watched:
    """Resident memory in MB over a run: of the process that was started, and the largest of any worker."""

    seconds: float = 0.0
    driver: list[float] = field(default_factory=list)
    worker: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)


def small_model(folder: Path) -> Path:
    """An untrained network of width 8, exported by the project's own command."""
    torch.manual_seed(0)
    config = Config(class_names=tuple(label.name for label in ESC50), model=ModelConfig(width=8))
    network = AudioCNN(config.model, num_classes=len(config.class_names))
    checkpoint.save(folder / "checkpoint", config, LogMel(config.frontend), network)
    command = [sys.executable, "-m", "export.onnx", "--checkpoint", str(folder / "checkpoint")]
    subprocess.run([*command, "--out", str(folder / "store")], check=True, stdout=subprocess.DEVNULL)
    return folder / "store" / "audiocnn.onnx"


def short_files(folder: Path, count: int) -> None:
    """Tones of a fifth of a second, 1,000 to a folder."""
    t = np.arange(RATE // 5) / RATE
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:07}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + number % 5000) * t), RATE, subtype="PCM_16")


def long_file(path: Path, hours: float) -> None:
    """Noise that swells, so that no window is as the other; FLAC, written in blocks."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as file:
        for minute in range(round(60 * hours)):
            noise = rng.normal(size=60 * RATE).astype(np.float32)
            file.write(0.02 * (1 + minute % 7) * noise)


def watch(folder: Path, out: Path, flags: Sequence[str]) -> Watched:
    """Run the command to its end, looking at it four times a second."""
    watched = Watched()
    began = time.monotonic()
    process = psutil.Popen(
        [sys.executable, "-m", "audiocnn", "batch", str(folder), "--out", str(out), *flags]
    )
    while process.poll() is None:
        try:
            watched.driver.append(process.memory_info().rss / 1e6)
            children = process.children(recursive=True)
            sizes = [c.memory_info().rss / 1e6 for c in children if "MapWorker" in " ".join(c.cmdline())]
            watched.worker = max([watched.worker, *sizes])
        except psutil.Error:  # it ended between two questions
            pass
        time.sleep(0.25)
    assert process.returncode == 0
    watched.seconds = time.monotonic() - began
    watched.summary = json.loads((out / "summary.json").read_text())
    return watched


def main() -> int:
    """Entry point; the last line is JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch_memory", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--files", type=int, default=20_000, help="short ones (%(default)s)")
    parser.add_argument("--hours", type=float, default=3.0, help="of the long one (%(default)s)")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ["--model", str(small_model(folder))]
        short_files(folder / "short", args.files)
        many = watch(folder / "short", folder / "out-short", model)
        quarters = [many.driver[len(many.driver) * n // 4 - 1] for n in (1, 2, 3, 4)]
        print("driver, MB at each quarter of the run:", *(f"{mb:.0f}" for mb in quarters))
        rate = many.summary["run"]["files_per_second"]
        result["short"] = {"files": many.summary["files"], "seconds": many.seconds, "ms_a_file": 1000 / rate}
        result["short"] |= {"driver_mb": quarters, "worker_mb": many.worker}
        for hours in (args.hours / 30, args.hours):
            path = folder / f"{hours:g}" / "long.flac"
            long_file(path, hours)
            run = watch(path.parent, folder / f"out-{hours:g}", [*model, "--workers", "1"])
            print(f"{hours:g} hours: worker {run.worker:.0f} MB, driver {max(run.driver):.0f} MB")
            seconds = run.summary["run"]["scoring_seconds"]
            row = {"hours": hours, "flac_mb": path.stat().st_size / 1e6, "windows": run.summary["windows"]}
            row |= {"worker_mb": run.worker, "driver_mb": max(run.driver), "scoring_seconds": seconds}
            result.setdefault("long", []).append(row)
            path.unlink()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
