"""Requests of all kinds to a server and its gateway, and their metrics."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from audiocnn.audio import synthetic
from tests.helpers.gateways import TLS, RunningGateway, running_gateway
from tests.helpers.paths import ROOT
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
RAIN = synthetic.wav("rain")
SILENCE = sound_file(0 * tone(5.0))
NOISE = sound_file(0.3 * np.random.default_rng(0).standard_normal(220_500).clip(-3, 3))  # no class fits it
BROKEN, FORM = b"\xff&%" * 9, {"Content-Type": "application/x-www-form-urlencoded"}  # 500: no such form
JUNK = b"Hello, what sound is this? My secret is QZXW-secret."
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = dict[str, float]  # "name{label=value,...}" without the host: value


def scrape(url: str, **options: Any) -> Samples:
    """Every sample of a page in Prometheus' format. (prometheus_client's parser renames our `x_count`.)"""
    reply = httpx.get(url, trust_env=False, verify=TLS, **options)
    assert reply.status_code == 200, reply.text
    found = {}
    for line in reply.text.splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()  # type: ignore[union-attr]
            pairs = [f"{k}={v}" for k, v in sorted(LABEL.findall(labels or "")) if k.lower() != "hostname"]
            found[f"{name}{{{','.join(pairs)}}}"] = float(value)
    return found


def ours(name: str, **labels: str) -> str:
    """The key of one of our worker's samples."""
    pairs = sorted({"model_name": "audiocnn", "model_version": "1.0", **labels}.items())
    return f"{name}{{{','.join(f'{k}={v}' for k, v in pairs)}}}"


# --- real servers ---


@dataclass
class Observed:
    """TorchServe and a gateway in front of it, with some traffic behind them."""

    server: Server
    gateway: RunningGateway

    def torchserve(self) -> Samples:
        return scrape(f"{self.server.metrics}/metrics")

    def scrape_gateway(self) -> Samples:
        return scrape(f"{self.gateway.url}/metrics")

    def logs(self) -> dict[str, list[str]]:
        files = [self.gateway.log, *self.server.logs.glob("*_log.log")]
        return {path.name: path.read_text().splitlines() for path in files}

    def found(self, name: str, is_it: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The lines of a log that are what is looked for; they are written after the reply."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [line for line in map(json.loads, self.logs()[name]) if is_it(line)]
            return bool(found)

        wait_until(look, 10)
        return found


def make_traffic(gateway: RunningGateway) -> None:
    """Answers, an error, silence, noise, a batch, an unknown address, and two streams."""
    headers = {"X-Request-Id": "find-me-1", "traceparent": PARENT}
    for clip in (RAIN, SILENCE, NOISE):
        assert gateway.post("/predict", files={"file": clip}, headers=headers).status_code == 200
    reply = gateway.post("/predict", files={"file": JUNK}, headers={"X-Request-Id": 'find "me" 2'})
    assert reply.status_code == 415
    files = [("files", ("a", RAIN)), ("files", ("b", JUNK))]
    assert gateway.post("/predict_batch", files=files).status_code == 200
    assert gateway.get("/nothing/here").status_code == 404

    async def stream(*frames: str | bytes) -> None:
        headers = {"X-Request-Id": "stream-7", "traceparent": PARENT}
        async with connect(gateway.stream, proxy=None, additional_headers=headers) as socket:
            for frame in frames:
                await socket.send(frame)
            with suppress(ConnectionClosedError):
                async for _ in socket:
                    pass

    begin = json.dumps({"sample_rate": 44_100, "hop_seconds": 0.1})
    sound = tone(5.0).astype("<f4").tobytes()  # 50 hops at once: some are skipped
    asyncio.run(stream(begin, sound[: 1 << 19], sound[1 << 19 :], '{"end": true}'))
    asyncio.run(stream(begin, '"nonsense"'))


# --- dashboard and rules ---


def expressions() -> list[tuple[str, str]]:
    """Every expression of the dashboard and of the rules, with where it is, Grafana's variables filled in."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    found = [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p.get("targets", [])]
    found += [(row["name"], row["expr"]) for row in dashboard["annotations"]["list"]]
    rules = yaml.safe_load((ROOT / "deploy" / "grafana" / "alerts.yaml").read_text())
    found += [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    return [
        (where, expr.replace("$__rate_interval", "30s").replace("$version", ".*")) for where, expr in found
    ]


def answered(url: str, expression: str) -> bool:
    """Whether the answer to an expression, which must be no error, has values."""
    reply = httpx.get(f"{url}/api/v1/query", params={"query": expression}, trust_env=False, verify=TLS)
    assert reply.status_code == 200, f"{expression}: {reply.text}"
    return bool(reply.json()["data"]["result"])


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    with (
        running_server(folder / "logs", server_settings()) as server,
        running_gateway(folder, server.inference) as gateway,
    ):
        both = Observed(server, gateway)
        make_traffic(gateway)
        broken = requests.post(server.predictions, data=BROKEN, headers=FORM, timeout=120)
        assert broken.status_code == 500
        assert wait_until(lambda: both.torchserve()[ours("errors_total", code="unsupported_format")] == 2, 10)
        yield both
