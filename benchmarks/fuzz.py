"""Damaged files and odd requests by the thousand: `python -m benchmarks.fuzz [--quick]`.

20,000 mutants go through the classifier, in processes that may die or hang; 2,000 more go over HTTP to a real
TorchServe and a gateway in front of it, as raw bodies, JSON and forms, these damaged too. Every 50th is an
intact clip that must be answered as ever. The same seed makes the same inputs. What crashes, hangs or gets a
server error is written to a file: `--replay FILE` sends it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from audiocnn.model.loading import served_model_path
from benchmarks.http_fuzz import PARSER_500, Letter, Post, letter
from benchmarks.mutations import INTACT_EVERY, Mutant, mutant
from benchmarks.sandbox import Verdict, Victim
from benchmarks.server_fixture import Stage

BATCH = 8
BAD = ("crash", "hang", "exception", "server error")
TOLERANCE = 0.01


class Book:
    """Verdicts, counted; what is bad is kept."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.bad: list[Verdict] = []
        self.slowest_ms = 0.0
        self.intact = self.wrong = 0
        self._known: dict[str, Verdict] = {}

    def learn(self, key: str, verdict: Verdict) -> None:
        """The answer to an intact clip, from a process that has seen nothing else."""
        self._known[key] = verdict

    def add(self, verdict: Verdict, key: str) -> None:
        """One verdict; `key` names the clip if it was an intact one."""
        self.outcomes[verdict.outcome] += 1
        self.slowest_ms = max(self.slowest_ms, verdict.ms)
        if verdict.outcome in BAD:
            self.bad.append(verdict)
        if key:
            known = self._known[key]
            same = verdict.outcome == known.outcome == "answered" and verdict.top == known.top
            self.intact += 1
            self.wrong += not (same and abs(verdict.confidence - known.confidence) <= TOLERANCE)


def intact_ones(seed: int, numbers: Sequence[int]) -> dict[str, Mutant]:
    """The intact clips among the inputs, each once, by key."""
    found = (mutant(seed, number) for number in numbers if number % INTACT_EVERY == 0)
    return {one.intact: one for one in found if one.intact}


def fuzz_classifier(
    book: Book, model: Path, seed: int, count: int, folder: Path, progress: Progress
) -> float:
    """The first part; returns the most memory in MB that a process took."""
    cores = len(os.sched_getaffinity(0))
    task = progress.add_task("classifier", total=count)
    with ThreadPoolExecutor(cores) as pool:
        victims = list(pool.map(lambda n: Victim(model, seed, folder / f"decoders-{n}.log"), range(cores)))
        for key, one in intact_ones(seed, range(count)).items():
            (verdict,) = victims[0].judge([one])
            book.learn(key, verdict)

        def work(index: int) -> list[Verdict]:
            verdicts = []
            for first in range(index * BATCH, count, cores * BATCH):
                order = range(first, min(first + BATCH, count))
                verdicts += victims[index].judge(order)
                progress.advance(task, len(order))
            return verdicts

        for verdicts in pool.map(work, range(cores)):
            for verdict in verdicts:
                key = mutant(seed, verdict.number).intact if verdict.number % INTACT_EVERY == 0 else ""
                book.add(verdict, key)
        for victim in victims:
            victim.close()
    return max(victim.peak_mb for victim in victims)


def fuzz_http(
    book: Book, stage: Stage, seed: int, numbers: Sequence[int], progress: Progress
) -> tuple[float, bool]:
    """The second part; the most memory in MB that a worker took, and whether all processes lived."""
    before, peak = stage.processes(), 0.0
    post = Post(stage.inference, stage.gateway)
    for key, clip in intact_ones(seed, numbers).items():
        book.learn(key, post.send(Letter.plain(clip)))
    task = progress.add_task("over HTTP", total=len(numbers))
    with ThreadPoolExecutor(BATCH) as pool:
        for start in range(0, len(numbers), 8 * BATCH):
            part = [letter(seed, number) for number in numbers[start : start + 8 * BATCH]]
            for one, verdict in zip(part, pool.map(post.send, part), strict=True):
                book.add(verdict, one.intact)
            progress.advance(task, len(part))
            peak = max([peak, *(worker.memory_info().rss / 1e6 for worker in stage.workers())])
    after = stage.processes()
    alive = {name: process.pid for name, process in before.items()}
    return peak, alive == {name: process.pid for name, process in after.items()}


