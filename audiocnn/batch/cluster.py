"""Ray: starts or joins a cluster, and streams chunks through a pool of workers with one model each."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

# Before Ray is imported: it reads them once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data
from ray.exceptions import RayError

from audiocnn.batch.state import Chunk
from audiocnn.batch.worker import Job, Worker

OBJECT_STORE_BYTES = 128 << 20  # rows of numbers pass through it, never audio
SLICE = 2000  # chunks given to Ray Data at a time: each costs 3 kB and 6 ms at the start


class ClusterError(RuntimeError):
    """The cluster cannot be started or reached, or a chunk failed for good."""


@dataclass(frozen=True)
class Done:
    """A finished chunk: its outcome as JSON, and how long it took."""

    chunk: int
    outcome: str
    seconds: float


def start(address: str | None, workers: int | None, threads: int) -> int:
    """Join the cluster at an address, or start one here; returns how many workers there will be.

    Raises `ClusterError` if that cannot be done.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    here = workers or max(1, len(os.sched_getaffinity(0)) // threads)
    try:
        with _own_signal_handlers():
            _init(address, here * threads)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = f"reached at {address}" if address else "started"
        raise ClusterError(f"Ray cannot be {what}: {error}") from error
    return _workers(address, workers, threads) if address else here


def _init(address: str | None, num_cpus: int) -> None:
    if address is not None:
        is_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",  # never a cluster that already runs here
        num_cpus=num_cpus,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keeps the handlers of signals as they are: Ray's exit with codes of their own."""
    set_handler = signal.signal
    signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler


def _workers(address: str, workers: int | None, threads: int) -> int:
    there = int(ray.cluster_resources().get("CPU", 0)) // threads  # type: ignore[no-untyped-call]
    if not there:
        raise ClusterError(f"no machine of the cluster at {address} has {threads} CPUs to spare")
    return min(workers or there, there)


def is_reachable(address: str) -> None:
    """Raises `OSError` at once if nothing listens at HOST:PORT: Ray retries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def run(job: Job, chunks: Sequence[Chunk], workers: int) -> Generator[Done, None, None]:
    """Process chunks in any order; each is yielded once, when its parts have been published.

    A worker or a machine that dies is replaced and its chunks are repeated. Raises `ClusterError` if a
    chunk fails otherwise.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray sees no row before a chunk is done, and a file may take hours.
    context.execution_no_progress_timeout_s = -1
    for first in range(0, len(chunks), SLICE):
        yield from _run(job, chunks[first : first + SLICE], workers)


def _run(job: Job, chunks: Sequence[Chunk], workers: int) -> Iterator[Done]:
    rows = [{"chunk": c.id, "start": c.start, "length": c.length} for c in chunks]
    # A block for every chunk: Ray Data schedules and repeats blocks.
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        num_cpus=job.threads,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
    )
    try:
        for row in results.iter_rows():
            yield Done(**row)
    except RayError as error:
        raise ClusterError(reason(error)) from error


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Redirects standard error (Ray also writes to it from C++) to a file; yields the real one."""
    sys.stderr.flush()
    real = os.dup(2)
    with log.open("ab") as file, open(real, "w", encoding="utf-8") as stderr:
        os.dup2(file.fileno(), 2)
        try:
            yield stderr
        finally:
            os.dup2(real, 2)


def reason(error: BaseException) -> str:
    """The error inside a worker: the last line that names an exception, preferably not one of Ray's."""
    named = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .+", str(error), re.MULTILINE)
    ours = [line for line in named if not line.startswith("ray.")]
    return str((ours or named or [error])[-1])


def stop() -> None:
    """Leave the cluster; one that was started here is stopped."""
    ray.shutdown()
