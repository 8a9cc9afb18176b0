"""The Kubernetes manifests as `kubectl apply -k` sends them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
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


def ports_of(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def queries() -> Iterator[str]:
    """Every PromQL expression of the manifests."""
    adapter = yaml.safe_load((FOLDER / "monitoring" / "adapter-values.yaml").read_text())
    yield from (rule["metricsQuery"] for rule in adapter["rules"]["custom"])
    scaled = yaml.safe_load((FOLDER / "keda" / "scaled-object.yaml").read_text())
    yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])


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
