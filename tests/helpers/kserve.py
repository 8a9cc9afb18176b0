"""KServe's Python server as a process."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from audiocnn.model.loading import served_model_path
from export import triton
from tests.helpers.clients import start_client
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.waiting import wait_until

LOG_MEL = "audiocnn-log-mel"  # the model from log-mels


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of KServe's server: a model repository as `export.triton` writes it, and the served file."""
    folder, (port,) = tmp_path_factory.mktemp("kserve"), free_ports(1)
    repository = triton.export(STORE, folder)
    with (folder / "log").open("wb") as log:
        program = ROOT / "tests" / "helpers" / "kserve_server.py"
        models = {repository.name: repository / "1" / "model.onnx", LOG_MEL: served_model_path(STORE)}
        named = [f"{name}={path}" for name, path in models.items()]
        process = start_client(["python", "-P", program, str(port), *named], log)

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).is_success
        except httpx.TransportError:
            return process.poll() is not None

    try:
        assert wait_until(is_up, 120) and process.poll() is None, (folder / "log").read_text()  # noqa: PT018
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)
