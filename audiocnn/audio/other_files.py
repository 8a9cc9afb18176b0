"""Files that are sent by mistake and are no sound, by their first bytes."""

from __future__ import annotations

import re

_UNPACK = "Unpack it and send the sound file in it."
_KINDS = (
    (re.compile(rb"\x1f\x8b"), f"gzip. {_UNPACK}"),
    (re.compile(rb"PK\x03\x04"), f"a ZIP archive. {_UNPACK}"),
    (re.compile(rb"7z\xbc\xaf|Rar!|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd"), f"a compressed archive. {_UNPACK}"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "a web page. Send the sound file itself."),
    (re.compile(rb"\s*[{\[]\s*[\"}\[]"), "JSON. Send it with Content-Type: application/json."),
    (re.compile(rb"--[^\r\n]+\r?\n"), "a form. Send it with Content-Type: multipart/form-data; boundary=..."),
    (re.compile(rb"data:[\w/+.-]*[;,]"), "a data: URL. Send the bytes of the file, or JSON with base64."),
    (
        re.compile(rb"(UklGR|T2dnU|ZkxhQ|SUQz|//[suMF]|AAAA[A-Za-z0-9+/]{2}Z0eX)[A-Za-z0-9+/\s]{8}"),
        "base64. Send the bytes of the file, or JSON with base64.",
    ),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF"), "a picture or a document. Send a sound file."),
)
HEAD_BYTES = 64


def name_file(head: bytes) -> str | None:
    """What the first `HEAD_BYTES` of a file are, and what to do; None if that is not known."""
    return next((name for pattern, name in _KINDS if pattern.match(head)), None)
