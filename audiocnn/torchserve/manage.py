"""`audiocnn manage`: operate a running server.

Exit code 0: done; 1: not done, with the reason. Options that select the server come before the command:
`audiocnn manage --management http://127.0.0.1:8081 status`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from audiocnn.errors import AudioError, ServerError
from audiocnn.inputs import SUFFIXES
from audiocnn.torchserve import rollout as rollouts
from audiocnn.torchserve import scale as scaling
from audiocnn.torchserve.acceptance import AcceptanceCriteria
from audiocnn.torchserve.archives import known_sha256
from audiocnn.torchserve.management_api import ApiDisabledError, ManagementError, Version
from audiocnn.torchserve.properties import ConfigError, locate
from audiocnn.torchserve.recovery import recover
from audiocnn.torchserve.rollout_context import RolloutContext, RolloutError
from audiocnn.torchserve.server_options import ServerOptions
from audiocnn.torchserve.store import StoreLockedError, locked, read_pending

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: audiocnn manage status",
)
out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)


def _log(text: str) -> None:
    with suppress(OSError):  # a closed pipe or a full disk must not prevent an undo
        print(text, flush=True)


@contextmanager
def _reported_errors(server: ServerOptions) -> Iterator[None]:
    """Print expected errors in one line and exit with 1."""
    try:
        yield
    except ApiDisabledError as error:
        _fail(
            f"{error}\nThis server cannot register or unregister models. Set\n"
            f"    enable_model_api=true\nin {locate(server.config, 'enable_model_api')} and restart it "
            "(or: audiocnn serve --set enable_model_api=true)."
        )
    except (
        ManagementError,
        RolloutError,
        StoreLockedError,
        ServerError,
        AudioError,
        ConfigError,
        OSError,
    ) as error:
        _fail("\n".join([str(error), *getattr(error, "__notes__", [])]))
    except ValueError as error:  # a refused archive (`ArchiveError`), an invalid address
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", markup=False, style="red")
    raise typer.Exit(1)


@contextmanager
def _rollout_context(
    server: ServerOptions, store: Path | None, drain_seconds: float
) -> Iterator[RolloutContext]:
    """Lock the store and recover from a killed command. SIGTERM and SIGHUP undo the block as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, lambda *_: sys.exit(1))
    with closing(server.api()) as management, locked(server.store(store)):
        context = RolloutContext(
            management=management,
            connect=server.client,
            store=server.store(store),
            log=_log,
            drain_seconds=drain_seconds,
        )
        recover(context)
        yield context


Store = Annotated[Path | None, typer.Option(help="Model store (as configured).")]
DrainSeconds = Annotated[float, typer.Option(min=0, help="Seconds for the old version to become idle.")]


@app.callback()
def main(
    context: typer.Context,
    inference: Annotated[str | None, typer.Option(help="Inference address (as configured).")] = None,
    management: Annotated[str | None, typer.Option(help="Management address (as configured).")] = None,
    config: Annotated[Path, typer.Option(help="The server's configuration.")] = Path("config.properties"),
    model: Annotated[str, typer.Option(help="Name of the model.")] = "audiocnn",
    key_file: Annotated[Path, typer.Option(help="TorchServe's tokens, if it requires them.")] = Path(
        "key_file.json"
    ),
) -> None:
    """Operate a running server. Exit code 0: done; 1: not done, with the reason."""
    context.obj = ServerOptions(config, inference, management, model, key_file)


@app.command()
def status(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False
) -> None:
    """Show versions, workers, queues and batching."""
    server: ServerOptions = context.obj
    with _reported_errors(server), closing(server.api()) as management:
        versions = management.versions()
        if as_json:
            print(json.dumps([asdict(version) | {"is_ready": version.is_ready} for version in versions]))
        else:
            out.print(_table(server.model, versions))
            if read_pending(server.store()):
                _log("A rollout or scale is running or was killed. If it was killed, the next one undoes it.")


def _table(model: str, versions: list[Version]) -> Table:
    table = Table(title=model)
    for name in ("version", "default", "state", "workers", "queue", "batch", "archive"):
        table.add_column(name, no_wrap=True)
    for version in versions:
        table.add_row(
            version.name,
            "yes" if version.is_default else "",
            "[green]READY[/]" if version.is_ready else "[red]NOT READY[/]",
            f"{version.ready_workers} of {version.min_workers}",
            f"{version.pending} of {version.pending + version.free}",
            f"{version.batch_size}, {version.max_batch_delay_ms} ms",
            version.archive,
        )
    return table


