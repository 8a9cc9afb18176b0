"""Triton's load generator against this server: `python -m benchmarks.perf_analyzer`.

Starts `audiocnn serve --gateway` and measures TorchServe and both models at `/v2` with `perf_analyzer`, and
TorchServe and `/predict` with this project's closed loop beside it, all with one 5 s clip on the same cores.
perf_analyzer is not among the dependencies, as its wheel needs glibc 2.38: `--command` says how to start it.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import shlex
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiocnn import audio, command
from audiocnn.audio import synthetic
from audiocnn.config import FrontendConfig
from benchmarks import load
from benchmarks.command import print_rows
from benchmarks.load import FORM, Target, as_form
from benchmarks.server_fixture import ServerFixture, tuned_server

CONCURRENCY = (1, 8)
_REQUESTS = 200  # of one window of perf_analyzer
# It repeats windows until two in a row agree; on shared cores they hardly do.
_WINDOWS = ["--measurement-mode", "count_windows", "--measurement-request-count", str(_REQUESTS)]
_WINDOWS += ["--max-trials", "5", "--stability-percentage", "30"]
Row = dict[str, float]


def write_inputs(folder: Path) -> dict[str, list[str]]:
    """The input files of perf_analyzer; returns the options of each case that do not depend on the server."""
    clip, rate = synthetic.wav("rain"), FrontendConfig().sample_rate
    waveform = audio.decode(clip, sample_rate=rate).waveform
    (folder / "clip.wav").write_bytes(clip)
    element = struct.pack("<I", len(clip)) + clip
    inputs = {
        "torchserve": {"TORCHSERVE_INPUT": [str(folder / "clip.wav")]},
        "v2 audiocnn": {"audio": {"b64": base64.b64encode(element).decode()}},
        "v2 audiocnn-waveform": {
            "waveform": {"b64": base64.b64encode(waveform.astype("<f4").tobytes()).decode()}
        },
    }
    options = {}
    for name, data in inputs.items():
        path = folder / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps({"data": [data]}))
        options[name] = ["-m", name.removeprefix("v2 "), "--input-data", str(path)]
    options["torchserve"][1:2] = ["audiocnn", "--service-kind", "torchserve"]
    options["v2 audiocnn-waveform"] += ["--shape", f"waveform:{len(waveform)}"]
    return options


def measure(command: Sequence[str], options: Sequence[str], url: str, concurrency: int, out: Path) -> Row:
    """One run of perf_analyzer. Raises `RuntimeError` with its output if it fails."""
    arguments = [*options, "-u", url.removeprefix("http://"), "--concurrency-range", str(concurrency)]
    done = subprocess.run(
        [*command, *arguments, *_WINDOWS, "-f", str(out)], capture_output=True, text=True, check=False
    )
    if not out.is_file():
        raise RuntimeError(f"perf_analyzer failed:\n{done.stdout}{done.stderr}")
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    out.unlink()
    return {
        "clips/s": float(row["Inferences/Second"]),
        **{f"p{n} ms": float(row[f"p{n} latency"]) / 1000 for n in (50, 99)},
    }


def own(target: Target, concurrency: int, seconds: float) -> Row:
    """The same with the closed loop of `benchmarks.load`."""
    measured = load.closed_loop(target, concurrency, seconds)
    p50, _, p99, _ = load.percentiles(measured.samples).values()
    found = {"p50 ms": p50 or float("nan"), "p99 ms": p99 or float("nan")}
    return {"clips/s": measured.clips_per_second} | found


def rows(
    server: ServerFixture, command: Sequence[str], folder: Path, seconds: float
) -> Iterator[tuple[str, Row]]:
    """Every case at every concurrency: its name and what was measured."""
    clip = synthetic.wav("rain")
    targets = {
        "torchserve": Target(f"{server.inference}/predictions/audiocnn", [clip], ["rain"], load.OCTETS),
        "/predict": Target(f"{server.gateway}/predict", [as_form(clip)], ["rain"], FORM),
    }
    for concurrency in CONCURRENCY:
        for name, options in write_inputs(folder).items():
            url = server.inference if name == "torchserve" else server.gateway
            row = measure(command, options, url, concurrency, folder / "out.csv")
            yield f"perf_analyzer, {name}, {concurrency}", row
        for name, target in targets.items():
            yield f"closed loop, {name}, {concurrency}", own(target, concurrency, seconds)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--command", default="perf_analyzer", help="that starts it (%(default)s)")
    parser.add_argument(
        "--seconds", type=command.positive, default=5.0, help="of the closed loop (%(default)s)"
    )


@command.entry_point(_options, '--command "perf_analyzer"')
def main(args: argparse.Namespace) -> None:
    """Print the table, then one line of JSON."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tuned_server(Path(folder)) as server,
    ):
        result = dict(rows(server, shlex.split(args.command), Path(folder), args.seconds))
    print_rows(result, "load, address, clients")
    print(json.dumps({"benchmark": "perf_analyzer", "rows": result}))


if __name__ == "__main__":
    sys.exit(main())
