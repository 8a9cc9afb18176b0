"""Metrics, logs and traces: what operators see of real servers, and what the dashboard shows."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import promql_parser
import pytest
import requests
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier, Timings
from audiocnn.gateway.errors import known_codes
from audiocnn.logs import JsonFormatter, TextFormatter
from audiocnn.probe import probe_wav
from audiocnn.results import LOWEST_DBFS
from audiocnn.tracing import trace_headers, trace_id
from audiocnn.worker_metrics import HISTOGRAMS, NAMES, WorkerMetrics
from tests.conftest import (
    ROOT,
    STORE,
    Server,
    free_ports,
    running_server,
    server_settings,
    sound_file,
    tone,
    wait_until,
)
from tests.gateways import KEY, RunningGateway, running_gateway
from tests.test_security import PRODUCTION, write_certificate

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
    reply = httpx.get(url, trust_env=False, **options)
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


# --- what is added up ---


class Recorder:
    """A server's counters."""

    def __init__(self) -> None:
        self.counters: Counter[tuple[str, str | None]] = Counter()
        self.calls = 0

    def __call__(self, name: str, label: str | None, amount: float) -> None:
        assert amount >= 0
        self.calls += 1
        self.counters[name, label] += amount  # type: ignore[assignment]


def monitored(classifier: Classifier, clips: list[bytes]) -> tuple[Recorder, WorkerMetrics]:
    recorder = Recorder()
    monitor = WorkerMetrics(recorder, classifier.config.class_names)
    timings = Timings()
    monitor.count(clips, classifier.predict_batch(clips, timings=timings), timings)
    return recorder, monitor


def test_what_was_added_up_is_handed_over_when_nothing_follows(classifier: Classifier) -> None:
    recorder, _ = monitored(classifier, [RAIN, SILENCE, NOISE, JUNK, probe_wav()])
    counters = recorder.counters
    assert wait_until(
        lambda: counters["input_level_dbfs_count", None] == 3, 10
    )  # the last that is handed over
    assert counters["audio_seconds_total", None] == pytest.approx(15.0)
    heard = Counter(r.label for r in classifier.predict_batch([RAIN, SILENCE, NOISE]))  # type: ignore[union-attr]
    assert {c: n for (name, c), n in counters.items() if name == "predictions_total" and n} == heard
    assert counters["errors_total", "unsupported_format"] == 1
    assert counters["probes_total", None] == 1
    assert counters["silent_total", None] == 1
    assert counters["unknown_total", None] >= 1
    assert counters["decode_ms_count", None] == 5
    assert counters["log_mel_ms_count", None] == 4
    assert counters["inference_ms_count", None] == 1
    assert counters["batch_clips_sum", None] == 5
    assert counters["confidence_count", None] == 3
    assert {name for name, _ in counters} == set(NAMES)


def test_buckets_hold_all_below_them(classifier: Classifier) -> None:
    recorder, monitor = monitored(classifier, [RAIN, SILENCE, NOISE])
    monitor.hand_over()
    for name, bounds in HISTOGRAMS.items():
        buckets = [recorder.counters[f"{name}_bucket", str(bound)] for bound in (*bounds, "+Inf")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == recorder.counters[f"{name}_count", None] > 0
    assert recorder.counters["input_level_dbfs_bucket", "-90"] == 1  # the silence
    confidences = [float(r.probs.max()) for r in classifier.predict_batch([RAIN, SILENCE, NOISE])]  # type: ignore[union-attr]
    assert recorder.counters["confidence_sum", None] == pytest.approx(sum(confidences), abs=1e-4)
    below = sum(confidence <= 0.5 for confidence in confidences)
    assert recorder.counters["confidence_bucket", "0.5"] == below


def test_a_busy_worker_hands_over_now_and_then(classifier: Classifier) -> None:
    recorder, monitor = monitored(classifier, [RAIN])
    timings = Timings()
    results = classifier.predict_batch([RAIN], timings=timings)
    calls, deadline, count = recorder.calls, time.monotonic() + 7, 1
    while time.monotonic() < deadline:
        monitor.count([RAIN], results, timings)
        count += 1
        time.sleep(0.005)
    assert 0 < recorder.calls - calls < 3 * (len(HISTOGRAMS) * 14 + 5)  # not one for each of the batches
    assert wait_until(lambda: recorder.counters["batch_clips_count", None] == count, 10)


def test_a_batch_that_fails_is_counted(classifier: Classifier) -> None:
    recorder, monitor = monitored(classifier, [RAIN])
    monitor.count_failure(8)
    monitor.hand_over()
    assert recorder.counters["errors_total", "internal_error"] == 8


def test_the_level_of_a_clip(classifier: Classifier) -> None:
    sine, silence = classifier.predict_batch([sound_file(tone(5.0)), SILENCE])
    assert sine.level_dbfs == pytest.approx(-9.03, abs=0.05)  # type: ignore[union-attr]  # half of full scale, RMS
    assert silence.level_dbfs == LOWEST_DBFS  # type: ignore[union-attr]


def test_the_configuration_declares_all_that_is_exported_and_keeps_torchserves_own() -> None:
    declared = yaml.safe_load((ROOT / "handler" / "metrics.yaml").read_text())
    torchserve = importlib.util.find_spec("ts")
    assert torchserve is not None
    theirs = yaml.safe_load((Path(str(torchserve.origin)).parent / "configs" / "metrics.yaml").read_text())
    assert declared["ts_metrics"] == theirs["ts_metrics"]
    model = {row["name"]: row["dimensions"] for row in declared["model_metrics"]["counter"]}
    assert model == {
        name: ["model_name", "model_version", *([label] if label else [])] for name, label in NAMES.items()
    }


# --- lines of a log ---


def record(message: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "gateway", "levelname": "INFO", "msg": message} | fields)


