"""Chaos, fuzz and soak: what they count, and the inputs that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audiocnn import audio
from audiocnn.client.client import Client
from audiocnn.errors import AudioError, ServerBusyError, ServerFailedError, UndecodableAudioError
from benchmarks import chaos, soak_report
from benchmarks.background_load import ReferenceClip, RequestLog, RequestRecord, send
from benchmarks.branches import branches_of_answer, branches_of_file
from benchmarks.fuzz import FuzzSummary, summarise
from benchmarks.fuzz_inputs import INTACT_EVERY, FuzzInput, fuzz_input
from benchmarks.http_fuzz import FuzzRequest, fuzz_request
from benchmarks.mutations import KINDS, intact_file, with_ogg_checksum
from benchmarks.sandbox import FuzzResult
from benchmarks.soak_report import CompletedRequest, growth, latency

# --- the request log of chaos ---


def right(began: float, finished: float, failures: int = 0) -> RequestRecord:
    return RequestRecord(began, finished, "right", failures)


def test_recovery_ends_with_the_last_failed_attempt_or_silence() -> None:
    steady = [right(t / 2, t / 2 + 0.4) for t in range(20)]
    assert RequestLog(records=steady).last_failure(5.0) == 5.0
    assert RequestLog(records=steady, failed_attempts=[2.0, 6.5]).last_failure(5.0) == 6.5
    silent = [a for a in steady if not 5.5 < a.finished < 8]
    assert RequestLog(records=silent).last_failure(5.0) == 8.4
    assert RequestLog(records=[a for a in steady if a.finished > 7]).last_failure(5.0) == 7.4  # at once


def test_a_request_without_an_outcome_is_lost() -> None:
    log = RequestLog(sent=3, records=[right(0, 1), right(0, 1, failures=2)])
    assert (log.lost, log.retried, log.count("right")) == (1, 1, 2)


class FixedClient(Client):
    """A client that answers without a server."""

    def __init__(self, answer: str | Exception) -> None:
        super().__init__()
        self._answer = answer

    def predict(self, *_: object, **__: object) -> dict[str, Any]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return {"predictions": [{"class": self._answer, "confidence": 0.9}]}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("rain", "right"),
        ("dog", "wrong"),
        (ServerBusyError("full"), "refused"),
        (ServerFailedError("died"), "failed"),
        (UndecodableAudioError("what?"), "failed"),  # the clip is valid: no error about it is right
    ],
)
def test_each_outcome_is_counted_once(answer: str | Exception, outcome: str) -> None:
    log = RequestLog()
    send(FixedClient(answer), ReferenceClip(b"", "rain", 0.9), log)
    assert [record.outcome for record in log.records] == [outcome]
    assert log.lost == 0
    assert len(log.failed_attempts) == isinstance(answer, Exception)


def test_the_confidence_is_compared_too() -> None:
    clip = ReferenceClip(b"", "rain", 0.9)
    answers = [{"predictions": [{"class": "rain", "confidence": c}]} for c in (0.9, 0.891, 0.88)]
    assert [clip.matches(answer) for answer in answers] == [True, True, False]


def test_a_reply_after_the_deadline_is_a_failure() -> None:
    log = RequestLog()
    send(FixedClient("rain"), ReferenceClip(b"", "rain", 0.9), log, deadline_seconds=-2.0)
    assert [record.outcome for record in log.records] == ["failed"]


def fault_result(**changes: Any) -> dict[str, Any]:
    none = dict.fromkeys(("wrong", "retried", "refused", "failed", "lost", "orphans"), 0)
    return none | {"fault": "worker", "sent": 9, "right": 9, "recovery_s": 1.0, "undone": ""} | changes


def test_busy_is_a_failure_unless_the_fault_fills_the_queue() -> None:
    assert chaos.summary([fault_result(refused=2)], 0)["failed"] == 2
    assert chaos.summary([fault_result(fault="overflow", refused=2)], 0)["failed"] == 0
    assert chaos.summary([fault_result(recovery_s=3.0), fault_result()], 0)["max_recovery_s"] == 3.0


def test_the_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("worker", "java", "disk", "overflow"))


# --- fuzz ---


def test_a_number_is_always_the_same_input() -> None:
    for number in range(0, 300, 20):
        one, two = fuzz_input(5, number), fuzz_input(5, number)
        assert (one.body, one.how) == (two.body, two.how)
        first, second = fuzz_request(5, number), fuzz_request(5, number)
        assert (first.body, first.headers, first.path) == (second.body, second.headers, second.path)
    assert fuzz_input(5, 1).body != fuzz_input(6, 1).body


@pytest.mark.parametrize("kind", KINDS)
def test_an_undamaged_file_of_every_kind_decodes(kind: str) -> None:
    clip = audio.decode(intact_file(kind, 1, 1.0), sample_rate=44_100)
    assert clip.seconds == pytest.approx(1.0, abs=0.15)  # codecs pad


def test_some_inputs_decode_and_some_do_not() -> None:
    answered = 0
    for number in range(100):
        try:
            audio.decode(fuzz_input(0, number).body, sample_rate=44_100)
            answered += 1
        except AudioError:
            pass
    assert 0.2 < answered / 100 < 0.9
    assert [n for n in range(100) if fuzz_input(0, n).intact] == list(range(0, 100, INTACT_EVERY))


def test_branches_of_decoding() -> None:
    """The structure of a file, and what an answer tells of."""
    assert branches_of_file(intact_file("wav", 0, 0.5)) == set()
    assert branches_of_file(intact_file("unwritten", 0, 0.5)) == {"rebuilt header"}
    assert branches_of_file(intact_file("oggs", 0, 0.5)) == {"several recordings"}
    assert branches_of_file(intact_file("tracks", 0, 0.5)) == {"PyAV"}
    assert branches_of_file(b"") == set()
    for kind, branch in (("unwritten", "length not written"), ("cancelling", "cancelling channels")):
        clip = audio.decode(intact_file(kind, 1, 1.0), sample_rate=44_100)
        assert branches_of_answer({"warnings": clip.warnings}) == {branch}
    with pytest.raises(AudioError) as caught:
        audio.decode(b"no sound", sample_rate=44_100)
    assert branches_of_answer(caught.value.to_dict()) == {"no audio container"}


def test_the_checksum_of_an_ogg_page_is_that_of_the_encoder() -> None:
    file = intact_file("ogg", 0, 0.5)
    page = file[: file.index(b"OggS", 4)]
    assert with_ogg_checksum(page) == page
    assert with_ogg_checksum(page[:22] + b"oops" + page[26:]) == page


def test_a_saved_input_is_read_back() -> None:
    one, request = fuzz_input(0, 50), fuzz_request(0, 51)
    assert FuzzInput.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert FuzzRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_an_undamaged_clip_with_another_result_is_wrong() -> None:
    part = FuzzSummary()
    part.expect("a", FuzzResult(0, "answered", "dog", 0.9))
    for result in (
        FuzzResult(0, "answered", "dog", 0.895),
        FuzzResult(0, "answered", "cat", 0.9),
        FuzzResult(0, "answered", "dog", 0.5),
        FuzzResult(0, "undecodable_audio"),
    ):
        part.add(result, "a")
    assert (part.intact, part.wrong) == (4, 3)
    summary = summarise({"classifier": part}, True)
    assert (summary["inputs"], summary["answered"]) == (4, 3)


# --- soak ---


def test_growth_is_from_minute_five_to_the_last() -> None:
    series = [(float(t), 100.0 if t < 300 else 200.0 if t <= 360 else 206.0) for t in range(0, 1200, 5)]
    assert growth(series, 20) == {"early_mb": 200.0, "late_mb": 206.0, "growth_percent": 3.0}
    assert growth([(float(t), 50.0) for t in range(60)], 1)["growth_percent"] == 0.0
    assert (
        growth([(0.0, 50.0), (2.0, 50.0)], 0.05)["growth_percent"] == 0.0
    )  # no sample in the second quarter


def test_latency_counts_from_when_a_request_was_due() -> None:
    done = [CompletedRequest(float(t), t + (0.1 if t < 60 else 2.0), True) for t in range(120)]
    first, second = latency(done, 2)
    assert (first["p50_ms"], second["p50_ms"], second["p99_ms"]) == (100.0, 2000.0, 2000.0)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    memory = {name: [(float(t), 100.0) for t in range(60)] for name in ("java", "worker 1")}
    done = [CompletedRequest(float(t), t + 0.1, True) for t in range(60)]
    soak_report.plot(memory, done, 1, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
