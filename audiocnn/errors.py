"""Everything that can be wrong with a request or a model, in one table.

    ValueError
    ├── AudioError                  one clip cannot be answered; its neighbours are not touched
    │   ├── EmptyAudioError              400 empty_audio
    │   ├── UndecodableAudioError        400 undecodable_audio
    │   ├── NotFiniteAudioError          400 not_finite_audio
    │   ├── BadOptionError               400 bad_option
    │   ├── BadBase64Error               400 bad_base64
    │   ├── AudioTooLongError            413 audio_too_long
    │   ├── TooManyChannelsError         413 too_many_channels
    │   ├── SampleRateOutOfRangeError    413 sample_rate_out_of_range
    │   ├── UnsupportedFormatError       415 unsupported_format
    │   └── BudgetExceededError          503 busy
    ├── ModelFileError              a checkpoint or an exported file cannot be used
    └── DatasetError                a folder of labelled clips cannot be used

    RuntimeError
    └── ServerError                 the client got no answer; nothing is known to be wrong with the clip
        ├── ServerBusyError              503: the queue is full, or no worker is ready
        ├── ServerUnreachableError       no connection, or no reply in time
        ├── ServerFailedError            500, 507, ...: a worker died or failed, or the reply is no JSON
        ├── TokenRefusedError            TorchServe's token is wrong, expired or missing
        └── RequestRefusedError          any other 3xx or 4xx, such as an unknown model or version

An `AudioError` knows its code and its HTTP status, so the handler, the gateway, the command line and
the batch job report the same thing in the same words.
"""

from __future__ import annotations


class AudioCNNError(Exception):
    """Whatever this package raises on purpose."""


class AudioError(AudioCNNError, ValueError):
    """One clip, or the options sent with it, cannot be answered."""

    code = "bad_audio"
    status = 400
    request_id: str | None = None  # set by the client: the `X-Request-Id` that was sent

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The JSON body of the error: `{"error": {"code": ..., "message": ...}}`."""
        return {"error": {"code": self.code, "message": str(self)}}


class EmptyAudioError(AudioError):
    """No bytes, or a valid file with no samples."""

    code = "empty_audio"


class UndecodableAudioError(AudioError):
    """A known container in which not one frame can be decoded."""

    code = "undecodable_audio"


class NotFiniteAudioError(AudioError):
    """Samples that are NaN or infinite."""

    code = "not_finite_audio"


class BadOptionError(AudioError):
    """An option that does not exist, or a value it cannot take."""

    code = "bad_option"


class BadBase64Error(AudioError):
    """JSON audio that is not base64."""

    code = "bad_base64"


class AudioTooLongError(AudioError):
    """More seconds than one request may carry."""

    code = "audio_too_long"
    status = 413


class TooManyChannelsError(AudioError):
    """More channels than any microphone array we answer for."""

    code = "too_many_channels"
    status = 413


class SampleRateOutOfRangeError(AudioError):
    """A sample rate that no sound card has: a broken header."""

    code = "sample_rate_out_of_range"
    status = 413


class UnsupportedFormatError(AudioError):
    """Bytes that are in no container we know."""

    code = "unsupported_format"
    status = 415


class BudgetExceededError(AudioError):
    """The clips beside this one took all the time that a batch has: nothing is wrong with it."""

    code = "busy"
    status = 503
    retry_after_seconds = 1

    def __init__(
        self, message: str = "The server was busy with other clips and did not reach this one: send it again."
    ) -> None:
        super().__init__(message)


def error_class(code: str) -> type[AudioError]:
    """The class of an error's code; `AudioError` itself for a code of a newer server."""
    return {cls.code: cls for cls in AudioError.__subclasses__()}.get(code, AudioError)


class ModelFileError(AudioCNNError, ValueError):
    """A checkpoint or an exported model that is damaged, too new, or does not match its front end."""


class ModelOutputError(AudioCNNError, RuntimeError):
    """The network returned values that are no answer, such as NaN: the model is broken."""


class DatasetError(AudioCNNError, ValueError):
    """A dataset folder that is missing, empty or laid out in a way we do not read."""


class ServerError(AudioCNNError, RuntimeError):
    """The client got no answer. Raised after the retries, if this kind is worth any."""

    is_retryable = True
    request_id: str | None = None  # the `X-Request-Id` that was sent, the same in every attempt
    retry_after_seconds = 0.0  # what the server asked for

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of the HTTP reply; None: there was none


class ServerBusyError(ServerError):
    """The queue is full, or no worker is ready: nothing was tried."""


class ServerUnreachableError(ServerError):
    """No connection, a connection that broke, or no reply in time."""


class ServerFailedError(ServerError):
    """A worker died or failed with this request in hand, or the reply cannot be read."""


class TokenRefusedError(ServerError):
    """The token is wrong, expired or missing."""


class RequestRefusedError(ServerError):
    """The server does not take such a request: an unknown model or version, for one."""

    is_retryable = False
