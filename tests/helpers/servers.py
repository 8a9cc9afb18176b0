"""A real TorchServe: its settings, start and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from audiocnn.torchserve.properties import read_properties
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports


@dataclass
class Server:
    """A running TorchServe and how to reach it."""

    process: subprocess.Popen[str]
    inference: str
    management: str
    metrics: str
    logs: Path
    grpc_port: int = 0

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
        yield Server(process, *addresses, logs=logs, grpc_port=int(settings["grpc_inference_port"]))
    finally:
        process.terminate()
        process.wait(timeout=120)
        process.stdout.close()
