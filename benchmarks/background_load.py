"""Clients that send requests without pauses, and a log of the outcome of each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx

from audiocnn.classifier import Classifier
from audiocnn.client.base import Answer, Attempt
from audiocnn.client.client import Client
from audiocnn.errors import AudioError, ServerBusyError, ServerError
from audiocnn.results import Result
from benchmarks.load import FORM, as_form

CONCURRENCY = 12
GATEWAY_CLIENTS = 4  # of these, through the gateway
DEADLINE_SECONDS = 30.0
TOLERANCE = 0.01  # of a confidence: int8 results depend on the other clips of a batch
SILENCE_SECONDS = 1.0  # without a correct reply for so long, the server counts as down


@dataclass(frozen=True)
class ReferenceClip:
    """A clip, its class and its confidence."""

    body: bytes
    top: str
    confidence: float

    def matches(self, answer: Answer) -> bool:
        """The same class with the same confidence, within `TOLERANCE`."""
        first = answer["predictions"][0]
        return bool(first["class"] == self.top and abs(first["confidence"] - self.confidence) <= TOLERANCE)


def reference_clips(classifier: Classifier, bodies: Sequence[bytes], client: Client) -> list[ReferenceClip]:
    """The clips with the results of `classifier`; raises `RuntimeError` if the server differs."""
    clips = []
    for result, body in zip(classifier.predict_batch(bodies), bodies, strict=True):
        assert isinstance(result, Result), result
        clips.append(ReferenceClip(body, *result.predictions[0]))
        if not clips[-1].matches(client.predict(body)):
            raise RuntimeError(f"the server and the local classifier disagree on a {clips[-1].top}")
    return clips


@dataclass(frozen=True)
class RequestRecord:
    """One request: `right`, `wrong`, `refused` or `failed`; times of `time.monotonic()`."""

    began: float
    finished: float
    outcome: str
    failures: int  # failed attempts before the outcome
    why: str = ""


@dataclass
class RequestLog:
    """All requests of a phase. `lost` are those without an outcome."""

    sent: int = 0
    records: list[RequestRecord] = field(default_factory=list)
    failed_attempts: list[float] = field(default_factory=list)  # times

    def add(self, other: RequestLog) -> None:
        """Add the requests of another log."""
        self.sent += other.sent
        self.records += list(other.records)
        self.failed_attempts += list(other.failed_attempts)

    def count(self, outcome: str) -> int:
        """The number of requests with this outcome."""
        return sum(record.outcome == outcome for record in self.records)

    @property
    def retried(self) -> int:
        """Right, but not at the first attempt."""
        return sum(record.outcome == "right" and record.failures > 0 for record in self.records)

    @property
    def lost(self) -> int:
        """Sent, without an outcome."""
        return self.sent - len(self.records)

    @property
    def reasons(self) -> Counter[str]:
        """Why requests were not right."""
        return Counter(record.why for record in self.records if record.outcome != "right")

    def last_failure(self, since: float) -> float:
        """The time of the last failed attempt or the end of the last silence after `since`; else `since`."""
        answers = sorted(r.finished for r in self.records if r.outcome == "right" and r.finished >= since)
        gaps = zip([since, *answers], answers, strict=False)
        silences = [end for start, end in gaps if end - start > SILENCE_SECONDS]
        return max([since, *silences, *(when for when in self.failed_attempts if when >= since)])


def send(
    client: Client, clip: ReferenceClip, log: RequestLog, *, deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    """Send one clip with the client's retries, and record the outcome."""
    log.sent += 1
    began, failures, why = time.monotonic(), len(log.failed_attempts), ""
    try:
        answer = client.predict(clip.body)
        outcome = "right" if clip.matches(answer) else "wrong"
        why = "" if outcome == "right" else f"{clip.top} became {answer['predictions'][0]['class']}"
    except (ServerError, AudioError) as error:
        outcome, why = failure(error)
        log.failed_attempts.append(time.monotonic())
    finished = time.monotonic()
    if finished - began > deadline_seconds + 1:
        outcome, why = "failed", "the answer came too late"
    log.records.append(RequestRecord(began, finished, outcome, len(log.failed_attempts) - failures, why))


def failure(error: Exception) -> tuple[str, str]:
    """The outcome and the reason for an exception."""
    if isinstance(error, ServerBusyError):
        return "refused", str(error)[:60]
    return "failed", f"{type(error).__name__}: {error}"[:200]


class GatewayClient(Client):
    """A client of the gateway's `/predict`, with the same retries."""

    def _post(self, verb: str, audio: bytes, attempt: Attempt) -> httpx.Response:
        timeout = httpx.Timeout(attempt.timeout_seconds, connect=attempt.connect_seconds)
        url = f"{self._endpoint.url}/predict"
        return self._http.post(url, content=as_form(audio), headers=FORM, timeout=timeout)


class BackgroundLoad:
    """Within the context `CONCURRENCY` clients send requests; at its end all have an outcome."""

    def __init__(self, clips: Sequence[ReferenceClip], torchserve: str, gateway: str) -> None:
        self.log = RequestLog()
        self._clips = clips
        self._stop = threading.Event()
        self._urls = [gateway] * GATEWAY_CLIENTS + [torchserve] * (CONCURRENCY - GATEWAY_CLIENTS)
        self._logs = [RequestLog() for _ in self._urls]
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(CONCURRENCY)
        ]

    def _run(self, number: int) -> None:
        log, kind = self._logs[number], GatewayClient if number < GATEWAY_CLIENTS else Client

        def on_retry(error: ServerError) -> None:
            log.failed_attempts.append(time.monotonic())

        with kind(self._urls[number], deadline_seconds=DEADLINE_SECONDS, on_retry=on_retry) as client:
            while not self._stop.is_set():
                send(client, self._clips[number % len(self._clips)], log)
                number += CONCURRENCY

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def so_far(self) -> RequestLog:
        """The requests of all clients until now."""
        total = RequestLog()
        for log in self._logs:
            total.add(log)
        return total

    def wait_stable(self, since: float, *, stable_seconds: float, timeout_seconds: float) -> None:
        """Until there was no failure for `stable_seconds`, at most `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            log, now = self.so_far(), time.monotonic()
            latest = max((r.finished for r in log.records if r.outcome == "right"), default=0.0)
            is_answering = now - latest < SILENCE_SECONDS
            if is_answering and now - log.last_failure(since) > stable_seconds:
                return
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_SECONDS)
        self.log = self.so_far()
