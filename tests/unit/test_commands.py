"""The commands of `training`, `export` and `benchmarks`: help, examples and options."""

from __future__ import annotations

import argparse
import importlib
import shlex

import pytest

from tests.helpers.paths import ROOT

# All modules with an entry point.
FILES = [path for package in ("training", "export", "benchmarks") for path in (ROOT / package).rglob("*.py")]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if "sys.exit(main())" in path.read_text(encoding="utf-8")
)


class Parsed(Exception):  # noqa: N818  not an error
    """The command line was read."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module(name)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    description, _, example = capsys.readouterr().out.partition("Example:\n")
    assert description.count("\n\n") >= 2
    program, *arguments = shlex.split(example)[2:]
    assert program == name.removesuffix(".__main__")

    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, args: object = None, namespace: object = None) -> None:
        parse(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        command.main(arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_every_number_bounds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers: list[argparse.ArgumentParser] = []

    def remember(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", remember)
    with pytest.raises(Parsed):
        importlib.import_module(name).main([])
    (parser,) = parsers
    assert [action.dest for action in parser._actions if not action.help] == []
    for action in parser._actions:
        if getattr(action.type, "__name__", "") in ("int", "float"):
            for text in ("-1", "nan", "inf"):
                with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                    action.type(text)  # type: ignore[misc, operator]
