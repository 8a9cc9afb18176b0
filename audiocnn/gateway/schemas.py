"""What the OpenAPI document says about bodies; the routes send what TorchServe answered, unparsed.

Running 250,000 numbers of feature maps through a validator would cost more than the network.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from audiocnn.options import OPTIONS


class Reply(BaseModel):
    """Every reply carries the request's id."""

    request_id: str


class Prediction(BaseModel):
    """A class and how sure the model is."""

    class_: str = Field(alias="class", examples=["dog"])
    confidence: float = Field(ge=0, le=1, examples=[0.93])


class ModelId(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["audiocnn"])
    version: str = Field(examples=["1.0"])
    sha256: str = Field(examples=["5f2a0c9d1e3b"], description="first 12 characters")


class Window(BaseModel):
    """The answer for one window, in seconds from the start of the clip."""

    start: float
    end: float
    class_: str = Field(alias="class")
    confidence: float
    embedding: list[float] | None = Field(None, description="with embedding and windows")
    predictions: list[Prediction] | None = Field(None, description="with `windows_top_k` above 1")


class Detection(BaseModel):
    """An event, in seconds from the start of the clip; confidences of its frames of half a hop."""

    class_: str = Field(alias="class", examples=["siren"])
    start: float = Field(ge=0, examples=[301.5])
    end: float = Field(ge=0, examples=[303.75])
    peak_confidence: float = Field(ge=0, le=1, examples=[0.97])
    mean_confidence: float = Field(ge=0, le=1, examples=[0.81])


class Map(BaseModel):
    """A map `shape[0]` x `shape[1]`: `values`, or a PNG of 8-bit greys whose ends are `range`."""

    shape: list[int] = Field(examples=[[32, 63]])
    values: list[list[float]] | None = None
    png: str | None = Field(None, description="base64")
    range: list[float] | None = None


class Span(BaseModel):
    """Seconds from the start of the clip."""

    start: float
    end: float


class PlacedMap(Map):
    """A map with the Hz of its rows and the seconds of its columns."""

    hz: list[float]
    seconds: list[float]


class Evidence(PlacedMap):
    """What every cell adds to the score of a class."""

    class_: str = Field(alias="class")
    start: float
    end: float


class Waveform(BaseModel):
    """At most 8,000 values: samples, or minimum and maximum of equal stretches in turn."""

    values: list[float]
    sample_rate: int = Field(examples=[44100])
    duration: float = Field(examples=[5.0])


class Answer(BaseModel):
    """The answer to one clip; with `reduce_payload` only the predictions."""

    model_config = ConfigDict(protected_namespaces=())

    predictions: list[Prediction]
    is_unknown: bool | None = None
    is_silent: bool | None = None
    warnings: list[str] | None = None
    duration: float | None = Field(None, examples=[5.0], description="seconds")
    model: ModelId | None = None
    precision: dict[str, str] | None = Field(
        None, examples=[{"predictions": "int8", "pictures": "float32"}], description="with maps or evidence"
    )
    windows: list[Window] | None = None
    detections: list[Detection] | None = Field(None, description="by start")
    model_info: dict[str, Any] | None = Field(None, description="classes, front end, thresholds, ...")
    visualization: dict[str, Map] | None = None
    evidence: Evidence | None = None
    input_spectrogram: PlacedMap | None = None
    representative_window: Span | None = Field(None, description="which window the maps are of")
    clip_spectrogram: PlacedMap | None = Field(None, description="values in dB, at most 2,000 columns")
    waveform: Waveform | None = None
    embedding: list[float] | None = None


class PredictReply(Answer, Reply):
    """An answer with its request's id."""


class EmbeddedWindow(Span):
    """A window, in seconds from the start of the clip, and its feature vector."""

    embedding: list[float]


class EmbedReply(Reply):
    """The feature vector of a clip: the mean over its windows."""

    model_config = ConfigDict(protected_namespaces=())

    embedding: list[float]
    dimension: int = Field(examples=[256])
    is_silent: bool
    warnings: list[str]
    duration: float = Field(examples=[5.0], description="seconds")
    model: ModelId
    windows: list[EmbeddedWindow] | None = Field(None, description="if asked for")


class SpectrogramReply(Reply):
    """The log-mel spectrogram that the network saw."""

    input_spectrogram: PlacedMap
    duration: float
    warnings: list[str]


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    code: str = Field(examples=["unsupported_format"])
    message: str


class ErrorReply(Reply):
    """Every error has this body."""

    error: ErrorDetail


