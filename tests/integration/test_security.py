"""The production configuration: TLS, tokens, and no archives from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import requests

from audiocnn import files
from audiocnn.audio import synthetic
from audiocnn.client.client import Client
from audiocnn.errors import ServerUnreachableError, TokenRefusedError
from audiocnn.torchserve import integrity
from audiocnn.torchserve.properties import read_properties
from tests.helpers.paths import ROOT, STORE
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.tls import PRODUCTION, write_certificate

RAIN = synthetic.wav("rain")


@dataclass
class Production:
    """A server with tokens and TLS, and where its secrets are."""

    server: Server
    settings: dict[str, str]
    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    @property
    def key_file(self) -> Path:
        return self.folder / "key_file.json"

    def token(self, kind: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {json.loads(self.key_file.read_text())[kind]['key']}"}


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    write_certificate(folder)
    settings = server_settings(PRODUCTION, minWorkers=1, maxWorkers=1) | {
        "private_key_file": str(folder / "server.key"),
        "certificate_file": str(folder / "server.crt"),
        "model_store": str(STORE),
        "vmargs": f"-Dlog4j.configurationFile={ROOT / 'handler' / 'log4j2.xml'}",
    }
    with running_server(folder / "logs", settings, folder=folder) as server:
        yield Production(server, settings, folder)


INFERENCE = [
    ("GET", "/ping"),
    ("GET", "/models/audiocnn"),
    ("POST", "/predictions/audiocnn"),
    ("PUT", "/predictions/audiocnn/1.0"),
    ("POST", "/explanations/audiocnn"),
    ("POST", "/invocations"),
    ("POST", "/v1/models/audiocnn:predict"),
    ("GET", "/metrics"),
    ("GET", "/token?type=inference"),
    ("POST", "/wfpredict/audiocnn"),
]


MANAGEMENT = [
    ("GET", "/models"),
    ("GET", "/models/audiocnn"),
    ("GET", "/models/audiocnn/all"),
    ("POST", "/models?url=audiocnn.mar&model_name=other&initial_workers=1"),
    ("PUT", "/models/audiocnn?min_worker=0&max_worker=0"),
    ("PUT", "/models/audiocnn/1.0/set-default"),
    ("DELETE", "/models/audiocnn"),
    ("GET", "/token?type=management"),
    ("GET", "/token?type=inference"),
    ("POST", "/workflows?url=x"),
    ("GET", "/workflows"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize("token", ["none", "wrong", "of the other port", "empty"])
def test_without_the_ports_token_nothing_succeeds(production: Production, token: str) -> None:
    for address, calls, other in (
        (production.server.inference, INFERENCE, "management"),
        (production.server.management, MANAGEMENT, "inference"),
    ):
        headers = {
            "none": {},
            "wrong": {"Authorization": "Bearer abcdefgh"},
            "of the other port": production.token(other),
            "empty": {"Authorization": "Bearer "},
        }[token]
        for verb, path in calls:
            reply = requests.request(
                verb, address + path, data=RAIN, headers=headers, verify=production.certificate, timeout=120
            )
            assert 400 <= reply.status_code < 500, (verb, path, reply.status_code, reply.text[:200])
            assert "confidence" not in reply.text
            assert "key" not in reply.json()
    with asker(production) as client:
        assert client.predict(RAIN)["predictions"][0]["class"] == "rain"  # and nothing was changed


def asker(production: Production) -> Client:
    """A client with the right key and certificate."""
    return Client(
        production.server.inference,
        key_file=production.key_file,
        management=production.server.management,
        ca_file=production.certificate,
    )


def test_the_one_thing_that_needs_no_token_tells_nothing_of_this_server(production: Production) -> None:
    """TorchServe describes its API to everybody, the same text for every server."""
    for address in (production.server.inference, production.server.management):
        text = requests.get(f"{address}/api-description", verify=production.certificate, timeout=120).text
        assert "openapi" in text
        assert "audiocnn" not in text


def test_there_is_no_metrics_port(production: Production) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{production.server.metrics}/metrics", verify=False, timeout=120)


@pytest.mark.parametrize("port", ["grpc_inference_port", "grpc_management_port"])
@pytest.mark.parametrize("is_secure", [True, False])
def test_grpc_asks_for_the_token_too(production: Production, port: str, is_secure: bool) -> None:
    target = f"127.0.0.1:{production.settings[port]}"
    trusted = grpc.ssl_channel_credentials(production.certificate.read_bytes())
    open_channel = grpc.secure_channel(target, trusted) if is_secure else grpc.insecure_channel(target)
    refusals = {"PERMISSION_DENIED", "UNIMPLEMENTED"} if is_secure else {"UNAVAILABLE"}
    with open_channel as channel:
        for method in (
            "inference.InferenceAPIsService/Ping",
            "inference.InferenceAPIsService/Predictions",
            "management.ManagementAPIsService/ListModels",
            "management.ManagementAPIsService/RegisterModel",
        ):
            call = channel.unary_unary(f"/org.pytorch.serve.grpc.{method}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"\x0a\x08audiocnn", timeout=120)
            assert refused.value.code().name in refusals


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:1/x.mar",
        "http://example.org/x.mar",
        "file://{tmp}/x.mar",
        "{tmp}/x.mar",
        "../x.mar",
    ],
)
def test_a_model_from_outside_the_store_is_refused(production: Production, tmp_path: Path, url: str) -> None:
    (tmp_path / "x.mar").write_bytes((STORE / "audiocnn.mar").read_bytes())
    reply = requests.post(
        f"{production.server.management}/models",
        params={"url": url.format(tmp=tmp_path), "model_name": "other", "initial_workers": 1},
        headers=production.token("management"),
        verify=production.certificate,
        timeout=120,
    )
    assert 400 <= reply.status_code < 500, reply.text
    listed = requests.get(
        f"{production.server.management}/models",
        headers=production.token("management"),
        verify=production.certificate,
        timeout=120,
    )
    assert [model["modelName"] for model in listed.json()["models"]] == ["audiocnn"]


def test_our_commands_work_with_tokens_and_tls(production: Production) -> None:
    config = production.folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in production.settings.items()))
    manage = [sys.executable, "-m", "audiocnn", "manage", "--config", str(config)]
    manage += ["--key-file", str(production.key_file)]
    for command in (["status"], ["ready"]):
        run = subprocess.run(
            [*manage, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr


def test_an_untrusted_certificate_or_a_missing_key_is_explained(production: Production) -> None:
    url = production.server.inference
    with (
        Client(url, deadline_seconds=5) as without_key,
        pytest.raises(ServerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        without_key.predict(RAIN)
    with (
        Client(url, ca_file=production.certificate, deadline_seconds=5) as keyless,
        pytest.raises(TokenRefusedError),
    ):
        keyless.predict(RAIN)


def test_the_secrets_are_for_their_user_alone(production: Production) -> None:
    assert production.key_file.stat().st_mode & 0o077 == 0
    log = (production.folder / "logs" / "torchserve.log").read_text()
    for kind in ("inference", "management", "API"):
        assert production.token(kind)["Authorization"].partition(" ")[2] not in log


def test_production_differs_only_where_it_says() -> None:
    plain, production = read_properties(ROOT / "config.properties"), read_properties(ROOT / PRODUCTION)
    different = {key for key in plain | production if plain.get(key) != production.get(key)}
    assert different == {
        "inference_address",
        "management_address",
        "metrics_address",
        "private_key_file",
        "certificate_file",
        "enable_grpc_ssl",
        "enable_model_api",
        "disable_token_authorization",
        "token_expiration_min",
        "enable_metrics_api",
    }
    for name in ("inference", "management", "metrics"):
        assert production[f"{name}_address"].startswith("https://127.0.0.1:")


# --- the archive on disk ---


def test_an_archive_that_was_changed_is_not_served(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    archive = store / "audiocnn.mar"
    archive.write_bytes((STORE / "audiocnn.mar").read_bytes())
    record = integrity.record(archive, files.sha256(archive))
    assert record == tmp_path / "audiocnn.mar.sha256"
    archive.write_bytes(archive.read_bytes() + b"\0")
    command = [sys.executable, "-m", "audiocnn", "serve", "--set", f"model_store={store}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 1
    assert "has the SHA-256" in run.stderr
