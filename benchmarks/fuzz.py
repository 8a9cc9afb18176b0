"""Damaged files and odd requests: `python -m benchmarks.fuzz [--quick]`.

20,000 inputs go through the classifier, in processes that may crash or hang; 2,000 more go over HTTP to a
TorchServe and a gateway, as raw bodies, JSON and forms, some of these damaged too. Every 50th input is an
undamaged clip and must get its expected result. The same seed makes the same inputs, but for the times and
random numbers that encoders write. Inputs that crash, hang or get a server error are written to a file:
`--replay FILE` sends one again. The second table has the number of inputs that reached each branch of
decoding; over HTTP only what the reply tells of is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from audiocnn import command
from audiocnn.model.loading import served_model_path
from benchmarks.background_load import TOLERANCE
from benchmarks.branches import BRANCHES
from benchmarks.command import CONFIG, STORE, add_path
from benchmarks.fuzz_inputs import INTACT_EVERY, FuzzInput, fuzz_input, intact_inputs
from benchmarks.http_fuzz import PARSER_500, FuzzRequest, RequestSender, fuzz_request
from benchmarks.sandbox import FuzzResult, Sandbox
from benchmarks.server_fixture import ServerFixture

BATCH = 8
BAD_OUTCOMES = ("crash", "hang", "exception", "server error")
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class FuzzSummary:
    """The number of results by outcome and by branch of decoding, and the bad ones."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.branches: Counter[str] = Counter()
        self.bad: list[FuzzResult] = []
        self.slowest_ms = self.peak_mb = 0.0
        self.intact = self.wrong = 0
        self._expected: dict[str, FuzzResult] = {}

    def expect(self, key: str, result: FuzzResult) -> None:
        """The result for an undamaged clip, from a process that has seen no other input."""
        self._expected[key] = result

    def add(self, result: FuzzResult, key: str) -> None:
        """Count a result; `key` identifies an undamaged clip."""
        self.outcomes[result.outcome] += 1
        self.branches.update(result.branches)
        self.slowest_ms = max(self.slowest_ms, result.ms)
        if result.outcome in BAD_OUTCOMES:
            self.bad.append(result)
        if key:
            expected = self._expected[key]
            same = result.outcome == expected.outcome == "answered" and result.top == expected.top
            self.intact += 1
            self.wrong += not (same and abs(result.confidence - expected.confidence) <= TOLERANCE)


def fuzz_classifier(model: Path, seed: int, count: int, folder: Path, progress: Progress) -> FuzzSummary:
    """Inputs 0 to `count` through one sandbox for each core."""
    summary, cores = FuzzSummary(), len(os.sched_getaffinity(0))
    task = progress.add_task("classifier", total=count)
    with ThreadPoolExecutor(cores) as pool:
        sandboxes = list(pool.map(lambda n: Sandbox(model, seed, folder / f"decoders-{n}.log"), range(cores)))
        for key, one in intact_inputs(seed, range(count)).items():
            (result,) = sandboxes[0].run([one])
            summary.expect(key, result)

        def run_share(index: int) -> list[FuzzResult]:
            results = []
            for first in range(index * BATCH, count, cores * BATCH):
                order = range(first, min(first + BATCH, count))
                results += sandboxes[index].run(order)
                progress.advance(task, len(order))
            return results

        for result in [result for results in pool.map(run_share, range(cores)) for result in results]:
            is_intact = result.number % INTACT_EVERY == 0
            summary.add(result, fuzz_input(seed, result.number).intact if is_intact else "")
    for sandbox in sandboxes:
        sandbox.close()
    summary.peak_mb = max(sandbox.peak_mb for sandbox in sandboxes)
    return summary


def fuzz_http(
    server: ServerFixture, seed: int, numbers: Sequence[int], progress: Progress
) -> tuple[FuzzSummary, bool]:
    """Requests to a server; also whether all its processes survived."""
    summary, before = FuzzSummary(), _pids(server)
    sender = RequestSender(server.inference, server.gateway)
    for key, one in intact_inputs(seed, numbers).items():
        summary.expect(key, sender.send(FuzzRequest.raw(one)))
    task = progress.add_task("over HTTP", total=len(numbers))
    with ThreadPoolExecutor(BATCH) as pool:
        for start in range(0, len(numbers), 8 * BATCH):
            part = [fuzz_request(seed, number) for number in numbers[start : start + 8 * BATCH]]
            for request, result in zip(part, pool.map(sender.send, part), strict=True):
                summary.add(result, request.intact)
            progress.advance(task, len(part))
            memory = [worker.memory_info().rss / 1e6 for worker in server.workers()]
            summary.peak_mb = max([summary.peak_mb, *memory])
    return summary, before == _pids(server)


def _pids(server: ServerFixture) -> dict[str, int]:
    return {name: process.pid for name, process in server.processes().items()}


