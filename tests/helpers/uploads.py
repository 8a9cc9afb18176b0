"""Uploads to the page."""

from __future__ import annotations

import httpx

from tests.helpers.gateways import RunningGateway

UPLOAD = "/ui/gradio_api/upload"
NOBODY = "http://127.0.0.1:1"  # no upload needs TorchServe
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="f.wav"\r\n\r\n'


def upload(gateway: RunningGateway, size: int, fill: int = 0) -> httpx.Response:
    return gateway.post(UPLOAD, files={"files": (f"{fill}.wav", bytes([fill]) * size)})
