"""Counters of a worker, log formats and trace ids."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import yaml

from audiocnn.classifier import Classifier, Timings
from audiocnn.levels import LOWEST_DBFS
from audiocnn.logs import JsonFormatter, TextFormatter
from audiocnn.probe import probe_wav
from audiocnn.tracing import trace_headers, trace_id
from handler.metrics import HISTOGRAMS, NAMES, WorkerMetrics
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone
from tests.helpers.traffic import (
    JUNK,
    NOISE,
    PARENT,
    RAIN,
    SILENCE,
    TRACE,
)
from tests.helpers.waiting import wait_until

# --- what is added up ---


class Recorder:
    """A server's counters."""

    def __init__(self) -> None:
        self.counters: Counter[tuple[str, str | None]] = Counter()
        self.handovers = 0

    def __call__(self, name: str, label: str | None, amount: float) -> None:
        assert amount >= 0
        self.handovers += (name, amount > 0) == ("batch_clips_count", True)
        self.counters[name, label] += amount  # type: ignore[assignment]


def monitored(classifier: Classifier, clips: list[bytes]) -> tuple[Recorder, WorkerMetrics]:
    recorder = Recorder()
    monitor = WorkerMetrics(recorder, classifier.config.class_names)
    timings = Timings()
    monitor.count(clips, classifier.predict_batch(clips, timings=timings), timings)
    return recorder, monitor


def test_counts_are_exported_when_no_batch_follows(classifier: Classifier) -> None:
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


def test_buckets_are_cumulative(classifier: Classifier) -> None:
    recorder, monitor = monitored(classifier, [RAIN, SILENCE, NOISE])
    monitor.emit_counts()
    for name, bounds in HISTOGRAMS.items():
        buckets = [recorder.counters[f"{name}_bucket", str(bound)] for bound in (*bounds, "+Inf")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == recorder.counters[f"{name}_count", None] > 0
    assert recorder.counters["input_level_dbfs_bucket", "-90"] == 1  # the silence
    confidences = [float(r.probs.max()) for r in classifier.predict_batch([RAIN, SILENCE, NOISE])]  # type: ignore[union-attr]
    assert recorder.counters["confidence_sum", None] == pytest.approx(sum(confidences), abs=1e-4)
    below = sum(confidence <= 0.5 for confidence in confidences)
    assert recorder.counters["confidence_bucket", "0.5"] == below


def test_a_busy_worker_exports_periodically(classifier: Classifier) -> None:
    recorder, timings, count = Recorder(), Timings(), 0
    monitor = WorkerMetrics(recorder, classifier.config.class_names, period_seconds=0.2)
    results = classifier.predict_batch([RAIN], timings=timings)

    def go_on() -> bool:
        nonlocal count
        for _ in range(20):
            monitor.count([RAIN], results, timings)
            count += 1
        return 0 < recorder.counters["batch_clips_count", None] < count

    assert wait_until(go_on, 10)  # several batches at once, and while more follow
    assert wait_until(lambda: recorder.counters["batch_clips_count", None] == count, 10)
    assert recorder.handovers < count / 2


def test_a_batch_that_fails_is_counted(classifier: Classifier) -> None:
    recorder, monitor = monitored(classifier, [RAIN])
    monitor.count_failure(8)
    monitor.emit_counts()
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
