"""Resources of an idle gateway: `python -m benchmarks.gateway_footprint [--checkout DIR]`.

Starts the gateway without TorchServe and reads `/proc`: seconds until `/health` answers and CPU seconds until
then, resident memory, and wake-ups a second (voluntary context switches of all threads). Then the packages
that the extra `gateway` needs besides Python, as they are installed here, and the lines of code of
`audiocnn/gateway`. Prints a table, then the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from audiocnn import command
from audiocnn.torchserve.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
CODE = (".py", ".js", ".css", ".html")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = command.new_parser("benchmarks.gateway_footprint", __doc__, "--checkout ../other --rounds 5")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="folder of the checkout (this one)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of idle time to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="starts; medians are printed (%(default)s)")
    return parser.parse_args(arguments)


@contextmanager
def gateway(checkout: Path) -> Iterator[tuple[int, float]]:
    """Process id of a gateway that answers, and the seconds until it did."""
    port = free_port()
    modules = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    own = {"GATEWAY_PORT": str(port), "TORCHSERVE_URL": "http://127.0.0.1:1", "PYTHONPATH": modules}
    command = [sys.executable, "-m", "audiocnn", "gateway"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout, env=os.environ | own, stderr=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise RuntimeError(f"the gateway of {checkout} ended with {process.returncode}")
            time.sleep(0.01)
        yield process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def status_sum(pid: int, name: str) -> int:
    """A number of `/proc/PID/task/*/status`, summed over the threads."""
    files = Path(f"/proc/{pid}/task").glob("*/status")
    lines = [line for file in files for line in file.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(checkout: Path, seconds: float) -> dict[str, float]:
    """One start."""
    with gateway(checkout) as (pid, start_seconds):
        start_cpu = cpu_seconds(pid)
        time.sleep(3)  # what it does at first
        before = status_sum(pid, "voluntary_ctxt_switches")
        time.sleep(seconds)
        woken = status_sum(pid, "voluntary_ctxt_switches") - before
        memory = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
    return {
        "start_seconds": start_seconds,
        "start_cpu_seconds": start_cpu,
        "memory_mb": memory / 1024,
        "wakeups_per_second": woken / seconds,
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


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is measured."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    rounds = [measure(args.checkout, args.seconds) for _ in range(args.rounds)]
    found = packages(args.checkout)
    files = [path for path in (args.checkout / "audiocnn" / "gateway").rglob("*") if path.suffix in CODE]
    row = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    row |= {"packages": len(found), "packages_mb": round(sum(map(size_mb, found.values())), 1)}
    row |= {"code_lines": sum(len(path.read_text().splitlines()) for path in files)}
    for name, value in row.items():
        print(f"{name:>20} {value:10,}")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
