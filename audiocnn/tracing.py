"""Request ids and W3C trace context: what is accepted of a caller's headers and passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping

REQUEST_ID, TRACEPARENT, TRACESTATE = "x-request-id", "traceparent", "tracestate"
_MAX_ID_LENGTH = 128
_MAX_TRACESTATE_LENGTH = 512
_VERSION_0 = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LATER = re.compile(r"(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def printable_id(text: str) -> str:
    """A caller's `X-Request-Id` as far as it can be printed in one line; may be empty."""
    return "".join(c for c in text if c.isascii() and c.isprintable())[:_MAX_ID_LENGTH].strip()


def trace_id(traceparent: str | None) -> str | None:
    """The trace of a `traceparent` header (W3C Trace Context), 32 hex digits; None if it is not valid."""
    text = (traceparent or "").strip()
    match = len(text) <= _MAX_TRACESTATE_LENGTH and (_VERSION_0.fullmatch(text) or _LATER.fullmatch(text))
    return match.group(1) if match else None


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What to pass on of a request's trace context, unchanged; nothing if its `traceparent` is not valid.

    `headers` must have lower-case names, or find names in any case.
    """
    parent, state = headers.get(TRACEPARENT, "").strip(), headers.get(TRACESTATE, "")
    if trace_id(parent) is None:
        return {}
    is_clean = state.isascii() and state.isprintable() and 0 < len(state) <= _MAX_TRACESTATE_LENGTH
    return {TRACEPARENT: parent} | ({TRACESTATE: state} if is_clean else {})
