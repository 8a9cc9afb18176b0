"""deploy/kubernetes: valid, and every probe, port, metric and setting that it names exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import requests
import yaml

from audiocnn import __version__
from audiocnn.audio import synthetic
from audiocnn.gateway.settings import Settings
from tests.conftest import ROOT, Server, free_ports, parse
from tests.gateways import KEY, RunningGateway, running_gateway

FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES = "1.37"
OVERLAYS = ("base", "gpu", "keda", "monitoring")
CUSTOM = {"ScaledObject", "PodMonitor"}  # kinds that the cluster learns from KEDA and Prometheus' operator

Manifest = dict[str, Any]


def rendered(overlay: str, folder: Path = FOLDER) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, folder / overlay], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "deprecated" not in done.stderr
            return list(yaml.safe_load_all(done.stdout))
    message = "neither kubectl nor kustomize is here"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def base() -> dict[str, Manifest]:
    return {manifest["kind"]: manifest for manifest in rendered("base")}


@pytest.fixture(scope="module")
def pod(base: dict[str, Manifest]) -> Manifest:
    spec: Manifest = base["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def containers(pod: Manifest) -> dict[str, Manifest]:
    return {container["name"]: container for container in pod["initContainers"] + pod["containers"]}


def ports_of(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


# --- valid ---


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_are_valid(overlay: str) -> None:
    manifests = rendered(overlay)
    assert manifests
    for manifest in manifests:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] in (
            "audiocnn",
            "monitoring",
        )
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_misspelt_field_would_be_found(base: dict[str, Manifest]) -> None:
    broken = base["Service"] | {"spec": {"port": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_every_file_is_used() -> None:
    for path in FOLDER.glob("*/kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        patches = {patch["path"] for patch in kustomization.get("patches", []) if "path" in patch}
        files = {file.name for file in path.parent.glob("*.yaml")} - {path.name, "adapter-values.yaml"}
        assert files == (set(kustomization["resources"]) - {"../base"}) | patches


def test_the_gpu_overlay_changes_the_server_alone(base: dict[str, Manifest]) -> None:
    changed = {manifest["kind"]: manifest for manifest in rendered("gpu")}
    assert {kind for kind in base if base[kind] != changed[kind]} == {"Deployment"}
    before, after = (each["Deployment"]["spec"]["template"]["spec"] for each in (base, changed))
    assert after["containers"] == before["containers"]
    (server,) = after["initContainers"]
    assert server["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert server["image"].endswith("-gpu")


@pytest.mark.parametrize("registry", ["localhost:5000", "ghcr.io/somebody"])
def test_the_gpu_overlay_takes_the_registry_of_the_base(tmp_path: Path, registry: str) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    kustomization = folder / "base" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("registry.example.com", registry))
    (deployment,) = (each for each in rendered("gpu", folder) if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    images = [container["image"] for container in pod["initContainers"] + pod["containers"]]
    assert images == [
        f"{registry}/audiocnn-server:{__version__}-gpu",
        f"{registry}/audiocnn-gateway:{__version__}",
    ]


def test_keda_replaces_the_autoscaler(base: dict[str, Manifest]) -> None:
    kinds = {manifest["kind"]: manifest for manifest in rendered("keda")}
    assert set(kinds) == set(base) - {"HorizontalPodAutoscaler"} | {"ScaledObject"}
    spec = kinds["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"]["name"] == base["Deployment"]["metadata"]["name"]
    assert spec["minReplicaCount"] == 0


# --- confined ---


def test_every_container_is_confined(pod: Manifest, containers: dict[str, Manifest]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in containers.values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")


def test_the_user_is_the_images(pod: Manifest) -> None:
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()


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


def test_the_disruption_budget_and_the_service_are_for_the_pods(base: dict[str, Manifest]) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"]
    budget = base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    for selector in (budget, base["Service"]["spec"]["selector"]):
        assert selector
        assert selector.items() <= labels.items()


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


def queries() -> Iterator[str]:
    """Every PromQL expression of the manifests."""
    adapter = yaml.safe_load((FOLDER / "monitoring" / "adapter-values.yaml").read_text())
    yield from (rule["metricsQuery"] for rule in adapter["rules"]["custom"])
    scaled = yaml.safe_load((FOLDER / "keda" / "scaled-object.yaml").read_text())
    yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])


def test_queries_are_promql() -> None:
    for query in queries():
        promql_parser.parse(query.replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod"))


def test_every_metric_exists(server: Server) -> None:
    named = {name for query in queries() for name in re.findall(r"\b(\w+)\{", query)}
    foreign = {"nginx_ingress_controller_requests"}  # of the ingress
    assert {"ts_queue_latency_microseconds", "ts_inference_requests_total"} <= named
    assert named - foreign <= metric_names(server)


def test_the_autoscaler_asks_for_what_the_adapter_offers(base: dict[str, Manifest]) -> None:
    adapter = yaml.safe_load((FOLDER / "monitoring" / "adapter-values.yaml").read_text())
    (metric,) = base["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [rule["name"]["as"] for rule in adapter["rules"]["custom"]] == [metric["pods"]["metric"]["name"]]


def test_the_pod_monitor_names_ports_and_jobs_that_exist(containers: dict[str, Manifest]) -> None:
    monitor = yaml.safe_load((FOLDER / "monitoring" / "pod-monitor.yaml").read_text())
    names = {name for container in containers.values() for name in ports_of(container)}
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert {endpoint["port"] for endpoint in endpoints} == names - {"http"}
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in prometheus["scrape_configs"]}
    assert {endpoint["relabelings"][0]["replacement"] for endpoint in endpoints} == jobs


def test_prometheus_needs_no_key_at_the_metrics_port(gateway: RunningGateway, metrics_port: int) -> None:
    monitor = yaml.safe_load((FOLDER / "monitoring" / "pod-monitor.yaml").read_text())
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        if endpoint["port"] == "metrics":
            reply = requests.get(f"http://127.0.0.1:{metrics_port}{endpoint['path']}", timeout=120)
            assert reply.status_code == 200
            assert "gateway_" in reply.text
    assert gateway.get("/metrics").status_code in (401, 404)  # not beside the predictions


def test_the_image_is_the_one_that_is_built() -> None:
    images = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["images"]
    assert {Path(image["newName"]).name: image["newTag"] for image in images} == dict.fromkeys(
        ("audiocnn-server", "audiocnn-gateway"), __version__
    )