class BatchItem(BaseModel):
    """One file's answer, or its error."""

    file: str
    predictions: list[Prediction] | None = None
    error: ErrorDetail | None = None


class BatchReply(Reply):
    """Results in the order of the files."""

    results: list[BatchItem]


class LabelReply(BaseModel):
    """A class as people see it."""

    name: str = Field(examples=["dog"])
    emoji: str = Field(examples=["🐕"])
    group: str = Field(examples=["Animals"])


class LabelsReply(BaseModel):
    """All classes of the served model."""

    labels: list[LabelReply]


class StatusReply(BaseModel):
    """`ok` or `ready`."""

    status: str = Field(examples=["ok"])


class Limits(BaseModel):
    """What one request may be."""

    max_upload_mb: float
    max_files: int
    deadline_seconds: float
    upload_seconds: float
    rate_limit_per_minute: int


class StreamLimits(BaseModel):
    """What one stream may be."""

    min_sample_rate: int
    max_sample_rate: int
    min_hop_seconds: float
    max_hop_seconds: float
    window_seconds: float
    smoothing_seconds: float
    idle_seconds: float
    max_streams: int


class ThresholdReply(BaseModel):
    """Confidences at which a detection begins and ends, and what was measured at them."""

    on: float = Field(ge=0, le=1, examples=[0.9])
    off: float = Field(ge=0, le=1, examples=[0.315])
    precision: float | None = Field(description="of detections; null: not measured")
    recall: float | None
    false_alarms_per_hour: float | None = Field(description="on recordings without events")


class ConfigReply(BaseModel):
    """The served model, what it can give, and the limits. Null: an earlier archive that does not say it."""

    model_config = ConfigDict(protected_namespaces=())

    model: ModelId
    num_classes: int
    embedding_size: int | None = Field(description="numbers of an embedding; null: the model has none")
    has_feature_maps: bool = Field(description="whether feature maps and evidence can be asked for")
    frontend: dict[str, Any] | None
    thresholds: dict[str, ThresholdReply] | None = Field(
        description="of the detections of every class; null: the model has no detections"
    )
    limits: Limits
    stream: StreamLimits
    needs_key: bool
    examples: list[str] = Field(description="classes of which `/examples/NAME.wav` is a sound to try")


_FORMAT = {"type": "string", "enum": ["json", "png"], "default": "json"}
FORMAT: dict[str, Any] = {"format": _FORMAT}
FORMAT_NAMES = tuple(FORMAT)
FORMAT_PARAMETER = {"parameters": [{"name": "format", "in": "query", "schema": _FORMAT}]}
_FILE = {"type": "string", "format": "binary"}


def form_body(name: str, *, many: bool = False, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a multipart form."""
    audio = {"type": "array", "items": _FILE, "minItems": 1} if many else _FILE
    properties = {name: audio, **(OPTIONS if more is None else more)}
    schema = {"type": "object", "required": [name], "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def clip_body(options: dict[str, Any] = OPTIONS) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a file as the body or in a form, options also in the query."""
    content = form_body("file", more=options)["requestBody"]["content"]
    content |= {"application/octet-stream": {"schema": _FILE}, "audio/*": {"schema": _FILE}}
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in options.items()]
    return {"requestBody": {"required": True, "content": content}, "parameters": query}


def json_body() -> dict[str, Any]:
    """`openapi_extra` of the route that takes base64."""
    audio = {"type": "string", "format": "byte", "description": "a sound file in base64"}
    options = OPTIONS | {"top_k": OPTIONS["top_k"] | {"default": 3}}
    schema = {
        "type": "object",
        "properties": {"audio_data": audio, "data": audio, **options},
        "anyOf": [{"required": ["audio_data"]}, {"required": ["data"]}],
        "additionalProperties": False,
        "example": {"audio_data": "UklGRg..."},
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_REASONS = {
    400: "the clip or an option is wrong",
    401: "a key is needed",
    403: "a page of a foreign origin",
    404: "there is no such model or version",
    408: "the body took too long",
    413: "too large, too long, too many channels or samples a second",
    415: "no sound file that is known, or a body of another kind",
    429: "too many requests: `Retry-After` says how long to wait",
    502: "TorchServe failed at this request",
    503: "busy or not ready: `Retry-After` says how long to wait",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what can go wrong."""
    return {status: {"model": ErrorReply, "description": _REASONS[status]} for status in statuses}


GUARDED = (401, 403, 429)
ASKED = (400, *GUARDED, 408, 413, 415, 502, 503)
