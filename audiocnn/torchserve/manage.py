"""Operate a running server: `audiocnn manage --help`.

Every command exits with 0 if it did what it says, with 1 and the reason if not. Options about the server
come before the command: `audiocnn manage --management http://127.0.0.1:8081 status`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from audiocnn.client.client import Client
from audiocnn.errors import AudioError, ServerError
from audiocnn.inputs import SUFFIXES
from audiocnn.torchserve import rollout as steps
from audiocnn.torchserve.archives import known_sha256
from audiocnn.torchserve.management_api import ApiDisabledError, Management, ManagementError, Version
from audiocnn.torchserve.properties import ConfigError, ca_file, locate, read_properties
from audiocnn.torchserve.store import StoreLockedError, locked, read_pending

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: audiocnn manage status",
)
out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)


@dataclass
class Server:
    """The options before the command; what they leave open is read from the configuration when needed."""

    config: Path
    inference: str | None
    management: str | None
    model: str
    key_file: Path

    @cached_property
    def properties(self) -> dict[str, str]:
        """The configuration; empty if there is none and both addresses are given."""
        if self.inference and self.management and not self.config.is_file():
            return {}
        return read_properties(self.config)

    def client(self, version: str | None = None) -> Client:
        """Of one version. Strict: a version that fails at a request is not asked again."""
        return Client(
            self.inference or self.properties.get("inference_address", "http://127.0.0.1:8080"),
            model=self.model,
            version=version,
            deadline_seconds=60.0,
            max_server_failures=0,
            key_file=self.key_file if self.key_file.is_file() else None,
            management=self._management_url if self.key_file.is_file() else None,
            ca_file=ca_file(self.properties),
        )

    @property
    def _management_url(self) -> str:
        return self.management or self.properties.get("management_address", "http://127.0.0.1:8081")

    def api(self) -> Management:
        """The management API."""
        return Management(
            self._management_url, self.model, key_file=self.key_file, ca_file=ca_file(self.properties)
        )

    def store(self, given: Path | None) -> Path:
        """The model store."""
        return given or Path(self.properties.get("model_store", "model_store"))


def _say(text: str) -> None:
    with suppress(OSError):  # a reader that is gone, a full disk: a rollout must be undone nevertheless
        print(text, flush=True)


@contextmanager
def _explained(server: Server) -> Iterator[None]:
    """Every expected error becomes one line and exit code 1."""
    try:
        yield
    except ApiDisabledError as error:
        _fail(
            f"{error}\nThis server does not register or unregister models. Set the line\n"
            f"    enable_model_api=true\nin {locate(server.config, 'enable_model_api')} and start it again "
            "(or: audiocnn serve --set enable_model_api=true)."
        )
    except (
        ManagementError,
        steps.RolloutError,
        StoreLockedError,
        ServerError,
        AudioError,
        ConfigError,
        OSError,
    ) as error:
        _fail("\n".join([str(error), *getattr(error, "__notes__", [])]))
    except ValueError as error:  # an archive that is not to be loaded, an address that is none
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", markup=False, style="red")
    raise typer.Exit(1)


@contextmanager
def _target(server: Server, store: Path | None, drain_seconds: float) -> Iterator[steps.RolloutContext]:
    """For the steps of a rollout, the store locked; SIGTERM and a closed terminal undo it as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is, under `nohup`
            signal.signal(number, lambda *_: sys.exit(1))
    with closing(server.api()) as management, locked(server.store(store)):
        target = steps.RolloutContext(
            management=management,
            connect=server.client,
            store=server.store(store),
            say=_say,
            drain_seconds=drain_seconds,
        )
        steps.recover(target)
        yield target


Store = Annotated[Path | None, typer.Option(help="the model store, if not as in the configuration")]
DrainSeconds = Annotated[float, typer.Option(help="how long the old version may take to become idle")]


@app.callback()
def main(
    context: typer.Context,
    inference: Annotated[
        str | None, typer.Option(help="address for predictions (from the configuration)")
    ] = None,
    management: Annotated[
        str | None, typer.Option(help="address for management (from the configuration)")
    ] = None,
    config: Annotated[Path, typer.Option(help="the server's configuration")] = Path("config.properties"),
    model: Annotated[str, typer.Option(help="name of the model")] = "audiocnn",
    key_file: Annotated[Path, typer.Option(help="TorchServe's tokens, if it asks for them")] = Path(
        "key_file.json"
    ),
) -> None:
    """Operate a running server. Exit code 0: done; 1: not, with the reason."""
    context.obj = Server(config, inference, management, model, key_file)


