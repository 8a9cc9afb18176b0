"""What the gateway counts, in Prometheus' format at `/metrics`; docs/metrics.md explains each name.

Labels take few values: routes as they are declared, codes that are known, and one word for all else.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.errors import Known, body_of, known_codes

OTHER = "other"
GONE = 499  # the status of a request whose sender left before there was one
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when each began would double the page


class Metrics:
    """One gateway's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("gateway_requests", "HTTP requests", "route", "method", "status")
        self._seconds = Histogram(
            "gateway_request_seconds",
            "From the head of a request to the last byte of its reply",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._errors = self._counter("gateway_errors", "Errors, of requests, files and streams", "code")
        self._retries = self._counter("gateway_retries", "Asked of TorchServe again, and why", "reason")
        self.upload_bytes = self._counter("gateway_upload_bytes", "Audio of requests, passed on")
        self._hops = self._counter("gateway_stream_hops", "Hops of streams", "outcome")
        self._closes = self._counter("gateway_stream_closes", "Streams that ended", "code")
        self._lag = Histogram(
            "gateway_stream_lag_seconds",
            "From the last sample of a hop to its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        for outcome in ("answered", "skipped", "failed"):
            self._hops.labels(outcome)
        self._known = known_codes()
        for code in sorted(self._known):
            self._errors.labels(code)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """One that is asked for its value when it is read."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request that is over."""
        self._requests.labels(route, method if method in _METHODS else OTHER, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def error(self, code: str) -> None:
        """One error by its code."""
        self._errors.labels(code if code in self._known else OTHER).inc()

    def failure(self, error: Known) -> None:
        """One error as it was raised."""
        self.error(body_of(error)["error"]["code"])

    def retry(self, error: AudioError | ServerError) -> None:
        """TorchServe is asked again."""
        self._retries.labels(body_of(error)["error"]["code"]).inc()

    def hop(self, *, skipped: int, lag_seconds: float | None) -> None:
        """One hop that was answered or, without a lag, failed, and those before it that never were."""
        if skipped:
            self._hops.labels("skipped").inc(skipped)
        self._hops.labels("failed" if lag_seconds is None else "answered").inc()
        if lag_seconds is not None:
            self._lag.observe(lag_seconds)

    def stream_end(self, close_code: int) -> None:
        """One stream by the code that it was closed with: the caller's own are all `other`."""
        self._closes.labels(str(close_code)).inc()

    def render(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


def route_label(path: str, matched: str, declared: frozenset[str], folders: tuple[str, ...]) -> str:
    """The declared route, the folder it is in, or `other`: guessed addresses add no series.

    `matched` is the path of the route that answered, such as `/v2/models/{name}`.
    """
    if path in declared:
        return path
    folder = next((folder for folder in folders if path.startswith(folder)), OTHER)
    return matched if folder == OTHER and matched in declared else folder
