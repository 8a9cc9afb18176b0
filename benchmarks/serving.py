"""What serving costs, and what others charge for it: `python -m benchmarks.serving [--quick]`.

In one run, in interleaved rounds: the bare engine in processes, our TorchServe, FastAPI and LitServe around
the same classifier, all with the same engine file and each tuned over the same grid; our latency profile;
and a server as small public projects build it. Ratios are taken within a round, the median of them counts.
The load client runs on the same cores, so it is part of what serving costs here; its price is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from audiocnn.classifier import Classifier
from audiocnn.model.engine import Engine
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve import tune
from audiocnn.torchserve.tune import Setting
from benchmarks import corpus as clips_module
from benchmarks import load
from benchmarks.corpus import Clips
from benchmarks.results import Book, print_mismatches, print_table, summarise, write_raw
from benchmarks.systems import THREAD_VARIABLES, Bare, Contestant, Ours, Rival, WithoutMaps

CONCURRENCY = (1, 8, 32)
SEED_CONCURRENCY = (1, 8)  # it answers one at a time: more clients only wait longer
SHARES = (0.5, 0.7, 0.9)  # of the measured saturation, for the open loop
ONE = Setting(workers=1, threads=0, batch=1, delay=0)  # threads 0: as many as the library takes

Say = Callable[[str], None]


def grid(cores: int, device: str, *, quick: bool) -> list[Setting]:
    """The settings that everything is tuned over: those of `audiocnn tune`, three of them if quick."""
    gpus = int(device != "cpu")
    settings = tune.grid(cores, gpus, "throughput")
    if not quick:
        return settings
    usual = tune.rule_of_thumb(cores, gpus, "throughput")
    wanted = [usual, replace(usual, batch=1, delay=1), replace(usual, workers=1, threads=cores)]
    return list(dict.fromkeys(wanted))


def without_delay(settings: Iterable[Setting]) -> list[Setting]:
    """For what never waits: each setting once."""
    return list(dict.fromkeys(replace(setting, delay=0) for setting in settings))


def start(stack: ExitStack, contestants: Sequence[Contestant], say: Say) -> None:
    """Start all at the same time and wait until all are ready; the stack stops them."""
    say("starting " + ", ".join(dict.fromkeys(c.name for c in contestants)))
    for contestant in contestants:
        stack.callback(contestant.stop)
        contestant.start()
    for contestant in contestants:
        contestant.wait_ready()


def tuned(stack: ExitStack, candidates: Sequence[Contestant], seconds: float, say: Say) -> Contestant:
    """The candidate with the most clips a second, still running; the others are stopped."""
    start(stack, candidates, say)
    rates: dict[int, list[float]] = {number: [] for number in range(len(candidates))}
    for order in (1, -1):  # there and back, so that no candidate is always the first
        for number, candidate in list(enumerate(candidates))[::order]:
            say(f"tuning {candidate.name}: {candidate.setting}")
            rates[number].append(candidate.closed(max(CONCURRENCY), seconds / 2).clips_per_second)
    best = candidates[max(rates, key=lambda number: sum(rates[number]))]
    for candidate in candidates:
        if candidate is not best:
            candidate.stop()
    return best


def measure(args: argparse.Namespace, clips: Clips, book: Book, say: Say) -> dict[str, Any]:
    """The whole run; returns what is known besides the series."""
    model, cores, gpus = (
        served_model_path(args.store),
        len(os.sched_getaffinity(0)),
        int(args.device != "cpu"),
    )
    settings = grid(cores, args.device, quick=args.quick)
    latency = tune.rule_of_thumb(cores, gpus, "latency")
    common = (args.device, clips)
    with ExitStack() as stack:
        bare = tuned(stack, [Bare(s, model, *common) for s in without_delay(settings)], args.seconds, say)
        ours = tuned(stack, [Ours(s, args.config, *common) for s in settings], args.seconds, say)
        assert isinstance(ours, Ours)
        others = [
            tuned(stack, [Rival(kind, s, model, *common) for s in settings], args.seconds, say)
            for kind in ("fastapi", "litserve")
        ]
        alone = Bare(replace(latency, delay=0), model, *common, name="bare alone")
        quickest = Ours(latency, args.config, *common, name="torchserve, latency")
        seed = Rival("seed", ONE, args.checkpoint, *common)
        trivial = Rival("trivial", ONE, model, *common)
        start(stack, [alone, quickest, seed, trivial], say)
        client = client_speed(trivial)
        for server in (ours, quickest, *others):  # Java compiles itself during the first thousand requests
            say(f"warming up {server.name}")
            server.closed(max(CONCURRENCY), args.warm_up)
        plan: list[tuple[Contestant, Sequence[int]]] = [(bare, CONCURRENCY[-1:]), (ours, CONCURRENCY)]
        plan += [(alone, (1,)), (quickest, (1,)), *((other, CONCURRENCY) for other in others)]
        plan += [(seed, SEED_CONCURRENCY), (WithoutMaps(seed), SEED_CONCURRENCY)]
        closed_rounds(book, plan, args, say)
        rates = {
            f"open {share:.0%}": share * statistics.median(book.saturation(ours.name)) for share in SHARES
        }
        rates |= {f"open {rate:g}/s": rate for rate in args.rates}
        open_rounds(book, ours, rates, args, say)
        return {"cores": cores, "device": args.device, "model": model.name, "clips": clips.origin} | client


def closed_rounds(
    book: Book, plan: Sequence[tuple[Contestant, Sequence[int]]], args: argparse.Namespace, say: Say
) -> None:
    """Every contestant at every concurrency, round after round, each second round backwards."""
    for number in range(args.rounds):
        for contestant, concurrencies in plan[:: 1 if number % 2 == 0 else -1]:
            for concurrency in concurrencies:
                say(f"round {number + 1} of {args.rounds}: {contestant.name}, {concurrency} at once")
                measured = contestant.closed(concurrency, args.seconds)
                book.add(contestant, f"closed {concurrency}", measured)


def open_rounds(book: Book, ours: Ours, rates: dict[str, float], args: argparse.Namespace, say: Say) -> None:
    """Fixed rates on our server."""
    for number in range(args.rounds):
        for name, rate in rates.items():
            say(f"round {number + 1} of {args.rounds}: {rate:.0f} requests a second")
            measured = load.open_loop(ours.target, rate, args.open_seconds, poisson=args.poisson)
            book.add(ours, name, measured)


def client_speed(trivial: Rival) -> dict[str, float]:
    """What the load client can do, and what a request costs it, measured on a server that does nothing."""
    target = replace(trivial.target, expected=["nothing"] * len(trivial.target.bodies))
    cpu = time.process_time()
    measured = load.closed_loop(target, max(CONCURRENCY), 1.0)
    cpu = time.process_time() - cpu
    trivial.stop()
    speed = measured.clips_per_second
    # The half second of warm-up cost as much a request.
    return {"client_limit_per_second": speed, "client_cpu_ms": 1000 * cpu / max(1.0, 1.5 * speed)}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores: a smaller grid")
    parser.add_argument("--rounds", type=int, help="(5; 2 if quick)")
    parser.add_argument("--seconds", type=float, help="of every closed loop (6; 2 if quick)")
    parser.add_argument("--open-seconds", type=float, help="of every open loop (20; 4 if quick)")
    parser.add_argument("--warm-up", type=float, help="seconds of load before, per server (15; 5 if quick)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[], help="more open loops, requests a second"
    )
    parser.add_argument(
        "--poisson", action="store_true", help="open loops at random times, not evenly spaced"
    )
    parser.add_argument("--clips", type=int, default=48, help="different bodies (%(default)s)")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write every request as a line of JSON")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    defaults = {"rounds": (5, 2), "seconds": (6.0, 2.0), "open_seconds": (20.0, 4.0), "warm_up": (15.0, 5.0)}
    for name, values in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.quick])
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line is JSON. Exit code 1 if an answer was wrong or missing."""
    args = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))  # unwinds, which stops the servers
    for variable in THREAD_VARIABLES:  # a pool of waiting threads beside the engine's halves its speed
        os.environ[variable] = "1"
    began, book = time.monotonic(), Book()
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("choosing clips", total=None)

        def say(text: str) -> None:
            progress.update(task, description=text)

        clips = clips_module.load(args.clips, *references(args))
        facts = measure(args, clips, book, say)
    summary = summarise(book, facts | {"seconds": time.monotonic() - began})
    print_table(summary["rows"])
    print_mismatches(book, clips)
    print(
        f"the load client: at most {facts['client_limit_per_second']:.0f} requests/s from a server that does "
        f"nothing, {facts['client_cpu_ms']:.2f} ms of CPU a request; {facts['clips']}"
    )
    if args.raw:
        with args.raw.open("w", encoding="utf-8") as file:
            write_raw(book, file)
    print(json.dumps(summary))
    return int(bool(summary["failed"] or summary["wrong"]))


def references(args: argparse.Namespace) -> tuple[Classifier, Classifier]:
    """The classifier that is served, and PyTorch on the checkpoint: they say what the right answers are."""
    return Classifier.load(served_model_path(args.store)), Classifier(Engine(args.checkpoint))


if __name__ == "__main__":
    sys.exit(main())
