"""`audiocnn serve`: start TorchServe, and with `--gateway` the gateway, and restart what fails.

It verifies the archives, starts TorchServe and waits for a successful prediction. Ctrl-C or SIGTERM waits for
running requests, then stops all processes. (TorchServe's own launcher ends on SIGTERM and leaves Java and the
workers running, so the signal goes to Java.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from audiocnn.errors import ModelFileError
from audiocnn.torchserve import ports
from audiocnn.torchserve.archives import ArchiveError, known_sha256
from audiocnn.torchserve.gateway_process import GatewayProcess
from audiocnn.torchserve.properties import ConfigError, ca_file, key_file, read_properties
from audiocnn.torchserve.server import MODEL, ServerStartError, TorchServe
from audiocnn.torchserve.supervisor import ManagedProcess, Supervisor, log


def run(
    server: TorchServe,
    gateway: GatewayProcess | None,
    *,
    timeout_seconds: float,
    grace_seconds: float,
    restart: bool,
) -> int:
    """Serve until a signal; returns 0 after a stop. Raises `ServerStartError` if a process cannot run."""
    stopping, force = _handle_signals()
    children: list[ManagedProcess] = [server, *([gateway] if gateway else [])]
    supervisor = Supervisor(children, stopping, timeout_seconds=timeout_seconds, restart=restart)
    try:
        supervisor.start()
        _announce(server, gateway, stopping)
        supervisor.watch()
        if gateway:
            gateway.stop(force)  # before the server, so that no new requests arrive
        if server.is_ready and not server.drain(grace_seconds, force):
            log("stopped before all requests were answered")
    finally:
        if gateway:
            gateway.stop()
        server.stop()
    log("stopped")
    return 0


def _handle_signals() -> tuple[threading.Event, threading.Event]:
    """Events that the first signal (stop) and the second one (stop at once) set."""
    stopping, force = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        is_second = stopping.is_set() and number != signal.SIGHUP  # a closed terminal sends SIGHUP twice
        (force if is_second else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, on_signal)
    return stopping, force


def _announce(server: TorchServe, gateway: GatewayProcess | None, stopping: threading.Event) -> None:
    for archive in server.archives():
        if known_sha256(archive, archive.parent) is None:
            log(f"note: there is no recorded checksum of {archive}; it was not verified")
    if server.is_open_to_code:
        log(
            "note: enable_model_api is true and tokens are off: every local process and every web page can "
            "register an archive, which runs code; see docs/security.md"
        )
    if stopping.is_set():
        return
    if gateway:
        log(f"gateway: {gateway.url}, log in {gateway.log_file}")
    log(f"ready: {example_request(server.properties, server.inference)}")


def example_request(properties: Mapping[str, str], inference: str) -> str:
    """A command that sends a clip, with the certificate and the token that the configuration requires."""
    keys, certificate = key_file(properties), ca_file(properties)
    options = f"--cacert {certificate} " if certificate else ""
    options += "-H 'Authorization: Bearer TOKEN' " if keys else ""
    hint = f"  (TOKEN: the key of `inference` in {keys})" if keys else ""
    return f"curl -T CLIP {options}{inference}/predictions/{MODEL}{hint}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: audiocnn serve --gateway 127.0.0.1:8000")
def serve(
    config: Annotated[Path, typer.Option(help="TorchServe's configuration.")] = Path("config.properties"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a line of the configuration; repeatable."),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for logs.")] = Path("logs"),
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to become ready.")] = 120.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for running requests at a stop.")
    ] = 20.0,
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Start the gateway too, on this address.")
    ] = None,
    port_base: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=ports.HIGHEST_BASE,
            help="Gateway on this port; TorchServe's ports are 70, 71, 80, 81, 82 above it.",
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(help="Restart a process that fails; --no-restart ends with an error instead."),
    ] = True,
) -> None:
    """Start TorchServe, and with --gateway the gateway, until Ctrl-C."""
    if wrong := [pair for pair in changes or [] if "=" not in pair]:
        raise typer.BadParameter(f"--set {wrong[0]}: expected KEY=VALUE")
    replaced = dict(pair.split("=", 1) for pair in changes or [])
    if port_base is not None:
        replaced = ports.properties(port_base) | replaced
        gateway = gateway or f"127.0.0.1:{port_base}"
    try:
        server = TorchServe(
            read_properties(config) | replaced,
            log_folder=logs,
            reread=lambda: read_properties(config) | replaced,
        )
        child = GatewayProcess(gateway, server, log_folder=logs) if gateway else None
        code = run(server, child, timeout_seconds=timeout, grace_seconds=grace, restart=restart)
    except (ConfigError, ServerStartError, ArchiveError, ModelFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigError) else 1
    finally:
        _flush_output()
    raise typer.Exit(code)


def _flush_output() -> None:
    """Flush standard output; if that fails, discard it, or Python would end with exit code 120."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
