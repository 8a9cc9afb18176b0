"""deploy/kubernetes: valid, and every probe, port, metric and setting in it exists."""

from __future__ import annotations

import shutil
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import yaml

from audiocnn import __version__
from audiocnn.gateway.settings import Settings
from tests.helpers.kubernetes import FOLDER, Manifest, ports_of, queries, rendered
from tests.helpers.paths import ROOT

KUBERNETES = "1.37"
OVERLAYS = ("base", "gpu", "keda", "monitoring")
CUSTOM = {"ScaledObject", "PodMonitor"}  # kinds that the cluster learns from KEDA and Prometheus' operator


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


def test_the_disruption_budget_and_the_service_are_for_the_pods(base: dict[str, Manifest]) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"]
    budget = base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    for selector in (budget, base["Service"]["spec"]["selector"]):
        assert selector
        assert selector.items() <= labels.items()


def test_queries_are_promql() -> None:
    for query in queries():
        promql_parser.parse(query.replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod"))


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


def test_the_image_is_the_one_that_is_built() -> None:
    images = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["images"]
    assert {Path(image["newName"]).name: image["newTag"] for image in images} == dict.fromkeys(
        ("audiocnn-server", "audiocnn-gateway"), __version__
    )


# --- KServe ---


def test_the_kserve_example_is_a_pod_that_is_valid() -> None:
    predictor = kserve()["spec"]["predictor"]
    pod = {name: value for name, value in predictor.items() if name != "minReplicas"}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "audiocnn"}, "spec": pod}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_kserve_example_is_the_deployments_pod(pod: Manifest, containers: dict[str, Manifest]) -> None:
    predictor = kserve()["spec"]["predictor"]
    assert set(pod) - set(predictor) == {"topologySpreadConstraints"}
    assert predictor["initContainers"] == [containers["server"]]
    (ours,) = predictor["containers"]
    assert ours["name"] == "kserve-container"  # the one that KServe sends requests to
    differs = {name for name in containers["gateway"] if ours[name] != containers["gateway"][name]}
    assert differs == {"name", "env", "startupProbe", "livenessProbe", "readinessProbe"}
    names = [[entry["name"] for entry in each["env"]] for each in (ours, containers["gateway"])]
    assert names[0] == names[1]
    paths = {name: ours[name]["httpGet"]["path"] for name in differs if name.endswith("Probe")}
    assert paths == {
        "startupProbe": "/v2/health/live",
        "livenessProbe": "/v2/health/live",
        "readinessProbe": "/v2/health/ready",
    }


def test_the_transformer_is_the_same_gateway() -> None:
    service = kserve("transformer.yaml")
    transformer = service["spec"]["transformer"]
    pod = {name: value for name, value in transformer.items() if name != "minReplicas"}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "audiocnn"}, "spec": pod}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    (ours,), (theirs,) = transformer["containers"], kserve()["spec"]["predictor"]["containers"]
    assert {name for name in theirs if ours[name] != theirs[name]} == {"image", "env"}
    assert ours["image"] == theirs["image"] + "-v2"
    settings = {entry["name"]: entry.get("value") for entry in ours["env"]}
    assert settings["BACKEND"] == "v2"
    assert settings["V2_URL"].startswith(f"http://{service['metadata']['name']}-predictor.")
    assert {name.lower() for name in settings} <= set(Settings.model_fields)


def kserve(name: str = "inference-service.yaml") -> Manifest:
    manifest: Manifest = yaml.safe_load((ROOT / "deploy" / "kserve" / name).read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    return manifest
