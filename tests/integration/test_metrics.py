"""Metrics, logs and traces of real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import requests

from audiocnn.gateway.errors import known_codes
from tests.helpers.gateways import KEY, running_gateway
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.servers import running_server, server_settings
from tests.helpers.tls import PRODUCTION, write_certificate
from tests.helpers.traffic import (
    BROKEN,
    FORM,
    JUNK,
    NOISE,
    PARENT,
    RAIN,
    SILENCE,
    TRACE,
    Observed,
    expressions,
    ours,
    scrape,
)
from tests.helpers.waiting import wait_until


def test_torchserve_exports_what_its_workers_did(observed: Observed) -> None:
    found = observed.torchserve()
    assert found[ours("worker_starts_total")] == 2
    assert found[ours("predictions_total", **{"class": "rain"})] >= 2
    assert found[ours("silent_total")] >= 1
    assert found[ours("unknown_total")] >= 1
    assert found[ours("confidence_count")] == found[ours("confidence_bucket", le="+Inf")] >= 4
    named = sum(value for key, value in found.items() if key.startswith("predictions_total"))
    assert named == found[ours("confidence_count")]
    assert found[ours("audio_seconds_total")] > 20 - 1e-6
    assert found[ours("batch_clips_sum")] >= 7
    for part in ("decode_ms", "log_mel_ms", "inference_ms"):
        assert found[ours(f"{part}_sum")] > 0
    assert found[ours("errors_total", code="internal_error")] == 0  # it is there before it happens


def test_the_gateway_exports_what_it_did(observed: Observed) -> None:
    found = observed.scrape_gateway()
    assert found["gateway_requests_total{method=POST,route=/predict,status=200}"] >= 3
    assert found["gateway_requests_total{method=POST,route=/predict,status=415}"] >= 1
    assert found["gateway_request_seconds_count{route=/predict}"] >= 4
    assert found["gateway_errors_total{code=unsupported_format}"] >= 2  # one of them inside a batch
    assert found["gateway_errors_total{code=not_found}"] >= 1
    assert found["gateway_errors_total{code=bad_frame}"] == 1
    assert found["gateway_upload_bytes_total{}"] >= len(RAIN) + len(SILENCE) + len(NOISE) + len(JUNK)
    hops = {name: found[f"gateway_stream_hops_total{{outcome={name}}}"] for name in ("answered", "skipped")}
    assert hops["answered"] >= 1
    assert sum(hops.values()) == 50
    assert found["gateway_stream_lag_seconds_count{}"] == hops["answered"]
    assert found["gateway_stream_closes_total{code=1000}"] == 1
    assert found["gateway_stream_closes_total{code=4400}"] == 1
    assert found["gateway_streams_open{}"] == found["gateway_requests_in_flight{}"] == 0
    assert found["gateway_buffered_bytes{}"] == 0
    assert found["process_resident_memory_bytes{}"] > 1e7


def test_guessed_addresses_and_methods_add_no_series(observed: Observed) -> None:
    before = len(observed.scrape_gateway())
    for number in range(30):
        observed.gateway.get(f"/guess/{number}")
        observed.gateway.get(f"/ui/guess/{number}")
    for method in ("PROPFIND", "SEARCH", "REPORT"):
        httpx.request(method, observed.gateway.url + "/predict", trust_env=False)
    found = observed.scrape_gateway()
    assert found["gateway_requests_total{method=GET,route=other,status=404}"] >= 30
    assert not any("guess" in key for key in found)
    assert len(found) < before + 50  # /ui/, and the method "other": each with its buckets
    codes = {key for key in found if key.startswith("gateway_errors_total")}
    assert len(codes) <= len(known_codes()) + 1


def test_a_refused_connection_is_counted_as_retry_and_error(tmp_path: Path) -> None:
    (closed_port,) = free_ports(1)
    with running_gateway(tmp_path, f"http://127.0.0.1:{closed_port}", deadline_seconds=1) as gateway:
        assert gateway.post("/predict", files={"file": RAIN}).status_code == 503
        found = scrape(f"{gateway.url}/metrics")
        lines = gateway.log.read_text().splitlines()
    assert found["gateway_retries_total{reason=server_unreachable}"] >= 1
    assert found["gateway_errors_total{code=server_unreachable}"] == 1
    (line,) = [line for line in map(json.loads, lines) if line.get("route") == "/predict"]
    assert (line["level"], line["code"], line["status"]) == ("WARNING", "server_unreachable", 503)


# --- access to the metrics ---


def test_with_keys_metrics_need_one(observed: Observed, tmp_path: Path) -> None:
    with running_gateway(
        tmp_path, observed.server.inference, api_keys=KEY, rate_limit_per_minute=6
    ) as gateway:
        assert gateway.get("/metrics").status_code == 401
        for _ in range(20):  # scraping is not asking: no rate limit
            assert gateway.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_metrics_at_an_address_of_their_own(observed: Observed, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    settings = {"api_keys": KEY, "metrics_port": port}
    with running_gateway(tmp_path, observed.server.inference, **settings) as gateway:
        assert "gateway_streams_open{}" in scrape(f"http://127.0.0.1:{port}/metrics")
        assert gateway.get("/metrics", headers={"X-API-Key": KEY}).status_code == 404
        assert (
            httpx.get(f"http://127.0.0.1:{port}/config", trust_env=False)
            .headers["content-type"]
            .startswith("text/plain")
        )  # it knows nothing but metrics
    with running_gateway(tmp_path, observed.server.inference, log_level="warning") as first:
        taken = {"GATEWAY_PORT": str(port), "METRICS_PORT": str(first.port)}
        run = subprocess.run(
            [sys.executable, "-m", "audiocnn", "gateway"],
            cwd=ROOT,
            env=os.environ | taken,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.returncode == 1
    assert f"error: METRICS_PORT {first.port}" in run.stderr


def test_production_exports_metrics_over_tls_if_told_to_and_logs_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "text")
    write_certificate(tmp_path)
    settings = server_settings(PRODUCTION, minWorkers=1, maxWorkers=1) | {
        "private_key_file": str(tmp_path / "server.key"),
        "certificate_file": str(tmp_path / "server.crt"),
        "model_store": str(STORE),
        "vmargs": f"-Dlog4j.configurationFile={ROOT / 'handler' / 'log4j2.xml'}",
        "enable_metrics_api": "true",
    }
    logs = tmp_path / "logs"
    with running_server(logs, settings, folder=tmp_path) as server:
        reply = requests.get(f"{server.metrics}/metrics", verify=str(tmp_path / "server.crt"), timeout=120)
        assert reply.status_code == 200
        assert "worker_starts_total" in reply.text
        assert wait_until(lambda: "INFO audio_handler batch request_ids=" in text(logs / "model_log.log"), 10)
    for path in logs.glob("*_log.log"):
        assert not any(line.startswith("{") for line in text(path).splitlines()), path


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# --- logs and traces ---


def test_a_request_is_found_by_its_id_in_both_logs(observed: Observed) -> None:
    for request_id, status in (("find-me-1", 200), ('find "me" 2', 415)):
        lines = observed.found(
            "gateway.log", lambda line, wanted=request_id: line.get("request_id") == wanted
        )
        assert lines[0]["route"] == "/predict"
        assert lines[0]["status"] == status
        assert lines[0]["level"] == "INFO"
        assert lines[0]["ms"] > 0
        batches = observed.found(
            "model_log.log", lambda line, wanted=request_id: wanted in line.get("request_ids", [])
        )
        assert batches[0]["ms"] >= batches[0]["inference_ms"]
    (refused,) = observed.found("model_log.log", lambda line: line.get("request_id") == 'find "me" 2')
    assert (refused["code"], refused["status"]) == ("unsupported_format", 415)


def test_a_trace_is_found_in_both_logs(observed: Observed) -> None:
    assert observed.found("gateway.log", lambda line: line.get("trace_id") == TRACE)
    batches = observed.found("model_log.log", lambda line: TRACE in line.get("trace_ids", []))
    assert any("find-me-1" in batch["request_ids"] for batch in batches)
    assert any(each.startswith("stream-7-") for batch in batches for each in batch["request_ids"])


def test_a_field_named_like_a_header_does_no_harm(observed: Observed) -> None:
    for name in ("traceparent", "X-Request-Id"):
        files = {"data": ("rain.wav", RAIN), name: (None, PARENT)}
        reply = requests.post(observed.server.predictions, files=files, timeout=120)
        assert reply.json()["error"]["code"] == "bad_option"


def test_a_stream_leaves_one_line(observed: Observed) -> None:
    lines = observed.found("gateway.log", lambda line: line.get("request_id") == "stream-7")
    assert [line["message"] for line in lines] == ["stream 1000", "stream 4400"]
    assert lines[0]["hops"] == 50
    assert lines[1]["code"] == "bad_frame"


def test_every_line_is_json_and_none_has_audio(observed: Observed) -> None:
    observed.gateway.get('/"quoted"\\%0a')
    requests.get(f'{observed.server.inference}/"quoted"\\', timeout=120)
    time.sleep(0.5)
    logs = observed.logs()
    assert {"gateway.log", "access_log.log", "model_log.log", "ts_log.log"} <= set(logs)
    for name, lines in logs.items():
        assert lines, name
        for line in lines:
            fields = json.loads(line)
            assert {"level", "time", "message"} <= set(fields) or name == "access_log.log", line
            assert "QZXW" not in line  # no request id is written in these letters
    (asked,) = [json.loads(x) for x in logs["access_log.log"] if "/predictions/audiocnn" in x][:1]
    assert (asked["method"], asked["status"]) == ("POST", 200)


def test_what_nothing_rolls_over_stays_small(observed: Observed) -> None:
    """Every broken form is an error with a stack trace in TorchServe's log."""
    with requests.Session() as session:
        for _ in range(300):
            session.post(observed.server.predictions, data=BROKEN, headers=FORM, timeout=120)

    def errors(name: str) -> int:
        return (observed.server.logs / name).read_text().count("ErrorDataDecoderException: Bad")

    assert wait_until(lambda: errors("ts_log.log") >= 300, 10)
    assert 0 < errors("torchserve.log") < 70


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """All selectors of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from selectors(each)


def test_every_metric_and_label_of_dashboard_and_rules_is_exported(observed: Observed) -> None:
    labels_of: dict[str, set[str]] = {"up": {"job"}}
    for key in observed.torchserve() | observed.scrape_gateway():
        name, _, labels = key.partition("{")
        names = {pair.partition("=")[0] for pair in labels.rstrip("}").split(",")}
        labels_of.setdefault(name, {"job"}).update(names)
    # Nothing was asked again here; another test sees that it is exported.
    labels_of["gateway_retries_total"] = {"reason"}
    used = set()
    for where, expression in expressions():
        for selector in selectors(promql_parser.parse(expression)):
            assert selector.name in labels_of, f"{where}: {selector.name} is not exported"
            wanted = {matcher.name for matcher in selector.matchers.matchers}
            assert wanted <= labels_of[selector.name], f"{where}: {selector}"
            used.add(selector.name)
    assert len(used) > 30


def test_standard_error_stays_small_beside_a_log_file(tmp_path: Path) -> None:
    program = (
        "import logging; from audiocnn.gateway.server import Settings, start_logs; start_logs(Settings())\n"
        "for n in range(1000): logging.getLogger('gateway').error('failure %d', n)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"LOG_FILE": str(tmp_path / "log")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    printed, written = result.stderr.splitlines(), (tmp_path / "log").read_text().splitlines()
    assert (len(printed), len(written)) == (100, 1000)
    assert "failure 0" in printed[0]
