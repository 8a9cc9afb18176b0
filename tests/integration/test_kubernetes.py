"""deploy/kubernetes: overlays and settings, and probes and metrics of real servers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests
import yaml

from audiocnn.audio import synthetic
from audiocnn.gateway.settings import Settings
from tests.helpers.command_line import parse
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.kubernetes import FOLDER, Manifest, ports_of, queries, rendered
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.servers import Server


def test_the_gpu_overlay_changes_the_server_alone(base: dict[str, Manifest]) -> None:
    changed = {manifest["kind"]: manifest for manifest in rendered("gpu")}
    assert {kind for kind in base if base[kind] != changed[kind]} == {"Deployment"}
    before, after = (each["Deployment"]["spec"]["template"]["spec"] for each in (base, changed))
    assert after["containers"] == before["containers"]
    (server,) = after["initContainers"]
    assert server["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert server["image"].endswith("-gpu")


def test_only_the_gateway_is_offered_and_only_metrics_are_let_in_beside_it(
    base: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    gateway, server = ports_of(containers["gateway"]), ports_of(containers["server"])
    assert [port["targetPort"] for port in base["Service"]["spec"]["ports"]] == ["http"]
    anyone, prometheus = base["NetworkPolicy"]["spec"]["ingress"]
    assert [port["port"] for port in anyone["ports"]] == [gateway["http"]]
    assert prometheus["from"]
    assert {port["port"] for port in prometheus["ports"]} == {gateway["metrics"], server["server-metrics"]}
    assert "egress" not in base["NetworkPolicy"]["spec"]
    assert "Egress" in base["NetworkPolicy"]["spec"]["policyTypes"]


def test_the_pod_is_given_time_to_stop(pod: Manifest, containers: dict[str, Manifest]) -> None:
    pause = int(containers["gateway"]["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = parse("serve", containers["server"]["args"][4:])["grace"]
    needed = pause + 10 + grace + 10  # the gateway's own grace, and what Java gets to stop
    assert needed < pod["terminationGracePeriodSeconds"]


# --- what they name exists ---


def test_settings_exist(containers: dict[str, Manifest]) -> None:
    environment = {entry["name"]: entry.get("value") for entry in containers["gateway"]["env"]}
    assert {name.lower() for name in environment} <= set(Settings.model_fields)
    assert containers["server"]["args"][:4] == ["python", "-m", "audiocnn", "serve"]
    assert parse("serve", containers["server"]["args"][4:])["restart"] is False
    assert environment["GATEWAY_PORT"] == str(ports_of(containers["gateway"])["http"])
    assert environment["METRICS_PORT"] == str(ports_of(containers["gateway"])["metrics"])


@pytest.fixture(scope="module")
def metrics_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def gateway(
    server: Server,
    containers: dict[str, Manifest],
    metrics_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningGateway]:
    """A gateway with the settings of the pod, on free ports."""
    given = {entry["name"].lower(): entry.get("value") for entry in containers["gateway"]["env"]}
    settings = given | {"metrics_host": "127.0.0.1", "metrics_port": metrics_port, "api_keys": KEY}
    del settings["gateway_host"], settings["gateway_port"], settings["torchserve_url"]
    with running_gateway(tmp_path_factory.mktemp("gateway"), server.inference, **settings) as running:
        yield running


def test_every_probe_is_answered(
    server: Server, gateway: RunningGateway, containers: dict[str, Manifest]
) -> None:
    inside = {"server-metrics": server.metrics, "http": gateway.url}
    for container in containers.values():
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe := container.get(name, {}).get("httpGet"):
                reply = requests.get(inside[probe["port"]] + probe["path"], timeout=120)
                assert reply.status_code == 200, (container["name"], name)


def test_the_startup_probes_command_works(server: Server, containers: dict[str, Manifest]) -> None:
    python, *command = containers["server"]["startupProbe"]["exec"]["command"]
    assert (python, command[:3]) == ("python", ["-m", "audiocnn", "manage"])
    ours = ["--inference", server.inference, "--management", server.management]
    done = subprocess.run([sys.executable, *command[:3], *ours, *command[3:]], cwd=ROOT, timeout=600)
    assert done.returncode == 0


def metric_names(server: Server) -> set[str]:
    requests.post(server.predictions, data=synthetic.wav("rain"), timeout=120).raise_for_status()
    text = requests.get(f"{server.metrics}/metrics", timeout=120).text
    return set(re.findall(r"^(\w+)\{", text, re.MULTILINE))


def test_every_metric_exists(server: Server) -> None:
    named = {name for query in queries() for name in re.findall(r"\b(\w+)\{", query)}
    foreign = {"nginx_ingress_controller_requests"}  # of the ingress
    assert {"ts_queue_latency_microseconds", "ts_inference_requests_total"} <= named
    assert named - foreign <= metric_names(server)


def test_prometheus_needs_no_key_at_the_metrics_port(gateway: RunningGateway, metrics_port: int) -> None:
    monitor = yaml.safe_load((FOLDER / "monitoring" / "pod-monitor.yaml").read_text())
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        if endpoint["port"] == "metrics":
            reply = requests.get(f"http://127.0.0.1:{metrics_port}{endpoint['path']}", timeout=120)
            assert reply.status_code == 200
            assert "gateway_" in reply.text
    assert gateway.get("/metrics").status_code in (401, 404)  # not beside the predictions
