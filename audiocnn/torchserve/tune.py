"""`audiocnn tune`: measure settings of TorchServe on this machine and write the fastest.

A grid of workers, threads, batch sizes and delays is measured, each point with its own TorchServe:
`throughput` with 16 concurrent clients, `latency` with one. The best goes into config.properties (workers,
batch, delay) and handler/model-config.yaml (threads).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal
from urllib.parse import urlsplit

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn.audio import synthetic
from audiocnn.torchserve.integrity import write_atomically
from audiocnn.torchserve.ports import free_port
from audiocnn.torchserve.properties import ConfigError, read_properties
from audiocnn.torchserve.server import MODEL, ServerStartError, TorchServe

WARM_UP_SECONDS = 1.0
CLIENTS = {"throughput": 16, "latency": 1}


@dataclass(frozen=True)
class Setting:
    """A point of the grid: workers, CPU threads of each worker, `batchSize`, `maxBatchDelay` in ms."""

    workers: int
    threads: int
    batch: int
    delay: int


@dataclass(frozen=True)
class Measured:
    """Throughput, and median and 99th percentile of the latency, of one measurement."""

    clips_per_second: float
    p50_ms: float
    p99_ms: float


def rule_of_thumb(cores: int, gpus: int, profile: str) -> Setting:
    """The setting to use without a measurement; `profile` is `throughput` or `latency`.

    On a CPU, one worker per core with one thread has the highest throughput, and one worker with all threads
    the lowest latency. A GPU needs large batches, and two workers: one decodes while the other computes.
    """
    if gpus:
        return Setting(gpus, 1, 1, 1) if profile == "latency" else Setting(2 * gpus, 1, 32, 5)
    return Setting(1, cores, 1, 1) if profile == "latency" else Setting(cores, 1, 8, 5)


def grid(cores: int, gpus: int, profile: str) -> list[Setting]:
    """The settings to measure."""
    if gpus:
        batches = [(1, 1)] if profile == "latency" else [(8, 5), (32, 5), (32, 20)]
        return [Setting(workers * gpus, 1, *batch) for workers in (1, 2, 4) for batch in batches]
    batches = [(1, 1)] if profile == "latency" else [(1, 1), (8, 5), (8, 20)]
    splits = sorted({(workers, max(1, cores // workers)) for workers in (1, max(1, cores // 2), cores)})
    return [Setting(*split, *batch) for split in splits for batch in batches]


@contextmanager
def running(properties: dict[str, str], setting: Setting, folder: Path) -> Iterator[TorchServe]:
    """A ready TorchServe with this setting on free ports; stopped after the block."""
    own = dict(properties, models=json.dumps(entry(properties, setting)))
    for name in ("inference", "management", "metrics"):
        own[f"{name}_address"] = f"http://127.0.0.1:{free_port()}"
    own |= {f"grpc_{name}_port": str(free_port()) for name in ("inference", "management")}
    server = TorchServe(own, log_folder=folder, environment={"AUDIOCNN_THREADS": str(setting.threads)})
    try:
        server.start()
        server.wait_ready(120)
        yield server
    finally:
        server.stop()


def entry(properties: dict[str, str], setting: Setting) -> dict[str, dict[str, dict[str, object]]]:
    """The configuration's `models` value with this setting."""
    models: dict[str, dict[str, dict[str, object]]] = json.loads(properties["models"])
    for version in models[MODEL].values():
        version |= {
            "minWorkers": setting.workers,
            "maxWorkers": setting.workers,
            "batchSize": setting.batch,
            "maxBatchDelay": setting.delay,
        }
    return models


def measure(address: str, clips: Sequence[bytes], *, clients: int, seconds: float) -> Measured:
    """Measure closed-loop load of `clients` threads for `seconds` after a warm-up of 1 s.

    Raises `ServerStartError` for a status other than 200, or for fewer than two answers.
    """
    begin = time.monotonic() + WARM_UP_SECONDS
    latencies: list[float] = []
    lock = threading.Lock()

    def send_requests(client: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        own, number = [], client
        while (now := time.monotonic()) < begin + seconds:
            connection.request("POST", f"/predictions/{MODEL}", clips[number % len(clips)])
            reply = connection.getresponse()
            if reply.status != 200:
                raise ServerStartError(f"the server answered {reply.status}: {reply.read()[:200]!r}")
            reply.read()
            own += [time.monotonic() - now] if now >= begin else []
            number += clients
        connection.close()
        with lock:
            latencies.extend(own)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send_requests, range(clients)))
    if len(latencies) < 2:
        raise ServerStartError(f"fewer than 2 answers in {seconds} s: increase --seconds")
    p99 = statistics.quantiles(latencies, n=100)[98]
    return Measured(len(latencies) / seconds, 1000 * statistics.median(latencies), 1000 * p99)


