"""Help with an example, and exit codes, of the commands `python -m training...` and `python -m export...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from audiocnn.errors import DatasetError, ModelFileError


def new_parser(module: str, doc: str | None, *examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, described by the first paragraph of its docstring.

    `examples` are the arguments of command lines, printed below the options.
    """
    lines = "\n".join(f"  python -m {module} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=(doc or "").partition("\n\n")[0],
        epilog=f"Example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code(run: Callable[[], object]) -> int:
    """Call `run`: 0 if it returns, 2 with a message for bad input or a bad model, 130 after Ctrl-C."""
    try:
        run()
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again", file=sys.stderr)
        return 130
    return 0
