"""TorchServe's management API for one model, as methods that return when the thing is done.

What TorchServe 0.12 loses is written where it is avoided: `wait_idle` comes before every `unregister`.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from audiocnn.client.tokens import KeyFile

_TIMEOUT_SECONDS = 30.0
_START_SECONDS = 180.0  # for workers to start: longer than TorchServe's own startupTimeout of 120
_QUIET_SECONDS = 0.5  # a worker without work uses no CPU for so long


class ManagementError(RuntimeError):
    """The management API refused, or could not be reached."""


class ApiDisabledError(ManagementError):
    """405: this server does not register or unregister models."""


@dataclass(frozen=True)
class Version:
    """One registered version as TorchServe describes it."""

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
    pending: int  # requests in the queue
    free: int  # places in the queue

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
        """How many workers can answer."""
        return self.statuses.count("READY")

    @property
    def is_ready(self) -> bool:
        """As many workers as wanted can answer, and at least one."""
        return self.ready_workers >= max(1, self.min_workers)


class Management:
    """The management API at one address, for one model. Raises `ManagementError` for every failure."""

    def __init__(
        self, url: str, model: str = "audiocnn", *, key_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        self.model = model
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            trust_env=False,  # this API stays on the machine or behind a tunnel: no proxy
        )
        self._keys = KeyFile(key_file, "management") if key_file and key_file.is_file() else None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def versions(self) -> list[Version]:
        """All registered versions, oldest number first."""
        default = self._call("GET", "")[0]["modelVersion"]
        found = [Version.read(each, default=default) for each in self._call("GET", "/all")]
        return sorted(found, key=lambda version: float(version.name))

    def version(self, name: str) -> Version:
        """One version by its name."""
        for version in self.versions():
            if float(version.name) == float(name):
                return version
        raise ManagementError(f"version {name} of {self.model} is not registered")

    def default(self) -> Version:
        """The version that answers requests which name none."""
        for version in self.versions():
            if version.is_default:
                return version
        raise ManagementError(f"the default version of {self.model} was changed at this moment: ask again")

    def register(self, archive: str, name: str, like: Version, *, workers: int | None = None) -> None:
        """Register a file of the model store with another version's settings; returns when it is ready.

        TorchServe reads the version's name from the archive; `name` must be that.
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
                error.add_note("is this the server's model store?")
            raise
        if like.max_workers > count:
            self._call("PUT", f"/{name}", {"min_worker": count, "max_worker": like.max_workers})
        self.wait_ready(name)

    def scale(self, name: str, workers: int) -> None:
        """Exactly so many workers; returns when they are ready."""
        parameters = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
        self._call("PUT", f"/{name}", parameters, timeout_seconds=_START_SECONDS)
        self.wait_ready(name)

    def set_default(self, name: str) -> None:
        """Requests that name no version go to this one from now on."""
        self._call("PUT", f"/{name}/set-default")

    def unregister(self, name: str) -> None:
        """Remove a version. What it has in its queue and in its workers is lost: `wait_idle` first."""
        self._call("DELETE", f"/{name}")

    def wait_ready(self, name: str, *, timeout_seconds: float = _START_SECONDS) -> None:
        """Until every worker that is wanted can answer."""
        deadline = time.monotonic() + timeout_seconds
        while not (version := self.version(name)).is_ready and version.min_workers:
            if time.monotonic() > deadline:
                raise ManagementError(
                    f"version {name} has {version.ready_workers} of {version.min_workers} workers ready "
                    f"after {timeout_seconds:.0f} s; see the log"
                )
            time.sleep(0.1)

    def wait_idle(self, name: str, *, timeout_seconds: float) -> bool:
        """Until a version has nothing queued and nothing in work; False if it still has after the time.

        The API tells the length of the queue, not what the workers have in hand, so their CPU time is
        watched. Where their processes cannot be seen (another machine), it waits for as long as a request
        may take after the queue was empty.
        """
        deadline = time.monotonic() + timeout_seconds
        empty_since: float | None = None
        while (now := time.monotonic()) < deadline:
            version = self.version(name)
            empty_since = None if version.pending else (empty_since or now)
            quiet_seconds = _QUIET_SECONDS + 2 * version.max_batch_delay_ms / 1000
            if empty_since is None:
                time.sleep(0.05)
            elif (seen := _workers(version.pids)) is None:
                if now - empty_since > version.response_timeout_seconds:
                    return True
                time.sleep(0.5)
            elif _are_quiet(seen, quiet_seconds) and not self.version(name).pending:
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
        cls = ApiDisabledError if reply.status_code == 405 else ManagementError
        raise cls(f"{verb} {path}: {reply.status_code} {message}")

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
            reason = "it took too long" if isinstance(error, httpx.TimeoutException) else str(error)
            reason = "nothing listens there" if "refused" in reason else reason
            raise ManagementError(f"no answer from the management API at {self._url}: {reason}") from error


def _json(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None


def _workers(pids: tuple[int, ...]) -> list[psutil.Process] | None:
    """The workers' processes; None if any is not one of this machine."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if "model_service_worker" not in " ".join(process.cmdline()):
                return None
        except psutil.Error:
            return None
        found.append(process)
    return found


def _are_quiet(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether none runs, waits for a CPU, or uses any CPU time during these seconds."""
    before = [_cpu_seconds(process) for process in processes]
    time.sleep(seconds)
    return None not in before and before == [_cpu_seconds(process) for process in processes]


def _cpu_seconds(process: psutil.Process) -> float | None:
    """Used so far; None if the process is about to use more, or has died."""
    with contextlib.suppress(psutil.Error):
        if process.status() == psutil.STATUS_SLEEPING:
            times = process.cpu_times()
            return float(times.user + times.system)
    return None
