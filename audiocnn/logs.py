"""One line a record, as JSON for programs or as text for people: the gateway's logs and the workers'.

    log.info("GET /predict 200", extra={"request_id": ..., "ms": 12.3})
    {"level":"INFO","time":"2026-11-21T12:00:00.123Z","pid":7,"logger":"gateway","message":...,"ms":12.3}

What is given as `extra` becomes a field. Imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import logging
import re
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

MAX_FILE_BYTES, MAX_OLD_FILES = 50_000_000, 5

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
_PLAIN = re.compile(r"[\w.:/+-]+")


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, but for values that are None."""
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and v is not None}


class JsonFormatter(logging.Formatter):
    """A JSON object in one line; `level` comes first (handler/log4j2.xml knows the line by it)."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "level": record.levelname,
            "time": _time(record),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message, then the fields as `name=value`; a traceback follows below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = " ".join(f"{name}={_text(value)}" for name, value in fields_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def handler_for(stream: TextIO, log_format: str | None) -> logging.Handler:
    """A handler that writes `json` or `text`; None: text to a terminal, JSON to anything else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(log_format or ("text" if stream.isatty() else "json")))
    return handler


def file_handler(path: Path, log_format: str | None) -> logging.Handler:
    """A handler that writes a file, JSON unless told otherwise, and begins another at `MAX_FILE_BYTES`."""
    handler = RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=MAX_OLD_FILES, encoding="utf-8")
    handler.setFormatter(_formatter(log_format or "json"))
    return handler


def _formatter(name: str) -> logging.Formatter:
    return JsonFormatter() if name == "json" else TextFormatter()


def _time(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