def test_a_record_is_one_line_of_json() -> None:
    line = JsonFormatter().format(record('a "b"\nc', request_id='x"y\\z', status=200, code=None))
    assert "\n" not in line
    assert line.startswith('{"level":"INFO",')
    read = json.loads(line)
    assert (read["message"], read["request_id"], read["status"]) == ('a "b"\nc', 'x"y\\z', 200)
    assert "code" not in read


def test_a_record_as_text() -> None:
    line = TextFormatter().format(record("GET /predict 200", request_id="a b", ms=1.5))
    assert line.endswith('INFO gateway GET /predict 200 request_id="a b" ms=1.5')


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (PARENT, TRACE),
        (f" {PARENT} ", TRACE),
        (f"01-{TRACE}-b7ad6b7169203331-01-what-comes-later", TRACE),
        (PARENT.upper(), None),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"{PARENT}-more", None),
        (PARENT[:-1], None),
        ("x" * 10_000, None),
        ("", None),
        (None, None),
    ],
)
def test_traces_are_read_as_the_standard_says(header: str | None, expected: str | None) -> None:
    assert trace_id(header) == expected


def test_a_trace_is_passed_on_unchanged_or_not_at_all() -> None:
    assert trace_headers({"traceparent": PARENT, "tracestate": "a=1,b=2"}) == {
        "traceparent": PARENT,
        "tracestate": "a=1,b=2",
    }
    assert trace_headers({"traceparent": PARENT, "tracestate": "a\nb"}) == {"traceparent": PARENT}
    assert trace_headers({"traceparent": "nonsense", "tracestate": "a=1"}) == {}


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
    (nobody,) = free_ports(1)
    with running_gateway(tmp_path, f"http://127.0.0.1:{nobody}", deadline_seconds=1) as gateway:
        assert gateway.post("/predict", files={"file": RAIN}).status_code == 503
        found = scrape(f"{gateway.url}/metrics")
        lines = gateway.log.read_text().splitlines()
    assert found["gateway_retries_total{reason=server_unreachable}"] >= 1
    assert found["gateway_errors_total{code=server_unreachable}"] == 1
    (line,) = [line for line in map(json.loads, lines) if line.get("route") == "/predict"]
    assert (line["level"], line["code"], line["status"]) == ("WARNING", "server_unreachable", 503)


# --- who may read them ---


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


def test_a_field_named_like_a_header_hurts_nobody(observed: Observed) -> None:
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


def answered(url: str, expression: str) -> bool:
    """Whether the answer to an expression, which must be no error, has values."""
    reply = httpx.get(f"{url}/api/v1/query", params={"query": expression}, trust_env=False)
    assert reply.status_code == 200, f"{expression}: {reply.text}"
    return bool(reply.json()["data"]["result"])


def rules_of(url: str) -> list[dict[str, Any]]:
    groups = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.slow
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
