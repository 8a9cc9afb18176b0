"""The dashboard and the alerts on a real Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.traffic import (
    Observed,
    answered,
    expressions,
    make_traffic,
)
from tests.helpers.waiting import wait_until


@contextmanager
def running_prometheus(observed: Observed, folder: Path) -> Iterator[str]:
    """A real one with our rules, which scrapes both servers every second."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "deploy" / "grafana" / "alerts.yaml")]
    addresses = {"torchserve": observed.server.metrics, "gateway": observed.gateway.url}
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = [addresses[job["job_name"]].removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: is_ready(url), 60), (folder / "prometheus.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=120)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def rules_of(url: str) -> list[dict[str, Any]]:
    groups = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_prometheus_accepts_the_rules_and_answers_every_expression(
    observed: Observed, tmp_path: Path
) -> None:
    if not shutil.which("promtool"):
        assert not os.environ.get("CI"), "CI must have Prometheus"
        pytest.skip("no Prometheus here: apt-get install prometheus")
    for what, file in (("rules", "grafana/alerts.yaml"), ("config", "prometheus.yml")):
        subprocess.run(["promtool", "check", what, str(ROOT / "deploy" / file)], check=True, timeout=600)
    with running_prometheus(observed, tmp_path) as url:
        deadline = time.monotonic() + 240
        empty = {where for where, _ in expressions()}
        while empty and time.monotonic() < deadline:  # rates need a few scrapes, some gauges a minute
            make_traffic(observed.gateway)
            empty = {where for where, expression in expressions() if not answered(url, expression)}
            empty -= {"Worker starts", "Asked again"}  # they are empty when all is well
            empty -= {rule["name"] for rule in rules_of(url)}
        assert not empty
        assert {rule["health"] for rule in rules_of(url)} == {"ok"}
        assert {rule["name"] for rule in rules_of(url) if rule["state"] == "firing"} == set()
