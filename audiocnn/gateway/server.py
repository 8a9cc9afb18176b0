"""Start the gateway in front of a TorchServe that runs already: `audiocnn gateway`.

Ctrl-C and SIGTERM stop it gracefully: requests under way are answered, streams are told to go.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import typer
import uvicorn
from prometheus_client import start_http_server
from pydantic import ValidationError

from audiocnn import logs
from audiocnn.gateway.app import create_app
from audiocnn.gateway.http_protocol import MAX_FRAME_BYTES, protocols
from audiocnn.gateway.settings import Settings

log = logging.getLogger("gateway")

_GRACE_SECONDS = 10
_MAX_PRINTED = 100  # errors


class Server(uvicorn.Server):
    """Logs when it listens, so that the parent process can wait for that line."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            log.info("gateway: http://%s:%d (/docs)", host, self.config.port)


def server(settings: Settings) -> uvicorn.Server:
    """The gateway's server, not yet running."""
    http, websocket = protocols(settings)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.gateway_host,
        port=settings.gateway_port,
        http=http,
        ws=websocket,
        ws_max_size=MAX_FRAME_BYTES,
        ws_max_queue=4,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,  # as all the others
        log_level="warning",
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),  # uvicorn believes all that comes from loopback
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        limit_concurrency=None,
    )
    return Server(config)


def start_logs(settings: Settings) -> None:
    """Everything that is logged, Python's warnings too, a line a record: to the file if there is one, and
    then only the first errors to standard error, which is not rotated."""
    handlers = [logs.handler_for(sys.stderr, settings.log_format)]
    if settings.log_file:
        printed = itertools.count()
        handlers[0].setLevel(logging.ERROR)
        handlers[0].addFilter(lambda _: next(printed) < _MAX_PRINTED)
        handlers.append(logs.file_handler(settings.log_file, settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=handlers)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # on a full disk, a traceback for every line would be no help
    logging.getLogger("httpx").setLevel(logging.WARNING)


@contextlib.contextmanager
def metrics_listener(settings: Settings, app: Any) -> Iterator[None]:
    """`/metrics` at an address of its own, if it has one; `OSError` if that is taken."""
    if settings.metrics_port is None:
        yield
        return
    address, registry = settings.metrics_host, app.state.metrics.registry
    listener, thread = start_http_server(settings.metrics_port, address, registry)
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: GATEWAY_PORT=9000 audiocnn gateway")
def gateway() -> None:
    """Start the gateway in front of a running TorchServe.

    Its settings are environment variables: docs/gateway.md.

    Exit code 0: stopped when told to; 1: a setting is wrong, or the port is taken.
    """
    raise typer.Exit(run())


def run() -> int:
    """Serve until a signal comes; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():  # without the values: one may be a key
            print(f"error: {str(problem['loc'][0]).upper()}: {problem['msg']}", file=sys.stderr)
        return 1
    try:
        start_logs(settings)
    except OSError as error:
        print(f"error: LOG_FILE: {error}", file=sys.stderr)
        return 1
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand slow callers are a thousand files
    if settings.gateway_host not in ("127.0.0.1", "::1", "localhost") and not settings.api_keys:
        log.warning("others can reach this gateway, and API_KEYS is not set")
    running = server(settings)
    # Before uvicorn listens to signals itself, and after it: then it raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(running, "should_exit", True))
    try:
        with metrics_listener(settings, running.config.app):
            running.run()
    except SystemExit:  # uvicorn has said why
        return 1
    except OSError as error:
        print(f"error: METRICS_PORT {settings.metrics_port}: {error}", file=sys.stderr)
        return 1
    return 0 if running.started else 1
