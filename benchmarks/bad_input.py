"""What bad input costs, and whom: `python -m benchmarks.bad_input`.

Sends every kind of bad request to a running TorchServe of its own (one worker, so that they share a
batch), between intact clips. A row for each: status, code, milliseconds, how much the worker's memory
grew at its peak, and whether its neighbours got 200 and the answer that they get alone.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import soundfile
from rich.console import Console
from rich.table import Table

from audiocnn.audio import synthetic
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.server import MODEL, TorchServe
from audiocnn.torchserve.tune import Setting, running

RATE = 44_100
NEIGHBOURS = ("rain", "siren", "church_bells")
Headers = dict[str, str]


def _file(waveform: np.ndarray, rate: int = RATE, **kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, **({"format": "WAV", "subtype": "PCM_16"} | kind))
    return file.getvalue()


def _silence(seconds: float, rate: int, **kind: str) -> bytes:
    """Written in blocks: an hour of it fits in little memory here as well."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, **kind) as sound:
        for _ in range(round(seconds)):
            sound.write(np.zeros(rate, np.float32))
    return file.getvalue()


def _patched(data: bytes, offset: int, value: int) -> bytes:
    """With the four bytes at an offset replaced, little-endian."""
    return data[:offset] + value.to_bytes(4, "little") + data[offset + 4 :]


