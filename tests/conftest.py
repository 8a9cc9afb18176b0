"""Shared by all tests: where the real clips are, sounds, and a real TorchServe."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocnn import cli
from audiocnn.classifier import Classifier
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.model.engine import Engine
from audiocnn.model.loading import load_engine, served_model_path
from audiocnn.torchserve.properties import read_properties

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints" / "esc50"
STORE = ROOT / "model_store"
SAMPLE_RATE = 44_100
SLOWEST = 6  # a machine of CI may be so many times slower than the limits of `wait_until` allow for


def parse(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What `audiocnn COMMAND ARGUMENTS` would be called with."""
    return dict(cli.load(command).make_context(command, list(arguments)).params)


@pytest.fixture(scope="session")
def esc50() -> Dataset:
    """The real clips; CI has them, elsewhere a test that needs them is skipped."""
    folder = Path(os.environ.get("ESC50_DIR", ROOT / "data" / "ESC-50"))
    if not (folder / "meta" / "esc50.csv").is_file():
        message = f"no ESC-50 at {folder}: link it there or set ESC50_DIR"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return read_dataset(folder)


@pytest.fixture(scope="session")
def fold4(esc50: Dataset) -> list[LabelledClip]:
    """200 clips of the fold that the released model has not seen, spread over the classes."""
    clips = sorted(esc50.folds([4]), key=lambda clip: clip.path.name)
    return clips[::2]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that is served."""
    return load_engine(served_model_path(STORE))


@pytest.fixture(scope="session")
def classifier(engine: Engine) -> Classifier:
    return Classifier(engine)


def sound_file(waveform: np.ndarray, *, sample_rate: int = SAMPLE_RATE, **options: str) -> bytes:
    """A sound file of `(num_samples,)` or `(num_samples, channels)`; WAV, 16 bit unless told."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, **({"format": "WAV", "subtype": "PCM_16"} | options))
    return file.getvalue()


def tone(seconds: float, *, hz: float = 1000.0, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A sine at half of full scale: float32 `(num_samples,)`."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Server:
    """A running TorchServe and how to reach it."""

    process: subprocess.Popen[str]
    inference: str
    management: str
    metrics: str
    logs: Path

    @property
    def predictions(self) -> str:
        return f"{self.inference}/predictions/audiocnn"

    def batches(self) -> list[set[str]]:
        """Request ids of every batch so far: TorchServe logs the time of each with its ids."""
        lines = (self.logs / "ts_log.log").read_text().splitlines()
        metrics = [line.partition("[METRICS]PredictionTime")[2].partition(", pattern=")[0] for line in lines]
        return [set(line.partition("#hostname:")[2].split(",")[2:]) for line in metrics if line]


def server_settings(config: str = "config.properties", **model: object) -> dict[str, str]:
    """A configuration of the repository on free ports; keyword arguments change the model's entry."""
    properties = read_properties(ROOT / config)
    inference, management, metrics, grpc1, grpc2 = free_ports(5)
    entry = json.loads(properties["models"])
    entry["audiocnn"]["1.0"] |= model
    scheme = properties["inference_address"].partition(":")[0]
    return properties | {
        "inference_address": f"{scheme}://127.0.0.1:{inference}",
        "management_address": f"{scheme}://127.0.0.1:{management}",
        "metrics_address": f"{scheme}://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc1),
        "grpc_management_port": str(grpc2),
        "models": json.dumps(entry),
        "metrics_config": str(ROOT / properties["metrics_config"]),  # some are started in another folder
    }


@contextmanager
def running_server(
    logs: Path, settings: dict[str, str], *, folder: Path = ROOT, flags: Sequence[str] = ()
) -> Iterator[Server]:
    """`audiocnn serve` with these settings, started in a folder, ready, and stopped afterwards."""
    command = [sys.executable, "-m", "audiocnn", "serve", "--logs", str(logs)]
    command += ["--config", str(ROOT / "config.properties"), "--timeout", "600", *flags]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"AUDIOCNN_LOG_LEVEL": "info", "PYTHONPATH": str(ROOT)},  # info: `Server.batches`
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("ready"):
                break
        else:
            pytest.fail("the server did not become ready:\n" + "".join(printed))
        addresses = (settings[f"{name}_address"] for name in ("inference", "management", "metrics"))
        yield Server(process, *addresses, logs=logs)
    finally:
        process.terminate()
        process.wait(timeout=120)
        process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it is configured, on free ports."""
    with running_server(tmp_path_factory.mktemp("logs"), server_settings()) as running:
        yield running


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time: `seconds` on a fast machine, `SLOWEST` times as long here."""
    deadline = time.monotonic() + SLOWEST * seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
