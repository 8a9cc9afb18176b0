"""deploy/compose.yaml: valid, hardened, and every name in it exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from audiocnn.gateway.settings import Settings
from tests.helpers.paths import ROOT

DEPLOY = ROOT / "deploy"

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
V2 = yaml.safe_load((DEPLOY / "compose.v2.yaml").read_text())


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


IMAGE = re.compile(r"[a-z/-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?")  # an exact version


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["mem_limit"]
    assert IMAGE.fullmatch(service["image"])
    assert "build" in service or "@sha256:" in service["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_log_is_rolled_over(name: str) -> None:
    assert SERVICES[name]["logging"] == {
        "driver": "json-file",
        "options": {"max-size": "50m", "max-file": "5"},
    }


def test_others_reach_nothing_and_this_machine_only_the_gateway_and_grafana() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert {name for name, ports in published.items() if ports} == {"gateway", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    inside_only = {name for name, service in SERVICES.items() if service["networks"] == ["inside"]}
    assert inside_only == {"server", "prometheus"}
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_grafana_has_no_login() -> None:
    """Its API accepts the initial admin's well-known password also where the login form is hidden."""
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_everything_mounted_exists() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    for volume in volumes:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), volume
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_the_gateway_is_given_settings_that_it_has() -> None:
    names = SERVICES["gateway"]["environment"]
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_prometheus_asks_the_ports_that_the_containers_have() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.compose.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    port = SERVICES["gateway"]["environment"]["METRICS_PORT"]
    assert targets == {"torchserve": ["server:8082"], "gateway": [f"gateway:{port}"]}
    assert "metrics_address=http://0.0.0.0:8082" in (ROOT / "Dockerfile").read_text()
    same = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert [job["job_name"] for job in same["scrape_configs"]] == list(targets)
    mounted = [volume.split(":") for volume in SERVICES["prometheus"]["volumes"]]
    assert ["./grafana/alerts.yaml", f"/etc/prometheus/{config['rule_files'][0]}", "ro"] in mounted


def test_grafana_finds_the_dashboard() -> None:
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/audiocnn.yaml").read_text())
    folder = providers["providers"][0]["options"]["path"]
    assert f"./grafana/dashboard.json:{folder}/dashboard.json:ro" in SERVICES["grafana"]["volumes"]
    assert json.loads((DEPLOY / "grafana/dashboard.json").read_text())["title"]


def test_compose_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    command += [str(DEPLOY / "compose.yaml"), str(DEPLOY / "compose.v2.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- without TorchServe ---


def test_the_containers_without_torchserve_are_confined_as_the_others_are() -> None:
    (shared,) = {json.dumps(each["x-confined"], sort_keys=True) for each in (COMPOSE, V2)}
    assert shared
    for service in V2["services"].values():
        assert V2["x-confined"].items() <= service.items()
        assert service["mem_limit"]
    assert V2["services"]["model"]["networks"] == ["inside"]
    assert V2["networks"] == COMPOSE["networks"]


def test_the_gateway_without_torchserve_is_the_same_gateway() -> None:
    ours, theirs = V2["services"]["gateway"], SERVICES["gateway"]
    differs = {name for name in theirs if ours[name] != theirs[name]}
    assert differs == {"build", "image", "environment", "depends_on"}
    assert ours["image"] == theirs["image"] + "-v2"
    (argument,) = ours["build"]["args"]
    assert f"ARG {argument}=" in (ROOT / "Dockerfile").read_text()
    port = ours["environment"]["V2_URL"].rpartition(":")[2]
    assert f"--http-port={port}" in V2["services"]["model"]["command"]
    assert {name.lower() for name in ours["environment"]} <= set(Settings.model_fields)