@app.command()
def status(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show versions, workers, queues and batching."""
    server: Server = context.obj
    with _explained(server):
        versions = server.api().versions()
        if as_json:
            print(json.dumps([asdict(version) | {"is_ready": version.is_ready} for version in versions]))
        else:
            out.print(_table(server.model, versions))
            if read_pending(server.store(None)):
                _say(
                    "A rollout or scale is under way, or was killed: the next one undoes what is left of it."
                )


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
    timeout: Annotated[float, typer.Option(help="seconds for the answer")] = 10.0,
) -> None:
    """Exit with 0 if a real prediction works now, with 1 if not: for health checks and probes."""
    server: Server = context.obj
    with _explained(server), server.client() as client:
        if not client.ready(timeout_seconds=timeout):
            _fail(f"no prediction came back within {timeout:g} s")
    _say("ready")


@app.command(name="scale")
def scale_workers(
    context: typer.Context,
    workers: Annotated[int, typer.Argument(min=1)],
    store: Store = None,
    drain_seconds: DrainSeconds = 120.0,
) -> None:
    """Run so many workers for the default version; returns when they are ready.

    To lose no request when there are to be fewer, a copy of the version
    stands in meanwhile (needs enable_model_api=true).
    """
    server: Server = context.obj
    with _explained(server), _target(server, store, drain_seconds) as target:
        steps.scale(target, workers)
        default = target.management.default()
        _say(f"version {default.name} has {default.ready_workers} workers ready")


@app.command()
def rollout(
    context: typer.Context,
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="the new .mar file")],
    clip: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="file or folder of clips to compare answers on; may be repeated"),
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of clips with the same top class")
    ] = 0.9,
    sha256: Annotated[
        str | None, typer.Option(help="the archive's SHA-256, or a file with it (ARCHIVE.sha256)")
    ] = None,
    keep_old: Annotated[bool, typer.Option(help="keep the old version registered, with its workers")] = False,
    store: Store = None,
    drain_seconds: DrainSeconds = 120.0,
) -> None:
    """Serve a new archive without losing a request; if it fails, the old version stays.

    Verifies the checksum, registers the archive with the running version's
    settings, warms it, compares its answers, makes it the default, drains the
    old version and unregisters it.
    """
    server: Server = context.obj
    with _explained(server), _target(server, store, drain_seconds) as target:
        known = known_sha256(archive, target.store, sha256)
        checks = steps.AcceptanceCriteria(sha256=known, clips=_clips(clip or []), min_agreement=min_agreement)
        version = steps.rollout(target, archive, checks, keep_old=keep_old)
        _done(target, server, version)


@app.command()
def rollback(context: typer.Context, store: Store = None, drain_seconds: DrainSeconds = 120.0) -> None:
    """Go back to the version from before the last rollout, without losing a request."""
    server: Server = context.obj
    with _explained(server), _target(server, store, drain_seconds) as target:
        _done(target, server, steps.rollback(target))


@app.command()
def drain(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(help="all versions if not given")] = None,
    unregister: Annotated[bool, typer.Option(help="then unregister it (not the default)")] = False,
    timeout: Annotated[float, typer.Option(help="seconds to wait")] = 120.0,
) -> None:
    """Wait until nothing is queued or in work: before a stop, once no more requests are sent."""
    server: Server = context.obj
    if unregister and version is None:
        raise typer.BadParameter("--unregister needs a version")
    with _explained(server):
        management = server.api()
        for name in [version] if version else [each.name for each in management.versions()]:
            if not management.wait_idle(name, timeout_seconds=timeout):
                _fail(f"version {name} still has requests after {timeout:.0f} s")
            _say(f"version {name} is idle")
        if unregister and version:
            management.unregister(version)
            _say(f"version {version} is unregistered")


def _clips(paths: list[Path]) -> list[Path]:
    """The files, and those in the folders."""
    found: list[Path] = []
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in files if path.is_file() or file.suffix.lower() in SUFFIXES]
    if paths and not found:
        raise steps.RolloutError(f"no clips in {', '.join(map(str, paths))}")
    return found


def _done(target: steps.RolloutContext, server: Server, version: str) -> None:
    """What serves now, and what a restart would serve."""
    archive = target.management.version(version).archive
    _say(f"version {version} serves")
    try:
        configured = json.loads(server.properties.get("models", "{}")).get(server.model, {})
    except ValueError:
        configured = {}
    named = {float(name): entry.get("marName") for name, entry in configured.items()}
    if named.get(float(version)) != archive or server.properties.get("load_models") != archive:
        _say(
            f"A restart reads {server.config}: set load_models={archive} there, and in models= the version "
            f'"{version}" with "marName": "{archive}".'
        )