def save(result: FuzzResult, folder: Path, content: FuzzInput | FuzzRequest) -> Path:
    """Write a bad input for `--replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.outcome.replace(' ', '-')}-{result.number}.json"
    path.write_text(json.dumps(content.to_json() | {"why": result.why}), encoding="utf-8")
    return path


def replay(path: Path, model: Path, config: Path, console: Console) -> int:
    """Send one saved input again; 1 if its outcome is bad."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if "target" in content:
            with ServerFixture(Path(folder) / "server", config=config) as server:
                sender = RequestSender(server.inference, server.gateway)
                result = sender.send(FuzzRequest.from_json(content))
        else:
            sandbox = Sandbox(model, 0, Path(folder) / "decoders.log")
            (result,) = sandbox.run([FuzzInput.from_json(content)])
            sandbox.close()
    console.print(result)
    return int(result.outcome in BAD_OUTCOMES)


def print_table(console: Console, parts: dict[str, FuzzSummary]) -> None:
    """Print a row for each outcome, and for each branch of decoding."""
    table = Table("outcome", *parts)
    for name in sorted({name for part in parts.values() for name in part.outcomes}):
        table.add_row(name, *(str(part.outcomes[name]) for part in parts.values()))
    console.print(table)
    table = Table("branch of decoding", *parts)
    for name in BRANCHES:
        table.add_row(name, *(str(part.branches[name]) for part in parts.values()))
    console.print(table)


def save_all(parts: dict[str, FuzzSummary], seed: int, folder: Path, console: Console) -> None:
    """Write the first 20 bad inputs of each part."""
    for name, part in parts.items():
        for result in part.bad[:20]:
            make: Callable[[int, int], FuzzInput | FuzzRequest]
            make = fuzz_input if name == "classifier" else fuzz_request
            path = save(result, folder, make(seed, result.number))
            console.print(f"{result.outcome} ({result.why}): --replay {path}", highlight=False)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="20,000 inputs and 2,000 over HTTP (else ten times)"
    )
    parser.add_argument("--inputs", type=command.count, help="number through the classifier")
    parser.add_argument("--http", type=command.count, help="number over HTTP")
    parser.add_argument("--seed", type=command.natural, default=0, help="of the inputs (%(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send a saved input again")
    add_path(parser, "--save", Path("fuzz-findings"), "folder for bad inputs")
    add_path(parser, "--store", STORE, "folder of exported files")
    add_path(parser, "--config", CONFIG, "configuration of TorchServe")


def run(args: argparse.Namespace, model: Path, console: Console) -> tuple[dict[str, FuzzSummary], bool]:
    """Both parts, and whether all processes of the server survived."""
    parts, survived = {"classifier": FuzzSummary(), "HTTP": FuzzSummary()}, True
    numbers = range(args.inputs, args.inputs + args.http)  # no input of the first part again
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        Progress(*_COLUMNS, console=console) as progress,
    ):
        folder = Path(name)
        if args.inputs:
            parts["classifier"] = fuzz_classifier(model, args.seed, args.inputs, folder, progress)
        if args.http:
            with ServerFixture(folder / "server", config=args.config) as server:
                parts["HTTP"], survived = fuzz_http(server, args.seed, numbers, progress)
    return parts, survived


@command.entry_point(_options, "--quick --seed 1")
def main(args: argparse.Namespace) -> int:
    """Entry point; 1 if anything crashed, hung, got a server error, or an undamaged clip a wrong result."""
    console, model, scale = Console(stderr=True), served_model_path(args.store), 1 if args.quick else 10
    args.inputs = 20_000 * scale if args.inputs is None else args.inputs
    args.http = 2_000 * scale if args.http is None else args.http
    if args.replay:
        return replay(args.replay, model, args.config, console)
    began = time.monotonic()
    parts, survived = run(args, model, console)
    print_table(console, parts)
    save_all(parts, args.seed, args.save, console)
    if not survived:
        console.print("a process of the server died over HTTP: see its log")
    result = {"benchmark": "fuzz", "seed": args.seed, **summarise(parts, survived)}
    print(json.dumps(result | {"seconds": round(time.monotonic() - began)}))
    return int(any(result[name] for name in ("crashes", "hangs", "server_errors", "wrong", "died")))


def summarise(parts: dict[str, FuzzSummary], survived: bool) -> dict[str, Any]:
    """The JSON line, of both parts together."""
    total: Counter[str] = sum((part.outcomes for part in parts.values()), Counter())
    return {
        "inputs": total.total(),
        "answered": total["answered"],
        "answered_share": round(total["answered"] / max(1, total.total()), 3),
        "crashes": total["crash"],
        "server_errors": total["exception"] + total["server error"],
        "hangs": total["hang"],
        "died": int(not survived),
        "parser_500": total[PARSER_500],
        "intact": sum(part.intact for part in parts.values()),
        "wrong": sum(part.wrong for part in parts.values()),
        "peak_mb": round(max(part.peak_mb for part in parts.values())),
        "slowest_ms": round(max(part.slowest_ms for part in parts.values())),
        "branches": {name: {each: part.branches[each] for each in BRANCHES} for name, part in parts.items()},
        "outcomes": {name: dict(part.outcomes.most_common()) for name, part in parts.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
