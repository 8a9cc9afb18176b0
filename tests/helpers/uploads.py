"""Uploads to the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.gateways import RunningGateway, running_gateway

UPLOAD = "/ui/gradio_api/upload"
NOBODY = "http://127.0.0.1:1"  # no upload needs TorchServe
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="f.wav"\r\n\r\n'


def upload(gateway: RunningGateway, size: int, fill: int = 0) -> httpx.Response:
    return gateway.post(UPLOAD, files={"files": (f"{fill}.wav", bytes([fill]) * size)})


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningGateway]:
    limits = {"max_upload_mb": 1, "max_stored_mb": 2.5, "upload_seconds": 4}
    with running_gateway(tmp_path, NOBODY, tmpdir=tmp_path, **limits) as running:
        yield running