def save(verdict: Verdict, folder: Path, content: Mutant | Letter) -> Path:
    """What was bad, for `--replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{verdict.outcome.replace(' ', '-')}-{verdict.number}.json"
    path.write_text(json.dumps(content.to_json() | {"why": verdict.why}), encoding="utf-8")
    return path


def replay(path: Path, model: Path, config: Path, console: Console) -> int:
    """Send one saved input again."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if "target" in content:
            with Stage(Path(folder) / "stage", config=config) as stage:
                verdict = Post(stage.inference, stage.gateway).send(Letter.from_json(content))
        else:
            victim = Victim(model, 0, Path(folder) / "decoders.log")
            (verdict,) = victim.judge([Mutant.from_json(content)])
            victim.close()
    console.print(verdict)
    return int(verdict.outcome in BAD)


def print_table(console: Console, books: dict[str, Book]) -> None:
    """A row for each outcome."""
    table = Table("outcome", *books)
    names: Iterator[str] = iter(sorted({name for book in books.values() for name in book.outcomes}))
    for name in names:
        table.add_row(name, *(str(book.outcomes[name]) for book in books.values()))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 if anything crashed, hung, got a server error, or an intact clip another answer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="20,000 inputs and 2,000 over HTTP (else ten times)"
    )
    parser.add_argument("--inputs", type=int, help="through the classifier")
    parser.add_argument("--http", type=int, help="over HTTP")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send what was saved again")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"), help="folder (%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    console, model = Console(stderr=True), served_model_path(args.store)
    if args.replay:
        return replay(args.replay, model, args.config, console)
    scale = 1 if args.quick else 10
    inputs = 20_000 * scale if args.inputs is None else args.inputs
    over_http = 2_000 * scale if args.http is None else args.http
    return run(args, model, inputs, over_http, console)


def run(args: argparse.Namespace, model: Path, inputs: int, over_http: int, console: Console) -> int:
    """Both parts, the table and the JSON line."""
    began, books, peak, worker_peak, lived = (
        time.monotonic(),
        {"classifier": Book(), "HTTP": Book()},
        0.0,
        0.0,
        True,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    numbers = range(inputs, inputs + over_http)  # other inputs than those of the first part
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        Progress(*columns, console=console) as progress,
    ):
        if inputs:
            peak = fuzz_classifier(books["classifier"], model, args.seed, inputs, Path(name), progress)
        if over_http:
            with Stage(Path(name) / "stage", config=args.config) as stage:
                worker_peak, lived = fuzz_http(books["HTTP"], stage, args.seed, numbers, progress)
    print_table(console, books)
    for part, book in books.items():
        for verdict in book.bad[:20]:
            make: Callable[[int, int], Mutant | Letter] = mutant if part == "classifier" else letter
            path = save(verdict, args.save, make(args.seed, verdict.number))
            console.print(f"{verdict.outcome} ({verdict.why}): --replay {path}", highlight=False)
    if not lived:
        console.print("a process of the server died over HTTP: see its log")
    result = summary(books, max(peak, worker_peak), lived)
    print(
        json.dumps(
            {"benchmark": "fuzz", "seed": args.seed, **result, "seconds": round(time.monotonic() - began)}
        )
    )
    failures = ("crashes", "hangs", "server_errors", "wrong", "died")
    return int(any(result[name] for name in failures))


def summary(books: dict[str, Book], peak_mb: float, lived: bool) -> dict[str, Any]:
    """The JSON line, of both parts together."""
    total: Counter[str] = sum((book.outcomes for book in books.values()), Counter())
    return {
        "inputs": total.total(),
        "answered": total["answered"],
        "answered_share": round(total["answered"] / max(1, total.total()), 3),
        "crashes": total["crash"],
        "server_errors": total["exception"] + total["server error"],
        "hangs": total["hang"],
        "died": int(not lived),
        "parser_500": total[PARSER_500],
        "intact": sum(book.intact for book in books.values()),
        "wrong": sum(book.wrong for book in books.values()),
        "peak_mb": round(peak_mb),
        "slowest_ms": round(max(book.slowest_ms for book in books.values())),
        "outcomes": {part: dict(book.outcomes.most_common()) for part, book in books.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
