"""Resources of an idle gateway: `python -m benchmarks.gateway_footprint [--checkout DIR]`.

Starts the gateway without TorchServe and reads `/proc`: seconds until `/health` answers and CPU seconds until
then, resident memory, and wake-ups a second (voluntary context switches of all threads). Then the packages
that the extra `gateway` needs besides Python, as they are installed here, and the lines of code of
`audiocnn/gateway`. Prints a table, then the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import time
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from audiocnn import command
from benchmarks.server_process import GatewayServer

ROOT = Path(__file__).resolve().parent.parent
CODE = (".py", ".js", ".css", ".html")


def wake_ups(pid: int) -> int:
    """Voluntary context switches of all threads so far; psutil has those of the first."""
    files = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(re.findall(r"\nvoluntary_ctxt_switches:\s+(\d+)", file.read_text())[0]) for file in files)


def measure(checkout: Path, seconds: float) -> dict[str, float]:
    """One start."""
    gateway = GatewayServer({"TORCHSERVE_URL": "http://127.0.0.1:1"}, checkout=checkout, ready_path="/health")
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.stop)
        began = time.perf_counter()
        gateway.start()
        gateway.wait_ready()
        start_seconds, process = time.perf_counter() - began, gateway.process
        start_cpu_seconds = sum(process.cpu_times()[:2])  # user, system
        time.sleep(3)  # what it does at first
        before = wake_ups(process.pid)
        time.sleep(seconds)
        return {
            "start_seconds": start_seconds,
            "start_cpu_seconds": start_cpu_seconds,
            "memory_mb": process.memory_info().rss / 2**20,
            "wakeups_per_second": (wake_ups(process.pid) - before) / seconds,
        }


def packages(checkout: Path) -> dict[str, Distribution]:
    """What the extra `gateway` needs, without the project's own dependencies (torch, ...)."""
    extras = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [line for name in ("gateway", "client") for line in extras[name]]
    waiting = [Requirement(line) for line in lines if not line.startswith("audiocnn-serve")]
    found: dict[str, Distribution] = {}
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        needed = map(Requirement, found[name].requires or [])
        waiting += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def size_mb(package: Distribution) -> float:
    """Of its installed files."""
    paths = (Path(str(package.locate_file(file))) for file in package.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkout", type=Path, default=ROOT, help="folder of the checkout (this one)")
    parser.add_argument(
        "--seconds", type=command.positive, default=10.0, help="of idle time to measure (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=command.count, default=3, help="starts; medians are printed (%(default)s)"
    )


@command.entry_point(_options, "--checkout ../other --rounds 5")
def main(args: argparse.Namespace) -> None:
    """Print the table, then the line of JSON."""
    rounds = [measure(args.checkout, args.seconds) for _ in range(args.rounds)]
    found = packages(args.checkout)
    files = [path for path in (args.checkout / "audiocnn" / "gateway").rglob("*") if path.suffix in CODE]
    row = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    row |= {"packages": len(found), "packages_mb": round(sum(map(size_mb, found.values())), 1)}
    row |= {"code_lines": sum(len(path.read_text().splitlines()) for path in files)}
    for name, value in row.items():
        print(f"{name:>20} {value:10,}")
    print(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())
