"""What commands print, whatever the terminal's encoding and whatever is in the names of files and classes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def json_line(document: object) -> str:
    """One line of JSON; in ASCII, unless standard output is in UTF-8."""
    is_unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(document, ensure_ascii=not is_unicode)


def print_text(console: Console, text: str) -> None:
    """Print lines as they are: no markup, no colours, no line breaks of its own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
