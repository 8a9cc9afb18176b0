"""Client of TorchServe's management API for one model. Methods return when the change has taken effect.

TorchServe 0.12 drops the requests of a version that is unregistered: call `wait_idle` first.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from audiocnn.client.tokens import KeyFile
from audiocnn.torchserve.processes import are_idle, local_workers

_TIMEOUT_SECONDS = 30.0
_START_SECONDS = 180.0  # for the start of workers: longer than TorchServe's startupTimeout of 120 s
_IDLE_SECONDS = 0.5  # without CPU use: a worker is idle


class ManagementError(RuntimeError):
    """The management API returned an error or could not be reached."""


class ApiDisabledError(ManagementError):
    """405: enable_model_api is false, so models cannot be registered or unregistered."""


class ConflictError(ManagementError):
    """409: the version is registered already."""


_ERRORS = {405: ApiDisabledError, 409: ConflictError}


@dataclass(frozen=True)
class Version:
    """A registered version as TorchServe describes it."""

    name: str
    archive: str  # file name in the model store
    is_default: bool
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_seconds: int
    statuses: tuple[str, ...]  # of the workers: READY, UNLOADING, ...
    pids: tuple[int, ...]  # of the workers, on the server's machine
    pending: int  # queued requests
    free: int  # free places in the queue

    @classmethod
    def read(cls, reply: Mapping[str, Any], *, default: str) -> Self:
        """From an item of `GET /models/NAME/all`."""
        workers, queue = reply["workers"], reply.get("jobQueueStatus", {})
        return cls(
            name=reply["modelVersion"],
            archive=Path(reply["modelUrl"]).name,
            is_default=float(reply["modelVersion"]) == float(default),
            min_workers=reply["minWorkers"],
            max_workers=reply["maxWorkers"],
            batch_size=reply["batchSize"],
            max_batch_delay_ms=reply["maxBatchDelay"],
            response_timeout_seconds=reply["responseTimeout"],
            statuses=tuple(worker["status"] for worker in workers),
            pids=tuple(worker["pid"] for worker in workers),
            pending=queue.get("pendingRequests", 0),
            free=queue.get("remainingCapacity", 0),
        )

    @property
    def ready_workers(self) -> int:
        """Number of workers in the state READY."""
        return self.statuses.count("READY")

    @property
    def is_ready(self) -> bool:
        """Whether at least `min_workers` workers, and at least one, are READY."""
        return self.ready_workers >= max(1, self.min_workers)


class Management:
    """The management API of one server, for one model. Methods raise `ManagementError`."""

    def __init__(
        self, url: str, model: str = "audiocnn", *, key_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        self.model = model
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            trust_env=False,  # no proxy: the API is on loopback or behind a tunnel
        )
        self._keys = KeyFile(key_file, "management") if key_file and key_file.is_file() else None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def versions(self) -> list[Version]:
        """All registered versions, by ascending number."""
        default = self._call("GET", "")[0]["modelVersion"]
        found = [Version.read(each, default=default) for each in self._call("GET", "/all")]
        return sorted(found, key=lambda version: float(version.name))

    def is_registered(self, name: str) -> bool:
        """Whether the server has this version; versions are numbers: 1.0 is 1.00."""
        return any(float(version.name) == float(name) for version in self.versions())

    def version(self, name: str) -> Version:
        """One registered version."""
        for version in self.versions():
            if float(version.name) == float(name):
                return version
        raise ManagementError(f"version {name} of {self.model} is not registered")

    def default(self) -> Version:
        """The version that answers requests without a version."""
        for version in self.versions():
            if version.is_default:
                return version
        raise ManagementError(f"the default version of {self.model} changed during the request: try again")

    def register(self, archive: str, name: str, like: Version, *, workers: int | None = None) -> None:
        """Register an archive of the model store with the settings of version `like`; returns when ready.

        `name` must be the version in the archive. `workers` defaults to the minimum of `like`.
        """
        count = workers or max(1, like.min_workers)
        parameters = {
            "url": archive,
            "model_name": self.model,
            "initial_workers": count,
            "batch_size": like.batch_size,
            "max_batch_delay": like.max_batch_delay_ms,
            "response_timeout": like.response_timeout_seconds,
            "synchronous": "true",
        }
        try:
            self._request("POST", "/models", parameters, timeout_seconds=_START_SECONDS)
        except ManagementError as error:
            if "Model not found at" in str(error):
                error.add_note("Check that --store is the server's model store.")
            raise
        if like.max_workers > count:
            self._call("PUT", f"/{name}", {"min_worker": count, "max_worker": like.max_workers})
        self.wait_ready(name)

    def scale(self, name: str, workers: int) -> None:
        """Set the number of workers; returns when they are ready."""
        parameters = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
        self._call("PUT", f"/{name}", parameters, timeout_seconds=_START_SECONDS)
        self.wait_ready(name)

    def set_default(self, name: str) -> None:
        """Make a version the default."""
        self._call("PUT", f"/{name}/set-default")

    def unregister(self, name: str) -> None:
        """Unregister a version. Its queued and running requests are lost: call `wait_idle` first."""
        self._call("DELETE", f"/{name}")

    def wait_ready(self, name: str, *, timeout_seconds: float = _START_SECONDS) -> None:
        """Wait until `min_workers` workers are READY."""
        deadline = time.monotonic() + timeout_seconds
        while not (version := self.version(name)).is_ready and version.min_workers:
            if time.monotonic() > deadline:
                raise ManagementError(
                    f"version {name} has {version.ready_workers} of {version.min_workers} workers ready "
                    f"after {timeout_seconds:.0f} s; see the log"
                )
            time.sleep(0.1)

    def wait_idle(self, name: str, *, timeout_seconds: float) -> bool:
        """Wait until a version has no queued and no running request; False after `timeout_seconds`.

        The API reports the queue, not running requests, so the workers' CPU time is measured. For workers
        on another machine it waits for `responseTimeout` after the queue is empty.
        """
        deadline = time.monotonic() + timeout_seconds
        empty_since: float | None = None
        while (now := time.monotonic()) < deadline:
            version = self.version(name)
            empty_since = None if version.pending else (empty_since or now)
            idle_seconds = _IDLE_SECONDS + 2 * version.max_batch_delay_ms / 1000
            if empty_since is None:
                time.sleep(0.05)
            elif (workers := local_workers(version.pids)) is None:
                if now - empty_since > version.response_timeout_seconds:
                    return True
                time.sleep(0.5)
            elif are_idle(workers, idle_seconds) and not self.version(name).pending:
                return True
        return False

    def _call(
        self,
        verb: str,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> Any:
        return self._request(
            verb, f"/models/{self.model}{path}", parameters or {}, timeout_seconds=timeout_seconds
        )

    def _request(self, verb: str, path: str, parameters: Mapping[str, Any], *, timeout_seconds: float) -> Any:
        reply = self._send(verb, path, parameters, timeout_seconds)
        if reply.status_code == 400 and "InvalidKey" in reply.text and self._keys is not None:
            if not self._keys.reload(self._keys.authorization):
                renewal, headers = self._keys.renewal()
                self._send("GET", renewal, {}, _TIMEOUT_SECONDS, headers)
                self._keys.reload(None)
            reply = self._send(verb, path, parameters, timeout_seconds)
        content = _json(reply)
        if reply.is_success:
            return content
        message = content.get("message", "") if isinstance(content, dict) else reply.text[:200]
        error = _ERRORS.get(reply.status_code, ManagementError)
        raise error(f"{verb} {path}: {reply.status_code} {message}")

    def _send(
        self,
        verb: str,
        path: str,
        parameters: Mapping[str, Any],
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        if headers is None and self._keys is not None and self._keys.authorization:
            headers = {"Authorization": self._keys.authorization}
        try:
            return self._http.request(
                verb, self._url + path, params=parameters or None, headers=headers, timeout=timeout_seconds
            )
        except httpx.HTTPError as error:
            reason = "time-out" if isinstance(error, httpx.TimeoutException) else str(error)
            reason = "connection refused" if "refused" in reason else reason
            raise ManagementError(f"no answer from the management API at {self._url}: {reason}") from error


def _json(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None
