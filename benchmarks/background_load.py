"""Clients that never stop asking, and the account of what became of every clip that they sent."""

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
from benchmarks.gateway import FORM, as_form

CONCURRENCY = 12
GATEWAY_CLIENTS = 4  # of these, through the gateway
DEADLINE_SECONDS = 30.0
TOLERANCE = 0.01  # of a confidence: what int8 may differ by with the clips beside it
SILENCE_SECONDS = 1.0  # so long without a right answer is trouble


@dataclass(frozen=True)
class Known:
    """A clip and its right answer."""

    body: bytes
    top: str
    confidence: float

    def matches(self, answer: Answer) -> bool:
        """The same class with the same confidence, within `TOLERANCE`."""
        first = answer["predictions"][0]
        return bool(first["class"] == self.top and abs(first["confidence"] - self.confidence) <= TOLERANCE)


def known_answers(classifier: Classifier, bodies: Sequence[bytes], client: Client) -> list[Known]:
    """What the server says of each clip in a calm moment, which must be what the classifier says here.

    Raises `RuntimeError` if it is not.
    """
    known = []
    for result, body in zip(classifier.predict_batch(bodies), bodies, strict=True):
        assert isinstance(result, Result), result
        known.append(Known(body, *result.predictions[0]))
        if not known[-1].matches(client.predict(body)):
            raise RuntimeError(f"the server calls a {known[-1].top} something else, even in peace")
    return known


@dataclass(frozen=True)
class Asked:
    """What became of one clip: `right`, `wrong`, `refused` or `failed`; times of `time.monotonic()`."""

    began: float
    finished: float
    outcome: str
    failures: int  # attempts that came to nothing
    why: str = ""


@dataclass
class Account:
    """All that was sent in one phase. `lost` is what never came back to its caller in any way."""

    sent: int = 0
    asked: list[Asked] = field(default_factory=list)
    failed_attempts: list[float] = field(default_factory=list)  # when

    def add(self, other: Account) -> None:
        """What somebody else wrote down."""
        self.sent += other.sent
        self.asked += list(other.asked)
        self.failed_attempts += list(other.failed_attempts)

    def count(self, outcome: str) -> int:
        """How many came to this."""
        return sum(asked.outcome == outcome for asked in self.asked)

    @property
    def retried(self) -> int:
        """How many were right, but not at the first attempt."""
        return sum(asked.outcome == "right" and asked.failures > 0 for asked in self.asked)

    @property
    def lost(self) -> int:
        """How many were sent and never heard of."""
        return self.sent - len(self.asked)

    @property
    def reasons(self) -> Counter[str]:
        """Why clips were not answered rightly."""
        return Counter(asked.why for asked in self.asked if asked.outcome != "right")

    def last_trouble(self, since: float) -> float:
        """The end of the last trouble after a moment: a failed attempt, or a silence of all; else `since`."""
        answers = sorted(a.finished for a in self.asked if a.outcome == "right" and a.finished >= since)
        gaps = zip([since, *answers], answers, strict=False)
        silences = [end for start, end in gaps if end - start > SILENCE_SECONDS]
        return max([since, *silences, *(when for when in self.failed_attempts if when >= since)])


def ask(client: Client, clip: Known, account: Account) -> None:
    """Ask for one clip, as patiently as the client is, and write down what came of it."""
    account.sent += 1
    began, failures, why = time.monotonic(), len(account.failed_attempts), ""
    try:
        answer = client.predict(clip.body)
        outcome = "right" if clip.matches(answer) else "wrong"
        why = "" if outcome == "right" else f"{clip.top} became {answer['predictions'][0]['class']}"
    except ServerBusyError as error:
        outcome, why = "refused", str(error)[:60]
    except (ServerError, AudioError) as error:
        outcome, why = "failed", f"{type(error).__name__}: {error}"[:200]
    finished = time.monotonic()
    if outcome not in ("right", "wrong"):
        account.failed_attempts.append(finished)
    if finished - began > DEADLINE_SECONDS + 1:
        outcome, why = "failed", "the answer came too late"
    account.asked.append(Asked(began, finished, outcome, len(account.failed_attempts) - failures, why))


class ThroughGateway(Client):
    """The client with all its patience, but asking the gateway's `/predict`, whose errors read alike."""

    def _post(self, verb: str, audio: bytes, attempt: Attempt) -> httpx.Response:
        timeout = httpx.Timeout(attempt.timeout_seconds, connect=attempt.connect_seconds)
        url = f"{self._endpoint.url}/predict"
        return self._http.post(url, content=as_form(audio), headers=FORM, timeout=timeout)


class Pressure:
    """Within the context `CONCURRENCY` clients ask without a pause; afterwards all have come back."""

    def __init__(self, clips: Sequence[Known], torchserve: str, gateway: str) -> None:
        self.account = Account()
        self._clips = clips
        self._stop = threading.Event()
        self._urls = [gateway] * GATEWAY_CLIENTS + [torchserve] * (CONCURRENCY - GATEWAY_CLIENTS)
        self._accounts = [Account() for _ in self._urls]
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(CONCURRENCY)
        ]

    def _run(self, number: int) -> None:
        own, kind = self._accounts[number], ThroughGateway if number < GATEWAY_CLIENTS else Client

        def note(error: ServerError) -> None:
            own.failed_attempts.append(time.monotonic())

        with kind(self._urls[number], deadline_seconds=DEADLINE_SECONDS, on_retry=note) as client:
            while not self._stop.is_set():
                ask(client, self._clips[number % len(self._clips)], own)
                number += CONCURRENCY

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def so_far(self) -> Account:
        """What all clients have written down until now."""
        whole = Account()
        for own in self._accounts:
            whole.add(own)
        return whole

    def wait_stable(self, since: float, *, calm_seconds: float, timeout_seconds: float) -> None:
        """Until there was no trouble for so long."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            account = self.so_far()
            now = time.monotonic()
            latest = max((a.finished for a in account.asked if a.outcome == "right"), default=0.0)
            is_answering = now - latest < SILENCE_SECONDS
            if is_answering and now - account.last_trouble(since) > calm_seconds:
                return
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_SECONDS)
        self.account = self.so_far()
