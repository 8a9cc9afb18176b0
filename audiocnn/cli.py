"""The command `audiocnn`: every command is a module with a typer application, imported when it is called.

Exit codes: 0 done; 1 done in part, or failed (some files had errors, a server did not start); 2 wrong
options, inputs or model; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from audiocnn import __version__
from audiocnn.errors import AudioCNNError

COMMANDS = {
    "classify": ("audiocnn.classify", "Label sound files, without a server."),
    "detect": ("audiocnn.detect", "Find events with start and end in sound files of any length."),
    "teach": ("audiocnn.teach.command", "Teach a model your own sounds, from a few recordings of each."),
    "embed": ("audiocnn.embed", "Feature vectors of sound files, as a Parquet or NumPy table."),
    "search": ("audiocnn.search", "The most similar sounds in such a table."),
    "bench": ("audiocnn.bench", "Latency and throughput of a model, without a server."),
    "check": ("audiocnn.check", "Whether an ONNX model from elsewhere can be served, and how fast it is."),
    "listen": ("audiocnn.listen", "Send a file to a running gateway in real time."),
    "batch": ("audiocnn.batch.runner", "Label folders of sound files, millions of them (Ray)."),
    "gateway": ("audiocnn.gateway.server", "Start the gateway in front of a running TorchServe."),
    "serve": ("audiocnn.torchserve.launch", "Start TorchServe, and the gateway with --gateway."),
    "manage": ("audiocnn.torchserve.manage", "Operate a running server: status, scale, rollout, ..."),
    "tune": ("audiocnn.torchserve.tune", "Find the fastest settings for this machine."),
}
_EXTRAS = {
    "batch": "batch",
    "gateway": "gateway",
    "listen": "gateway",
    "manage": "torchserve",
    "serve": "torchserve",
    "teach": "teach",
    "tune": "torchserve",
}


class LazyGroup(TyperGroup):
    """Knows its commands by name and imports the one that is called: `manage ready` loads no torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command with its summary only, for the list of commands."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load(str(name)), rest


def load(name: str) -> Any:
    """The command of a module; ends with 2 and what to install if a package is missing."""
    try:
        command = typer.main.get_command(import_module(COMMANDS[name][0]).app)
    except ModuleNotFoundError as error:
        print(_missing(error, f"'audiocnn-serve[{_EXTRAS.get(name, 'client')}]'"), file=sys.stderr)
        raise typer.Exit(2) from error
    command.name = name
    return command


def _missing(error: ModuleNotFoundError, package: str | None) -> str:
    """What to install; raises the error again if the module is this project's."""
    module = (error.name or "").partition(".")[0]
    if module in ("", "audiocnn", "handler"):
        raise error
    return f"error: no module {module}: pip install {package or module}"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"audiocnn {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: audiocnn classify rain.wav",
)


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Classify sounds: from the command line, in batches of millions, or with a server."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Wrong options, inputs and models end here, with 2."""
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding lacks does not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="audiocnn")
    except ModuleNotFoundError as error:  # of an option: a table in Parquet needs pyarrow
        print(_missing(error, None), file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (AudioCNNError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