@app.command()
def ready(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the prediction.")] = 10.0,
) -> None:
    """Exit with 0 if a prediction succeeds, else with 1: for health checks and probes."""
    server: ServerOptions = context.obj
    with _reported_errors(server), server.client() as client:
        if not client.ready(timeout_seconds=timeout):
            _fail(f"no prediction succeeded within {timeout:g} s")
    _log("ready")


@app.command(name="scale")
def scale_workers(
    context: typer.Context,
    workers: Annotated[int, typer.Argument(min=1, help="Number of workers.")],
    store: Store = None,
    drain_seconds: DrainSeconds = 120.0,
) -> None:
    """Set the number of workers of the default version; returns when they are ready.

    To reduce it without losing a request, a copy of the version answers
    meanwhile (needs enable_model_api=true).
    """
    server: ServerOptions = context.obj
    with _reported_errors(server), _rollout_context(server, store, drain_seconds) as rollout_context:
        scaling.scale(rollout_context, workers)
        default = rollout_context.management.default()
        _log(f"version {default.name} has {default.ready_workers} workers ready")


@app.command()
def rollout(
    context: typer.Context,
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The new .mar file.")],
    clip: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="File or folder of clips for the comparison; repeatable."),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of clips with the same top class (of common classes)."),
    ] = 0.9,
    sha256: Annotated[
        str | None, typer.Option(help="The archive's SHA-256, or a file with it (ARCHIVE.sha256).")
    ] = None,
    keep_old: Annotated[
        bool, typer.Option(help="Keep the old version registered, with its workers.")
    ] = False,
    store: Store = None,
    drain_seconds: DrainSeconds = 120.0,
) -> None:
    """Make a new archive the default version without losing a request; a failure is undone.

    Verifies the checksum, registers the archive with the running version's
    settings, warms it, compares its answers, makes it the default, drains the
    old version and unregisters it.
    """
    server: ServerOptions = context.obj
    with _reported_errors(server), _rollout_context(server, store, drain_seconds) as rollout_context:
        known = known_sha256(archive, rollout_context.store, sha256)
        criteria = AcceptanceCriteria(sha256=known, clips=_clips(clip or []), min_agreement=min_agreement)
        version = rollouts.rollout(rollout_context, archive, criteria, keep_old=keep_old)
        _report(rollout_context, server, version)


@app.command()
def rollback(context: typer.Context, store: Store = None, drain_seconds: DrainSeconds = 120.0) -> None:
    """Return to the version before the last rollout, without losing a request."""
    server: ServerOptions = context.obj
    with _reported_errors(server), _rollout_context(server, store, drain_seconds) as rollout_context:
        _report(rollout_context, server, rollouts.rollback(rollout_context))


@app.command()
def drain(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(help="All versions if not given.")] = None,
    unregister: Annotated[bool, typer.Option(help="Then unregister it (not the default).")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait.")] = 120.0,
) -> None:
    """Wait until no request is queued or running. Stop the traffic first."""
    server: ServerOptions = context.obj
    if unregister and version is None:
        raise typer.BadParameter("--unregister needs a version")
    with _reported_errors(server), closing(server.api()) as management:
        for name in [version] if version else [each.name for each in management.versions()]:
            if not management.wait_idle(name, timeout_seconds=timeout):
                _fail(f"version {name} still has requests after {timeout:.0f} s")
            _log(f"version {name} is idle")
        if unregister and version:
            management.unregister(version)
            _log(f"version {version} is unregistered")


def _clips(paths: list[Path]) -> list[Path]:
    """The given files, and the files in the given folders and below; `RolloutError` if there are none."""
    found: list[Path] = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in files if path.is_file() or file.suffix.lower() in SUFFIXES]
    if paths and not found:
        raise RolloutError(f"no clips in {', '.join(map(str, paths))}")
    return found


def _report(context: RolloutContext, server: ServerOptions, version: str) -> None:
    """Print the served version, and the configuration for the next start if it differs."""
    archive = context.management.version(version).archive
    _log(f"version {version} serves")
    try:
        configured = json.loads(server.properties.get("models", "{}")).get(server.model, {})
    except ValueError:
        configured = {}
    named = {float(name): entry.get("marName") for name, entry in configured.items()}
    if named.get(float(version)) != archive or server.properties.get("load_models") != archive:
        _log(
            f"For the next start, set in {server.config}: load_models={archive}, and in models= the version "
            f'"{version}" with "marName": "{archive}".'
        )