def best(results: dict[Setting, list[Measured]], profile: str) -> Setting:
    """The setting with the highest throughput or the lowest median latency, by the median over rounds."""
    if profile == "latency":
        return min(results, key=lambda setting: statistics.median(m.p50_ms for m in results[setting]))
    return max(results, key=lambda setting: statistics.median(m.clips_per_second for m in results[setting]))


def print_table(results: dict[Setting, list[Measured]], chosen: Setting) -> None:
    """Print a row per setting with medians over the rounds."""
    table = Table("workers", "threads", "batch", "delay ms", "clips/s", "p50 ms", "p99 ms", "")
    for setting, rounds in results.items():
        names = ("clips_per_second", "p50_ms", "p99_ms")
        numbers = [f"{statistics.median(getattr(m, name) for m in rounds):.1f}" for name in names]
        inputs = map(str, (setting.workers, setting.threads, setting.batch, setting.delay))
        table.add_row(*inputs, *numbers, "best" if setting == chosen else "")
    Console().print(table)


def write(setting: Setting, config: Path, handler_config: Path) -> None:
    """Write the setting into the two files; other lines and comments are unchanged."""
    line = "models=" + json.dumps(entry(read_properties(config), setting))
    text = config.read_text(encoding="utf-8")
    write_atomically(config.resolve(), re.sub(r"(?m)^models=.*$", lambda _: line, text))
    text = handler_config.read_text(encoding="utf-8")
    write_atomically(
        handler_config.resolve(), re.sub(r"(?m)^threads: \d+", f"threads: {setting.threads}", text)
    )
    print(f"written: {config}, {handler_config}; `make archive` puts the threads into the archive")


def search(args: SimpleNamespace, cores: int, gpus: int) -> Setting:
    """Measure the grid in interleaved rounds; print the table and a line of JSON; return the best."""
    properties = read_properties(args.config)
    clips = [path.read_bytes() for path in args.clips] or [synthetic.wav(name) for name in synthetic.SOUNDS]
    settings = grid(cores, gpus, args.profile)
    results: dict[Setting, list[Measured]] = {setting: [] for setting in settings}
    runs = [setting for number in range(args.rounds) for setting in settings[:: 1 if number % 2 == 0 else -1]]
    for setting in track(runs, "measuring", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder, running(properties, setting, Path(folder)) as server:
            clients = args.clients or CLIENTS[args.profile]
            measured = measure(server.inference, clips, clients=clients, seconds=args.seconds)
        results[setting].append(measured)
    chosen = best(results, args.profile)
    print_table(results, chosen)
    print(json.dumps({"profile": args.profile, "cores": cores, "gpus": gpus, "best": vars(chosen)}))
    return chosen


Profile = Literal["throughput", "latency"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("tune", epilog="Example: audiocnn tune latency")
def tune(
    profile: Annotated[Profile, typer.Argument(help="Quantity to optimise.")] = "throughput",
    guess: Annotated[bool, typer.Option("--guess", help="Do not measure: use a rule of thumb.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    clips: Annotated[list[Path] | None, typer.Option(help="Clips to send (synthetic sounds).")] = None,
    clients: Annotated[
        int | None, typer.Option(help="Concurrent clients (16 for throughput, 1 for latency).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per setting and round.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Rounds over all settings.")] = 2,
    config: Annotated[Path, typer.Option(help="Configuration to write.")] = Path("config.properties"),
    handler_config: Annotated[Path, typer.Option(help="Handler configuration to write.")] = Path(
        "handler/model-config.yaml"
    ),
) -> None:
    """Measure the settings of this machine and write the fastest into the configuration."""
    args = SimpleNamespace(**locals() | {"clips": clips or []})
    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    try:
        chosen = rule_of_thumb(cores, gpus, profile) if guess else search(args, cores, gpus)
        print(f"best for {profile} on {cores} cores and {gpus} GPUs: {chosen}")
        if not dry_run:
            write(chosen, config, handler_config)
    except (OSError, ConfigError, ServerStartError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
