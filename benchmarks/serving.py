"""The cost of serving, compared: `python -m benchmarks.serving [--quick]`.

In one run, in interleaved rounds: the bare engine in processes, our TorchServe, FastAPI and LitServe around
the same classifier, all with the same engine file and each tuned over the same grid; the gateway in front of
that TorchServe, with forms and raw bodies; our latency profile; and a baseline as small public projects build
it. Ratios are taken within a round; their median counts.
The load generator runs on the same cores; its cost is printed.
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
from typing import Any, TypeVar

from rich.console import Console

from audiocnn import command
from audiocnn.classifier import Classifier
from audiocnn.model import openvino_graph
from audiocnn.model.engine import INT8, Engine
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve import tune
from audiocnn.torchserve.tune import Setting
from benchmarks import corpus, load
from benchmarks import systems as compared
from benchmarks.command import CHECKPOINT, CONFIG, STORE, add_path, status_line
from benchmarks.corpus import Clips
from benchmarks.load import LoadResult
from benchmarks.results import Results, print_mismatches, print_table, summarise, write_raw
from benchmarks.systems import THREAD_VARIABLES, BareEngine, HttpSystem, System

CONCURRENCY = (1, 8, 32)
BASELINE_CONCURRENCY = (1, 8)  # it answers one at a time: more clients only wait longer
LOAD_SHARES = (0.5, 0.7, 0.9)  # of the measured saturation, for the open loops
SINGLE = Setting(workers=1, threads=0, batch=1, delay=0)  # threads 0: the library's default
_DEFAULTS = {"rounds": (5, 2), "seconds": (6.0, 2.0), "open_seconds": (20.0, 4.0), "warm_up": (15.0, 5.0)}

S = TypeVar("S", HttpSystem, BareEngine)
Plan = list[tuple[System, Sequence[int]]]  # with the numbers of concurrent clients
Report = Callable[[str], None]  # shows the current step


def grid(cores: int, device: str, *, quick: bool) -> list[Setting]:
    """The settings to tune over: those of `audiocnn tune`, three of them if quick."""
    gpus = int(device != "cpu")
    if not quick:
        return tune.grid(cores, gpus, "throughput")
    usual = tune.rule_of_thumb(cores, gpus, "throughput")
    wanted = [usual, replace(usual, batch=1, delay=1), replace(usual, workers=1, threads=cores)]
    return list(dict.fromkeys(wanted))


def without_delay(settings: Iterable[Setting]) -> list[Setting]:
    """The distinct settings for a system without a queue."""
    return list(dict.fromkeys(replace(setting, delay=0) for setting in settings))


class ServingBenchmark:
    """One run of the benchmark. `stack` stops what it starts; `report` shows the current step."""

    def __init__(self, args: argparse.Namespace, clips: Clips, stack: ExitStack, report: Report) -> None:
        self.results = Results()
        self._args, self._clips, self._stack, self._report = args, clips, stack, report
        self._model = served_model_path(args.store)

    def run(self) -> dict[str, Any]:
        """Fills `results`; returns facts about the run."""
        args, common = self._args, (self._args.device, self._clips)
        trivial = compared.baseline("trivial", SINGLE, self._model, *common)
        self._start([trivial])
        client = generator_cost(trivial)
        torchserve, plan = self._start_all()
        for system, _ in plan:
            if not isinstance(system, BareEngine) and not system.name.startswith("baseline"):
                self._report(f"warming up {system.name}")  # Java compiles during the first thousand requests
                system.closed(max(CONCURRENCY), args.warm_up)
        self._closed_rounds(plan)
        self._open_rounds(torchserve)
        facts = {"cores": cores(), "device": args.device, "model": self._model.name}
        return facts | {"clips": self._clips.origin} | client

    def _start_all(self) -> tuple[HttpSystem, Plan]:
        """TorchServe, and all running systems with their numbers of concurrent clients."""
        args, device, common = self._args, self._args.device, (self._args.device, self._clips)
        settings = grid(cores(), device, quick=args.quick)
        bare = self._tuned([BareEngine(s, self._model, *common) for s in without_delay(settings)])
        torchserve = self._tuned([compared.torchserve(s, args.config, *common) for s in settings])
        others = [
            self._tuned([compared.baseline(kind, s, self._model, *common) for s in settings])
            for kind in ("fastapi", "litserve")
        ]
        started = [compared.gateway(torchserve, self._clips, is_form=is_form) for is_form in (True, False)]
        if openvino_graph.is_preferred() and self._model.stem.endswith(INT8):
            name, setting, runtime = "torchserve, onnxruntime", torchserve.setting, "onnxruntime"
            started.append(compared.torchserve(setting, args.config, *common, name=name, runtime=runtime))
        latency = tune.rule_of_thumb(cores(), int(device != "cpu"), "latency")
        alone: list[System] = [
            BareEngine(replace(latency, delay=0), self._model, *common, name="bare alone"),
            compared.torchserve(latency, args.config, *common, name="torchserve, latency"),
        ]
        baseline = compared.baseline("baseline", SINGLE, args.checkpoint, *common)
        self._start([*started, *alone, baseline])
        plan: Plan = [(bare, CONCURRENCY[-1:]), *((each, (1,)) for each in alone)]
        plan += [(each, CONCURRENCY) for each in (torchserve, *started, *others)]
        both = (baseline, compared.without_maps(baseline))
        return torchserve, [*plan, *((each, BASELINE_CONCURRENCY) for each in both)]

    def _start(self, systems: Sequence[System]) -> None:
        """Start all at the same time and wait until all are ready; the stack stops them."""
        self._report("starting " + ", ".join(dict.fromkeys(system.name for system in systems)))
        for system in systems:
            self._stack.callback(system.server.stop)
            system.server.start()
        for system in systems:
            system.server.wait_ready()

    def _tuned(self, candidates: Sequence[S]) -> S:
        """The candidate with the highest throughput, still running; the others are stopped."""
        self._start(candidates)
        rates = [0.0] * len(candidates)
        for order in (1, -1):  # forwards and backwards, so that no candidate is always the first
            for number, candidate in list(enumerate(candidates))[::order]:
                self._report(f"tuning {candidate.name}: {candidate.setting}")
                measured = candidate.closed(max(CONCURRENCY), self._args.seconds / 2)
                rates[number] += measured.clips_per_second
        best = candidates[rates.index(max(rates))]
        for candidate in candidates:
            if candidate is not best:
                candidate.server.stop()
        return best

    def _closed_rounds(self, plan: Plan) -> None:
        """Each system at each concurrency; every second round is reversed."""
        for number in range(self._args.rounds):
            for system, concurrencies in plan[:: 1 if number % 2 == 0 else -1]:
                for concurrency in concurrencies:
                    self._report(f"round {number + 1}: {system.name}, {concurrency} clients")
                    measured, cpu_ms = with_cpu_time(system, concurrency, self._args.seconds)
                    self.results.add(system, f"closed {concurrency}", measured, cpu_ms)

    def _open_rounds(self, system: HttpSystem) -> None:
        """Fixed rates."""
        args, saturation = self._args, statistics.median(self.results.saturation(system.name))
        rates = {f"open {share:.0%}": share * saturation for share in LOAD_SHARES}
        rates |= {f"open {rate:g}/s": rate for rate in args.rates}
        for number in range(args.rounds):
            for name, rate in rates.items():
                self._report(f"round {number + 1}: {rate:.0f} requests a second")
                due = load.due_times(rate, args.open_seconds, poisson=args.poisson)
                self.results.add(system, name, load.open_loop(system.target, due))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def with_cpu_time(system: System, concurrency: int, seconds: float) -> tuple[LoadResult, dict[str, float]]:
    """A closed loop, and the CPU time of the system's processes in ms a clip, by their role."""
    before = _cpu_seconds(system)
    began = time.perf_counter()
    measured = system.closed(concurrency, seconds)
    elapsed = time.perf_counter() - began
    after = _cpu_seconds(system)
    clips = max(1.0, measured.clips_per_second * elapsed)  # those of the warm-up cost as much
    return measured, {role: 1000 * (after[role] - before[role]) / clips for role in before}


