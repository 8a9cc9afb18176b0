"""What the gateway itself refuses, and every error as a status and a JSON body.

The codes of `audiocnn.errors.AudioError` come through as they are. Those of the gateway are in the
classes below, and in `_SERVER_CODES` what is said when TorchServe gives no answer.
"""

from __future__ import annotations

import math
from typing import Any

from audiocnn.errors import (
    AudioError,
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerFailedError,
    ServerUnreachableError,
    TokenRefusedError,
)


class GatewayError(Exception):
    """A request that is refused before TorchServe sees it."""

    code = "internal_error"
    status = 500
    retry_after_seconds: float | None = None


class BadRequestError(GatewayError):
    """A body that cannot be read."""

    code = "bad_request"
    status = 400


class UnauthorizedError(GatewayError):
    """Keys are set, and this request has none of them."""

    code = "unauthorized"
    status = 401


class ForbiddenOriginError(GatewayError):
    """A page that is not of an allowed origin."""

    code = "forbidden_origin"
    status = 403


class NotFoundError(GatewayError):
    """There is nothing at this address."""

    code = "not_found"
    status = 404


class UploadTimeoutError(GatewayError):
    """The body took too long to arrive."""

    code = "upload_timeout"
    status = 408


class UploadTooLargeError(GatewayError):
    """More bytes than one request may carry."""

    code = "upload_too_large"
    status = 413


class WrongMediaTypeError(GatewayError):
    """A body of another kind than this address takes."""

    code = "wrong_media_type"
    status = 415


class MisdirectedRequestError(GatewayError):
    """The name in `Host` is none of this server's."""

    code = "misdirected_request"
    status = 421


class RateLimitedError(GatewayError):
    """More requests than this key or address may send."""

    code = "rate_limited"
    status = 429

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BusyError(GatewayError):
    """As much work as can be held is held already."""

    code = "busy"
    status = 503
    retry_after_seconds = 1.0


class NotReadyError(GatewayError):
    """A real prediction does not work now."""

    code = "not_ready"
    status = 503
    retry_after_seconds = 2.0


_SERVER_CODES: dict[type[ServerError], tuple[int, str]] = {
    ServerBusyError: (503, "busy"),
    ServerUnreachableError: (503, "server_unreachable"),
    ServerFailedError: (502, "server_failed"),
    TokenRefusedError: (502, "token_refused"),
    RequestRefusedError: (502, "request_refused"),
}

FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed"}  # what Starlette refuses, by its status
STREAM_CODES = ("bad_start", "bad_frame", "idle")  # only streams end with these

Known = GatewayError | AudioError | ServerError


def body_of(error: Known) -> dict[str, Any]:
    """`{"error": {"code": ..., "message": ...}}`."""
    if isinstance(error, AudioError):
        return dict(error.to_dict())
    code = _server_code(error)[1] if isinstance(error, ServerError) else error.code
    return {"error": {"code": code, "message": str(error)}}


def status_of(error: Known) -> tuple[int, dict[str, str]]:
    """HTTP status and headers."""
    if isinstance(error, AudioError):
        return error.status, {}
    if isinstance(error, GatewayError):
        status, retry_after = error.status, error.retry_after_seconds
    else:
        status = _server_code(error)[0]
        retry_after = max(1.0, error.retry_after_seconds) if status == 503 else None
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return status, headers


def known_codes() -> frozenset[str]:
    """Every code that an error of ours can have."""
    codes = {GatewayError.code, AudioError.code, *FRAMEWORK_CODES.values(), *STREAM_CODES}
    codes |= {cls.code for cls in GatewayError.__subclasses__()}
    codes |= {cls.code for cls in AudioError.__subclasses__()}
    return frozenset(codes | {code for _, code in _SERVER_CODES.values()})


def _server_code(error: ServerError) -> tuple[int, str]:
    return next((row for cls, row in _SERVER_CODES.items() if isinstance(error, cls)), (502, "server_failed"))
