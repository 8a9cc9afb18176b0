"""The health monitor: only failed polls count as unhealthy time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audiocnn.torchserve.management_api import Management, ManagementError
from audiocnn.torchserve.watchdog import HealthMonitor
from tests.helpers.waiting import wait_until


class Api(ThreadingHTTPServer):
    """The management API of a model whose state the test sets."""

    daemon_threads = True
    default = "1.0"  # what `GET /models/audiocnn` describes
    registered = "1.0"  # what `GET /models/audiocnn/all` lists
    status = "READY"
    seconds = 0.0
    polls = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Reply)

    def connect(self) -> Management:
        return Management(f"http://127.0.0.1:{self.server_port}")


class Reply(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_list = self.path.endswith("/all")
        if is_list:
            time.sleep(self.server.seconds)
            self.server.polls += 1
        version = {
            "modelVersion": self.server.registered if is_list else self.server.default,
            "modelUrl": "audiocnn.mar",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 1,
            "maxBatchDelay": 1,
            "responseTimeout": 1,
            "workers": [{"status": self.server.status, "pid": 1}],
        }
        body = json.dumps([version]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def monitor_of(
    api: Api, timeout_seconds: float = 1.0, period_seconds: float = 0.01
) -> Iterator[HealthMonitor]:
    with closing(api.connect()) as management:
        monitor = HealthMonitor(
            lambda: management.default().ready_workers > 0,
            timeout_seconds=timeout_seconds,
            period_seconds=period_seconds,
        )
        try:
            yield monitor
        finally:
            monitor.stop()
            for thread in threading.enumerate():
                if thread.name == "health monitor":
                    thread.join(30)  # its request is over before the connection is closed


def test_time_without_a_poll_is_not_unhealthy(api: Api) -> None:
    """As after Ctrl-Z and `fg`, or `docker pause`."""
    with monitor_of(api, period_seconds=60.0) as monitor:
        time.sleep(0.3)
        assert monitor.unhealthy_seconds == 0.0


def test_a_failed_poll_counts_no_more_than_its_time_limit(api: Api) -> None:
    api.status, api.seconds = "UNLOADING", 0.5
    with monitor_of(api, timeout_seconds=0.09) as monitor:
        assert wait_until(lambda: monitor.unhealthy_seconds > 0.0, 20)
        assert monitor.unhealthy_seconds <= 0.1 * api.polls + 0.001


def test_a_successful_poll_resets_the_time(api: Api) -> None:
    api.status = "UNLOADING"
    with monitor_of(api) as monitor:
        assert wait_until(lambda: monitor.unhealthy_seconds > 0.0, 20)
        api.status = "READY"
        assert wait_until(lambda: monitor.unhealthy_seconds == 0.0, 20)


def test_a_rollout_during_a_poll_does_not_end_the_monitor(api: Api) -> None:
    """The old version is the default in one reply, and gone in the next."""
    api.registered = "2.0"
    changed = pytest.raises(ManagementError, match="changed during the request")
    with closing(api.connect()) as management, changed:
        management.default()
    with monitor_of(api) as monitor:
        seen = api.polls
        assert wait_until(lambda: api.polls > seen + 1, 20)  # it asked again
        api.default = "2.0"
        assert wait_until(lambda: monitor.unhealthy_seconds == 0.0, 20)


def test_an_invalid_reply_does_not_end_the_monitor(api: Api) -> None:
    api.default = "none"
    with monitor_of(api) as monitor:
        seen = api.polls
        assert wait_until(lambda: api.polls > seen + 1 and monitor.unhealthy_seconds > 0.0, 20)