def _cpu_seconds(system: System) -> dict[str, float]:
    return {
        role: sum(sum(each.cpu_times()[:2]) for each in processes)  # user, system
        for role, processes in system.processes().items()
    }


def generator_cost(trivial: HttpSystem) -> dict[str, float]:
    """The limit of the load generator and its CPU time a request, on a server that does nothing."""
    target = replace(trivial.target, expected=["nothing"] * len(trivial.target.bodies))
    cpu = time.process_time()
    measured = load.closed_loop(target, max(CONCURRENCY), 1.0)
    cpu = time.process_time() - cpu
    trivial.server.stop()
    speed = measured.clips_per_second
    # The half second of warm-up takes CPU time too.
    return {"client_limit_per_second": speed, "client_cpu_ms": 1000 * cpu / max(1.0, 1.5 * speed)}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores: a smaller grid")
    parser.add_argument("--rounds", type=command.count, help="(5; 2 if quick)")
    parser.add_argument("--seconds", type=command.positive, help="of each closed loop (6; 2 if quick)")
    parser.add_argument("--open-seconds", type=command.positive, help="of each open loop (20; 4 if quick)")
    parser.add_argument(
        "--warm-up", type=command.positive, help="seconds of load before, per server (15; 5 if quick)"
    )
    parser.add_argument(
        "--rates", type=command.positive, nargs="+", default=[], help="more open loops, requests a second"
    )
    parser.add_argument("--poisson", action="store_true", help="open loops at random times")
    parser.add_argument("--clips", type=command.count, default=48, help="different bodies (%(default)s)")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write each request as a line of JSON")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (%(default)s)")
    add_path(parser, "--store", STORE, "folder of exported files")
    add_path(parser, "--checkpoint", CHECKPOINT, "checkpoint folder")
    add_path(parser, "--config", CONFIG, "configuration of TorchServe")


