"""Chaos, fuzz and soak: their accounts are true, and the commands find the server in good health."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from audiocnn import audio
from audiocnn.audio import synthetic
from audiocnn.client.client import Client
from audiocnn.errors import AudioError, ServerBusyError, ServerFailedError, UndecodableAudioError
from audiocnn.model.loading import served_model_path
from benchmarks import background_load, chaos, http_fuzz, mutations, sandbox, soak
from benchmarks.background_load import Account, Asked, Known, ask
from benchmarks.chaos import Row
from benchmarks.fuzz import Book, summary
from benchmarks.mutations import INTACT_EVERY, KINDS, Mutant, intact, mutant
from benchmarks.sandbox import Verdict, Victim
from tests.helpers.paths import STORE
from tests.helpers.waiting import wait_until

RAIN = synthetic.wav("rain")


# --- the account of chaos ---


def right(began: float, finished: float, failures: int = 0) -> Asked:
    return Asked(began, finished, "right", failures)


def test_trouble_is_a_failed_attempt_or_a_silence() -> None:
    steady = [right(t / 2, t / 2 + 0.4) for t in range(20)]
    assert Account(asked=steady).last_trouble(5.0) == 5.0
    assert Account(asked=steady, failed_attempts=[2.0, 6.5]).last_trouble(5.0) == 6.5
    silent = [a for a in steady if not 5.5 < a.finished < 8]
    assert Account(asked=silent).last_trouble(5.0) == 8.4
    assert Account(asked=[a for a in steady if a.finished > 7]).last_trouble(5.0) == 7.4  # at once


def test_what_never_came_back_is_lost() -> None:
    account = Account(sent=3, asked=[right(0, 1), right(0, 1, failures=2)])
    assert (account.lost, account.retried, account.count("right")) == (1, 1, 2)


@pytest.mark.parametrize(
    ("raised", "top", "outcome"),
    [
        (None, "rain", "right"),
        (None, "dog", "wrong"),
        (ServerBusyError("full"), "", "refused"),
        (ServerFailedError("died"), "", "failed"),
        (UndecodableAudioError("what?"), "", "failed"),  # the clip is valid: no error about it is right
    ],
)
def test_every_end_of_a_request_is_counted_once(raised: Exception | None, top: str, outcome: str) -> None:
    class Answering(Client):
        def predict(self, *_: object, **__: object) -> dict[str, Any]:
            if raised:
                raise raised
            return {"predictions": [{"class": top, "confidence": 0.9}]}

    account = Account()
    ask(Answering(), Known(b"", "rain", 0.9), account)
    assert [asked.outcome for asked in account.asked] == [outcome]
    assert account.lost == 0
    assert len(account.failed_attempts) == (raised is not None)


def test_the_confidence_is_compared_too() -> None:
    clip = Known(b"", "rain", 0.9)
    answers = [{"predictions": [{"class": "rain", "confidence": c}]} for c in (0.9, 0.891, 0.88)]
    assert [clip.matches(answer) for answer in answers] == [True, True, False]


def test_an_answer_after_the_deadline_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Client):
        def predict(self, *_: object, **__: object) -> dict[str, Any]:
            return {"predictions": [{"class": "rain", "confidence": 0.9}]}

    monkeypatch.setattr(background_load, "DEADLINE_SECONDS", -2.0)
    ask(Late(), Known(b"", "rain", 0.9), account := Account())
    assert [asked.outcome for asked in account.asked] == ["failed"]


def row(**changes: Any) -> Row:
    none = dict.fromkeys(("wrong", "retried", "refused", "failed", "lost", "orphans"), 0)
    values = {"fault": "worker", "sent": 9, "right": 9, "recovery_s": 1.0, "seconds": 5.0, "why": {}}
    return Row(**(none | values | changes))


def test_busy_is_a_failure_unless_the_queue_was_made_to_overflow() -> None:
    assert chaos.summary([row(refused=2)], 0)["failed"] == 2
    assert chaos.summary([row(fault="overflow", refused=2)], 0)["failed"] == 0
    assert chaos.summary([row(recovery_s=3.0), row()], 0)["max_recovery_s"] == 3.0


# --- mutants ---


def test_a_number_is_always_the_same_input() -> None:
    for number in range(0, 300, 7):
        one, two = mutant(5, number), mutant(5, number)
        assert (one.body, one.how) == (two.body, two.how)
        first, second = http_fuzz.letter(5, number), http_fuzz.letter(5, number)
        assert (first.body, first.headers, first.path) == (second.body, second.headers, second.path)
    assert mutant(5, 1).body != mutant(6, 1).body


@pytest.mark.parametrize("kind", KINDS)
def test_an_undamaged_file_of_every_kind_decodes(kind: str) -> None:
    clip = audio.decode(intact(kind, 1, 2), sample_rate=44_100)
    assert clip.seconds == pytest.approx(1.0, abs=0.15)  # codecs pad


def test_enough_mutants_decode_and_some_do_not() -> None:
    answered = 0
    for number in range(200):
        try:
            audio.decode(mutant(0, number).body, sample_rate=44_100)
            answered += 1
        except AudioError:
            pass
    assert 0.2 < answered / 200 < 0.9
    assert [n for n in range(200) if mutant(0, n).intact] == list(range(0, 200, INTACT_EVERY))


def test_the_checksum_of_an_ogg_page_is_that_of_the_encoder() -> None:
    file = intact("ogg", 0, 1)
    page = bytearray(file[: file.index(b"OggS", 4)])
    stored = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert mutations._ogg_checksum(bytes(page)) == stored


def test_what_is_saved_is_what_was_sent() -> None:
    one, post = mutant(0, 50), http_fuzz.letter(0, 51)
    assert Mutant.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert http_fuzz.Letter.from_json(json.loads(json.dumps(post.to_json()))) == post


def test_an_intact_clip_with_another_answer_is_wrong() -> None:
    book = Book()
    book.learn("a", Verdict(0, "answered", "dog", 0.9))
    for verdict in (
        Verdict(0, "answered", "dog", 0.895),
        Verdict(0, "answered", "cat", 0.9),
        Verdict(0, "answered", "dog", 0.5),
        Verdict(0, "undecodable_audio"),
    ):
        book.add(verdict, "a")
    assert (book.intact, book.wrong) == (4, 3)
    counted = summary({"classifier": book}, 1.0, True)
    assert (counted["inputs"], counted["answered"]) == (4, 3)


# --- the victim ---


@pytest.fixture(scope="module")
def a_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    found = Victim(served_model_path(STORE), 0, tmp_path_factory.mktemp("victim") / "log")
    yield found
    found.close()


CLIP = Mutant(7, RAIN, {}, "rain")


def test_an_exception_is_the_fault_of_one_input_alone(a_victim: Victim) -> None:
    broken = replace(CLIP, number=8, body=3)  # type: ignore[arg-type]
    verdicts = a_victim.judge([CLIP, broken, CLIP])
    assert [v.outcome for v in verdicts] == ["answered", "exception", "answered"]
    assert verdicts[0].top == "rain"


def test_a_process_that_dies_is_a_crash_and_is_replaced(a_victim: Victim) -> None:
    process = a_victim._process
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.5, process.kill).start()
    (verdict,) = a_victim.judge([INTACT_EVERY])
    assert (verdict.outcome, verdict.number) == ("crash", INTACT_EVERY)
    assert [v.outcome for v in a_victim.judge([INTACT_EVERY])] == ["answered"]


def test_a_process_that_hangs_is_found_out(a_victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "INPUT_SECONDS", 0.5)
    hung = a_victim._process
    assert hung.pid is not None
    os.kill(hung.pid, signal.SIGSTOP)
    assert [v.outcome for v in a_victim.judge([INTACT_EVERY])] == ["hang"]
    assert wait_until(lambda: not hung.is_alive(), 5)


# --- soak ---


def test_growth_is_from_minute_five_to_the_last() -> None:
    series = [(float(t), 100.0 if t < 300 else 200.0 if t <= 360 else 206.0) for t in range(0, 1200, 5)]
    assert soak.growth(series, 20) == {"early_mb": 200.0, "late_mb": 206.0, "growth_percent": 3.0}
    assert soak.growth([(float(t), 50.0) for t in range(60)], 1)["growth_percent"] == 0.0


def test_latency_counts_from_when_a_request_was_due() -> None:
    done = [soak.Done(float(t), t + (0.1 if t < 60 else 2.0), True) for t in range(120)]
    first, second = soak.latency(done, 2)
    assert (first["p50_ms"], second["p50_ms"], second["p99_ms"]) == (100.0, 2000.0, 2000.0)


def test_the_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("worker", "java", "disk", "overflow"))
