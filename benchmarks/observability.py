"""What metrics and logs cost at full load: `python -m benchmarks.observability [--quick]`.

Three TorchServes run at the same time and are asked in turn, round after round, each time another one
first: one as it is shipped, one without our metrics and without any log, and a second silent one: what
differs between two servers that are the same is the noise of the machine. Ratios are taken within a round,
to the mean of the two silent ones, of clips a second and of the processor time that a clip takes (Java and
workers), which others who use the machine disturb less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn.classifier import Classifier
from audiocnn.model.engine import Engine
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve import tune
from audiocnn.torchserve.properties import read_properties
from benchmarks import corpus as clips_module
from benchmarks import load
from benchmarks.corpus import Clips
from benchmarks.systems import THREAD_VARIABLES, Ours

CONCURRENCY = 32
SILENT = ("silent", "silent again")
_SILENCE = '<Configuration><Loggers><Root level="off"/></Loggers></Configuration>'


class Silent(Ours):
    """TorchServe that exports what it counts itself, not what our handler does, and writes no log."""

    def start(self) -> None:
        """See `Contestant`; its workers inherit the level of their own log."""
        before = os.environ.get("LOG_LEVEL")
        os.environ["LOG_LEVEL"] = "CRITICAL"
        super().start()
        if before is None:
            del os.environ["LOG_LEVEL"]
        else:
            os.environ["LOG_LEVEL"] = before


def silence(config: Path, folder: Path) -> dict[str, str]:
    """The lines of the configuration that make a server silent."""
    log4j = folder / "log4j2.xml"
    log4j.write_text(_SILENCE, encoding="utf-8")
    kept = [
        flag
        for flag in read_properties(config).get("vmargs", "").split()
        if "log4j.configuration" not in flag
    ]
    torchserve = importlib.util.find_spec("ts")
    assert torchserve is not None
    assert torchserve.origin is not None
    return {
        "metrics_config": str(Path(torchserve.origin).parent / "configs" / "metrics.yaml"),
        "vmargs": " ".join([*kept, f"-Dlog4j.configurationFile={log4j}"]),
    }


@contextmanager
def running(servers: Sequence[Ours]) -> Iterator[dict[str, psutil.Process]]:
    """All of them, ready; the process from which all others of each descend."""
    launchers: dict[str, psutil.Process] = {}
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            before = set(psutil.Process().children())
            server.start()
            (launchers[server.name],) = set(psutil.Process().children()) - before
        for server in servers:
            server.wait_ready()
        yield launchers


def cpu_seconds(launcher: psutil.Process) -> float:
    """User and system time of all living processes of a server."""
    total = 0.0
    for process in (launcher, *launcher.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # TorchServe asks the machine how it is once a minute
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass
class Rounds:
    """What was measured of one server, round by round."""

    clips_per_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # a clip


def turn(server: Ours, launcher: psutil.Process, seconds: float, rounds: Rounds) -> None:
    """One turn of one server; raises `RuntimeError` if an answer is not as it must be."""
    before = cpu_seconds(launcher)
    measured = server.closed(CONCURRENCY, seconds)
    used = cpu_seconds(launcher) - before
    if wrong := sum(not sample.is_right for sample in measured.samples):
        raise RuntimeError(f"{server.name}: {wrong} of {len(measured.samples)} answers were wrong")
    rounds.clips_per_second.append(measured.clips_per_second)
    rounds.cpu_ms.append(1000 * used / (measured.clips_per_second * (seconds + load.WARM_UP_SECONDS)))


def measure(
    servers: Sequence[Ours], launchers: dict[str, psutil.Process], args: argparse.Namespace
) -> dict[str, Rounds]:
    """Every server in turn, round after round."""
    rounds = {server.name: Rounds() for server in servers}
    console = Console(stderr=True)
    for server in track(servers, "warming up", console=console):
        server.closed(CONCURRENCY, args.warm_up)
    for number in track(range(args.rounds), "measuring", console=console):
        first = number % len(servers)  # nobody is always the first
        order = [*servers[first:], *servers[:first]]
        for server in order:
            turn(server, launchers[server.name], args.seconds, rounds[server.name])
    return rounds


def ratio(values: list[float], base: list[float]) -> tuple[float, float, float]:
    """Within each round: the median, and the quartiles around it."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)
    return median, low, high


def report(rounds: dict[str, Rounds]) -> dict[str, float]:
    """Print the table; what the last line says."""
    table = Table(title=f"{CONCURRENCY} clients at once; ratios to the two silent servers")
    for column in ("server", "clips/s", "ratio", "", "CPU ms a clip", "ratio", ""):
        table.add_column(column, justify="left" if column == "server" else "right")
    facts = {}
    kinds = ("clips_per_second", "cpu_ms")
    silent = {kind: [getattr(rounds[name], kind) for name in SILENT] for kind in kinds}
    for name, own in rounds.items():
        cells = [name]
        for kind, digits in zip(kinds, (1, 3), strict=True):
            values = getattr(own, kind)
            median, low, high = ratio(values, [(a + b) / 2 for a, b in zip(*silent[kind], strict=True)])
            cells += [f"{statistics.median(values):.{digits}f}", f"{median:.4f}", f"{low:.4f} to {high:.4f}"]
            facts[f"{name.replace(' ', '_')}_{kind}_ratio"] = round(median, 4)
        table.add_row(*cells)
    Console().print(table)
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line is JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.observability", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 s: whether it runs at all")
    parser.add_argument("--rounds", type=int, help="(60; 3 if quick)")
    parser.add_argument("--seconds", type=float, help="of every turn (2)")
    parser.add_argument("--warm-up", type=float, help="seconds of load before, per server (15; 3 if quick)")
    parser.add_argument("--clips", type=int, default=48, help="different bodies (%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    for name, values in {"rounds": (60, 3), "seconds": (2.0, 2.0), "warm_up": (15.0, 3.0)}.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.quick])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))  # unwinds, which stops the servers
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    cores = len(os.sched_getaffinity(0))
    setting = tune.rule_of_thumb(cores, 0, "throughput")
    references = Classifier.load(served_model_path(args.store)), Classifier(Engine(args.checkpoint))
    clips: Clips = clips_module.load(args.clips, *references)
    with tempfile.TemporaryDirectory() as folder:
        changes = silence(args.config, Path(folder))
        servers = [
            Ours(setting, args.config, "cpu", clips, name="as shipped"),
            *(Silent(setting, args.config, "cpu", clips, name=name, changes=changes) for name in SILENT),
        ]
        with running(servers) as launchers:
            rounds = measure(servers, launchers, args)
    facts = report(rounds)
    cost = round(100 * (1 - facts["as_shipped_clips_per_second_ratio"]), 2)
    cpu_cost = round(100 * (facts["as_shipped_cpu_ms_ratio"] - 1), 2)
    print(f"metrics and logs cost {cost} % of the clips a second, {cpu_cost} % CPU a clip; {clips.origin}")
    numbers = {"cost_percent": cost, "cpu_cost_percent": cpu_cost, "cores": cores, "rounds": args.rounds}
    print(json.dumps(numbers | facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