def run(args: argparse.Namespace) -> tuple[Results, Clips, dict[str, Any]]:
    """The benchmark with a status line; returns results, clips and facts."""
    began = time.monotonic()
    with status_line(Console(stderr=True)) as progress, ExitStack() as stack:
        task = progress.add_task("choosing clips", total=None)
        served, eager = Classifier.load(served_model_path(args.store)), Classifier(Engine(args.checkpoint))
        bodies, origin = corpus.wav_files(args.clips)
        classes = [corpus.top_classes(classifier, bodies) for classifier in (served, eager)]
        clips = corpus.agreed(bodies, origin, *classes)
        benchmark = ServingBenchmark(args, clips, stack, lambda text: progress.update(task, description=text))
        facts = benchmark.run()
    return benchmark.results, clips, facts | {"seconds": time.monotonic() - began}


@command.entry_point(_options, "--quick --raw requests.jsonl")
def main(args: argparse.Namespace) -> int:
    """Entry point; the last line is JSON. Exit code 1 if a reply was wrong or missing."""
    for name, values in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.quick])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))  # unwinds, which stops the servers
    for variable in THREAD_VARIABLES:  # a second pool of spinning threads halves the engine's speed
        os.environ[variable] = "1"
    results, clips, facts = run(args)
    summary = summarise(results, facts)
    print_table(summary["rows"])
    print_mismatches(results, clips)
    limit, cost = facts["client_limit_per_second"], facts["client_cpu_ms"]
    print(f"load generator: at most {limit:.0f} requests/s, {cost:.2f} ms of CPU a request; {clips.origin}")
    if args.raw:
        with args.raw.open("w", encoding="utf-8") as file:
            write_raw(results, file)
    print(json.dumps(summary))
    return int(bool(summary["failed"] or summary["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