def cases() -> dict[str, tuple[bytes, Headers]]:
    """Name -> body and headers."""
    rng = np.random.default_rng(0)
    wav, noise = synthetic.wav("rain"), rng.uniform(-0.5, 0.5, RATE).astype(np.float32)
    holes, infinite = noise.copy(), noise.copy()
    holes[1000], infinite[1000] = np.nan, np.inf
    json_type = {"Content-Type": "application/json"}
    bodies = {
        "empty": b"",
        "text": b"Hello, what sound is this?",
        "random bytes": rng.bytes(100_000),
        "WAV, header cut at 20 bytes": wav[:20],
        "WAV, header alone": wav[:44],
        "WAV, data cut in half": wav[: len(wav) // 2],
        "WAV, no frames": _file(np.zeros(0, np.float32)),
        "WAV, data size 0 in the header": _patched(wav, 40, 0),
        "WAV, data size 4 GB in the header": _patched(wav, 40, 0xFFFFFFF0),
        "WAV, NaN": _file(holes, subtype="FLOAT"),
        "WAV, infinite": _file(infinite, subtype="FLOAT"),
        "WAV, 8 channels": _file(np.repeat(noise[:, None], 8, axis=1)),
        "WAV, 255 channels": _file(np.repeat(noise[:2000, None], 255, axis=1)),
        "WAV, 1 Hz": _file(noise[:100], 1),
        "WAV, 1 MHz": _file(noise, 1_000_000),
        "FLAC, cut in half": (flac := _file(noise, format="FLAC"))[: len(flac) // 2],
        "FLAC, an hour of silence": _silence(3600, 8_000, format="FLAC", subtype="PCM_16"),
        "FLAC, 9 minutes 50 s of silence": _silence(590, 8_000, format="FLAC", subtype="PCM_16"),
        "MP3, 20 minutes": _silence(1200, 16_000, format="MP3", subtype="MPEG_LAYER_III"),
        "Ogg, first page alone": _file(noise, format="OGG", subtype="VORBIS")[:58],
    }
    raw: dict[str, tuple[bytes, Headers]] = {name: (body, {}) for name, body in bodies.items()}
    b64 = base64.b64encode(wav).decode()
    return raw | {
        "base64, damaged": (b'{"audio_data": "@@@@"}', json_type),
        "base64, cut": (json.dumps({"audio_data": b64[:10_001]}).encode(), json_type),
        "JSON, cut": (b'{"audio_data": "UklG', json_type),
        "JSON, 10,000 brackets": (b"[" * 10_000, json_type),
        "JSON, said of a WAV": (wav, json_type),
        "a form, said of a WAV": (wav, {"Content-Type": "application/x-www-form-urlencoded"}),
        "top_k of 10^400": (wav, {"X-Top-K": "1" + "0" * 400}),
        "layers that are a path": (wav, {"X-Layers": "../../etc/passwd"}),
        "an unknown key": (json.dumps({"audio_data": b64, "volume": 11}).encode(), json_type),
    }


@dataclass(frozen=True)
class Row:
    """What became of one bad request; `peak_mb` is how much the worker grew while it ran."""

    name: str
    bytes: int
    status: int
    code: str
    ms: float
    peak_mb: float
    neighbours_right: bool


@contextmanager
def peak_memory(processes: list[psutil.Process]) -> Iterator[list[float]]:
    """The largest growth of the processes' resident memory in MB, as the one element of a list."""
    base, peak, stop = sum(p.memory_info().rss for p in processes), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            grown = sum(p.memory_info().rss for p in processes) - base
            peak[0] = max(peak[0], grown / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    stop.set()
    thread.join()


def workers(server: TorchServe) -> list[psutil.Process]:
    """The Python processes that answer."""
    (model,) = requests.get(f"{server.management}/models/{MODEL}", timeout=10).json()
    return [psutil.Process(worker["pid"]) for worker in model["workers"]]


def run(server: TorchServe) -> list[Row]:
    """Every case, three intact clips beside it."""
    address = f"{server.inference}/predictions/{MODEL}"
    clips = [synthetic.wav(name) for name in NEIGHBOURS]

    def ask(body: bytes, headers: Headers | None = None) -> requests.Response:
        given = {"Content-Type": "application/octet-stream"} | (headers or {})
        return requests.post(address, data=body, headers=given, timeout=120)

    alone = [ask(clip).json()["predictions"] for clip in clips]
    rows = []
    with ThreadPoolExecutor(4) as pool:
        for name, (body, headers) in cases().items():
            with peak_memory(workers(server)) as peak:
                began = time.perf_counter()
                bad = pool.submit(ask, body, headers)
                replies = list(pool.map(ask, clips))
                reply = bad.result()
                milliseconds = 1000 * (time.perf_counter() - began)
            right = [
                r.status_code == 200 and r.json()["predictions"] == a
                for r, a in zip(replies, alone, strict=True)
            ]
            rows.append(
                Row(name, len(body), reply.status_code, _code(reply), milliseconds, peak[0], all(right))
            )
    return rows


def _code(reply: requests.Response) -> str:
    body: dict[str, Any] = reply.json()
    if reply.status_code == 200:
        return "answered" + (", warned" if body["warnings"] else "")
    error = body.get("error")
    return str(error["code"] if error else f"TorchServe: {body.get('type')}")


def main() -> int:
    """Entry point; 1 if a neighbour was hurt or a request got a server error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bad_input", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    args = parser.parse_args()
    one_worker = Setting(workers=1, threads=1, batch=8, delay=50)
    with (
        tempfile.TemporaryDirectory() as logs,
        running(read_properties(args.config), one_worker, Path(logs)) as server,
    ):
        rows = run(server)
    table = Table("input", "bytes", "status", "code", "ms (with 3 others)", "peak MB", "neighbours")
    for row in rows:
        right = "right" if row.neighbours_right else "HURT"
        table.add_row(
            row.name, str(row.bytes), str(row.status), row.code, f"{row.ms:.0f}", f"{row.peak_mb:.0f}", right
        )
    Console(width=130).print(table)
    server_errors = sum(row.status >= 500 for row in rows)
    hurt = sum(not row.neighbours_right for row in rows)
    summary: dict[str, float] = {"inputs": len(rows), "server_errors": server_errors, "neighbours_hurt": hurt}
    summary |= {"peak_mb": max(r.peak_mb for r in rows), "slowest_ms": max(r.ms for r in rows)}
    print(json.dumps(summary | {"rows": [asdict(row) for row in rows]}))
    return int(bool(server_errors or hurt))


if __name__ == "__main__":
    sys.exit(main())
