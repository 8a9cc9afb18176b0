"""`audiocnn manage`, archives of other versions, and load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from audiocnn.audio import synthetic
from tests.helpers.command_line import run
from tests.helpers.paths import ROOT, STORE
from tests.helpers.servers import Server, running_server, server_settings

RAIN = synthetic.wav("rain")
MANIFEST = "MAR-INF/MANIFEST.json"
CONCURRENCY = 12


def manage(server: Server, *arguments: object, code: int = 0) -> str:
    """What the command printed; it must exit with `code`."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        done = run("manage", "--inference", server.inference, "--management", server.management, *arguments)
    finally:  # the command has handlers of its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def repack(
    archive: Path, version: str, change: Callable[[str, bytes], bytes] = lambda name, data: data
) -> Path:
    """A copy of the served archive as another version, its files as `change` makes them."""
    with zipfile.ZipFile(STORE / "audiocnn.mar") as old, zipfile.ZipFile(archive, "w") as new:
        for item in old.infolist():
            data = change(item.filename, old.read(item))
            if item.filename == MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["modelVersion"] = version
                data = json.dumps(manifest).encode()
            new.writestr(item, data, compress_type=zipfile.ZIP_STORED)  # to deflate 40 MB takes seconds
    return archive


def versions(server: Server) -> list[str]:
    reply = requests.get(f"{server.management}/models/audiocnn/all", timeout=120)
    return sorted(version["modelVersion"] for version in reply.json())


def default(server: Server) -> str:
    (version,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    return str(version["modelVersion"])


@contextmanager
def load(server: Server) -> Iterator[Counter[str]]:
    """Plain HTTP at concurrency 12, no retries, while the block runs; what came back is counted."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    reply = session.post(server.predictions, data=RAIN, timeout=120)
                    top = reply.json()["predictions"][0]["class"] if reply.ok else reply.text
                    seen[f"{reply.status_code} {top}"] += 1
                except requests.RequestException as error:
                    seen[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield seen
        time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def start_until(server: Server, word: str, *arguments: object) -> subprocess.Popen[str]:
    """The command, from when it printed a line with this word."""
    command = [sys.executable, "-m", "audiocnn", "manage", "--management", server.management]
    command += ["--inference", server.inference, *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert any(word in line for line in process.stdout)
    return process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "store"  # the record of checksums is beside it
    folder.mkdir()
    shutil.copy(STORE / "audiocnn.mar", folder)
    return folder


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """A server that registers models, on a store of its own."""
    settings = server_settings() | {
        "enable_model_api": "true",
        "model_store": str(store),
    }
    with running_server(tmp_path_factory.mktemp("open"), settings) as running:
        yield running
