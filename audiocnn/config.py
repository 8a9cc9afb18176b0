"""The one configuration: what the front end, the network and the decoder do, as frozen dataclasses.

It is written by training into `config.json`, travels inside every exported file, and is read by all
that runs the model; nothing re-declares a value of it. Imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from audiocnn.errors import ModelFileError

FORMAT_VERSION = 2  # 2: activation and thresholds
ACTIVATIONS = ("softmax", "sigmoid")

MIN_TAIL_SECONDS = 0.25  # what is left after the last whole window, if it is shorter, is dropped

T = TypeVar("T")

# What a file may say: a number out of these ranges would take all memory, or divide by zero, somewhere later.
_RANGES: dict[str, tuple[type, float, float]] = {
    "sample_rate": (int, 1_000, 384_000),
    "clip_seconds": (float, 0.05, 60.0),
    "n_fft": (int, 16, 65_536),
    "win_length": (int, 1, 65_536),
    "hop_length": (int, 1, 65_536),
    "n_mels": (int, 1, 1_024),
    "f_min": (float, 0.0, 192_000.0),
    "f_max": (float, 0.0, 192_000.0),
    "log_eps": (float, 1e-30, 1.0),
    "max_gain_db": (float, 0.0, 120.0),
    "width": (int, 1, 1_024),
    "dropout": (float, 0.0, 1.0),
    "drop_path": (float, 0.0, 1.0),
    "embedding_size": (int, 1, 1_000_000),
    "temperature": (float, 1e-3, 1e3),
    "unknown_threshold": (float, 0.0, 1.0),
    "on": (float, 0.0, 1.0),
    "off": (float, 0.0, 1.0),
    "precision": (float, 0.0, 1.0),
    "recall": (float, 0.0, 1.0),
    "false_alarms_per_hour": (float, 0.0, 1e6),
}
_KINDS = {"name": str, "version": str, "fingerprint": str, "has_background": bool, "provenance": dict}
_WORDS = {str: "a text", bool: "true or false", dict: "an object"}
_MAY_BE_NULL = ("unknown_threshold", "embedding_size", "precision", "recall", "false_alarms_per_hour")
WEIGHTS = "model.safetensors"  # of a checkpoint folder, beside `config.json`
SERVED_OUTPUTS: tuple[str, ...] = ("logits", "embedding")  # of the network; a graph may have more
_MAX_CLASSES = 100_000
_MAX_BLOCKS = 100  # in one stage


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Bounds on one clip, checked on the header and again while decoding."""

    max_seconds: float = 600.0
    max_windows: int = 1500  # 600 s with detections at the default hop: 1,436
    max_channels: int = 8
    min_sample_rate: int = 1_000  # Hz
    max_sample_rate: int = 384_000  # Hz
    decode_seconds: float = 40.0  # of wall time that decoding may take
    isolate: bool = False  # decode in processes of their own what one call of C can take minutes for

    @property
    def max_samples(self) -> float:
        """Frames times channels: what `max_seconds` of 48 kHz stereo have, whatever the rate and layout."""
        return self.max_seconds * 48_000 * 2


# Of a file that is read in the memory of a few windows.
UNLIMITED = AudioLimits(max_seconds=math.inf, decode_seconds=math.inf)


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Waveform -> log-mel. Lengths are in samples at `sample_rate`, frequencies in Hz."""

    sample_rate: int = 44_100
    clip_seconds: float = 5.0  # the length of the window that the network sees
    n_fft: int = 2048
    win_length: int = 2048
    hop_length: int = 882  # 20 ms: 251 frames in 5 s
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float = 22_050.0
    log_eps: float = 1e-10  # -100 dB below a full-scale sine: under the noise of 16-bit audio
    max_gain_db: float = 0.0  # each window is made louder, towards full scale, by so much at most; 0: never

    def __post_init__(self) -> None:
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ModelFileError(
                f"f_min={self.f_min} and f_max={self.f_max} must satisfy 0 <= f_min < f_max <= "
                f"sample_rate / 2 = {self.sample_rate / 2}"
            )
        if not 0 < self.hop_length <= self.win_length <= self.n_fft:
            raise ModelFileError(
                f"hop_length={self.hop_length}, win_length={self.win_length}, n_fft={self.n_fft} "
                "must satisfy 0 < hop_length <= win_length <= n_fft"
            )

    @property
    def window_samples(self) -> int:
        """Samples in one window of `clip_seconds`."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def num_frames(self) -> int:
        """Frames of the log-mel of one window (centred frames, as in `torch.stft(center=True)`)."""
        return 1 + self.window_samples // self.hop_length


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: a ResNet of basic blocks, `width` channels in its first stage."""

    width: int = 64
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    dropout: float = 0.5
    drop_path: float = 0.0  # in training: how often the last block is skipped; earlier ones less, linearly

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages."""
        return (self.width, 2 * self.width, 4 * self.width, 8 * self.width)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Confidences at which a detection of a class begins and ends, 0 to 1, and what was measured at them."""

    on: float
    off: float
    precision: float | None = None  # of detections, 0 to 1; None: not measured
    recall: float | None = None
    false_alarms_per_hour: float | None = None  # on recordings without events

    def __post_init__(self) -> None:
        if self.off > self.on:
            raise ModelFileError(f"config.json: a threshold's off {self.off:g} is above its on {self.on:g}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that a model file says about itself; `to_json` and `from_json` are exact inverses."""

    class_names: tuple[str, ...]
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    model: ModelConfig | None = field(default_factory=ModelConfig)  # None: a network of another architecture
    embedding_size: int | None = None  # of such a network; None: it has no embedding
    has_background: bool = False  # a further class with logit 0, which is never reported
    name: str = "audiocnn"
    version: str = "1.0"
    activation: str = "softmax"  # one label a clip; "sigmoid": several, or none
    temperature: float = 1.0  # logits are divided by it before the activation
    unknown_threshold: float | None = None  # below this confidence: "I don't know"; None: never
    thresholds: dict[str, Threshold] = field(default_factory=dict)  # of detections, by class name
    fingerprint: str = ""  # SHA-256 of the stored front end, see audiocnn.model.frontend
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def num_features(self) -> int | None:
        """Numbers of an embedding; None: the model has none."""
        return self.model.channels[-1] if self.model else self.embedding_size

    @property
    def architecture(self) -> ModelConfig:
        """The size of our own network. Raises `ModelFileError` if the model is another one."""
        if self.model is None:
            raise ModelFileError(f"{self.name} is no network of this project: it has no weights to load")
        return self.model

    def public_dict(self) -> dict[str, Any]:
        """What callers need to know, as JSON types: all but the provenance. `from_json` reads it."""
        return {name: value for name, value in asdict(self).items() if name != "provenance"}

    def to_json(self) -> str:
        """A JSON document, two spaces of indent, keys in the order of the fields."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The config that `to_json` wrote; one of an earlier format gets the current `format_version`.

        Raises `ModelFileError` for what is not such a document or comes from a newer version of us.
        """
        try:
            raw = json.loads(text)
            version = raw["format_version"]
        except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
            raise ModelFileError(f"config.json is not a model configuration: {error!r}") from error
        if not isinstance(version, int):
            raise ModelFileError(f"config.json has format_version {version!r}, which is no number")
        if version > FORMAT_VERSION:
            raise ModelFileError(
                f"this model has format_version {version}, this program reads up to {FORMAT_VERSION}: "
                "upgrade AudioCNN Serve, or export the model again with this version"
            )
        try:
            raw["frontend"] = _build(FrontendConfig, raw["frontend"])
            if raw["model"] is not None:
                raw["model"]["blocks"] = _read_blocks(raw["model"]["blocks"])
                raw["model"] = _build(ModelConfig, raw["model"])
            raw["class_names"] = _read_names(raw["class_names"])
            raw["thresholds"] = _read_thresholds(raw.get("thresholds", {}), raw["class_names"])
            if raw.get("activation", "softmax") not in ACTIVATIONS:
                raise ModelFileError(f"config.json: activation must be {' or '.join(ACTIVATIONS)}")
            return _build(cls, raw | {"format_version": FORMAT_VERSION})
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"config.json lacks or mistypes a value: {error}") from error


def _build(cls: type[T], raw: dict[str, Any]) -> T:
    """`cls(**raw)`, with every key that `cls` does not have, or whose value is wrong, in the error."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - known):
        raise ModelFileError(f"config.json has unknown keys for {cls.__name__}: {', '.join(unknown)}")
    for name in _RANGES.keys() & raw.keys():
        if not (name in _MAY_BE_NULL and raw[name] is None):
            _check_range(name, raw[name])
    for name in _KINDS.keys() & raw.keys():
        if not isinstance(raw[name], _KINDS[name]):
            raise ModelFileError(f"config.json: {name} must be {_WORDS[_KINDS[name]]}")
    return cls(**raw)


def _check_range(name: str, value: object) -> None:
    kind, low, high = _RANGES[name]
    accepted = (int,) if kind is int else (int, float)
    is_number = isinstance(value, accepted) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # type: ignore[operator]  # NaN is not in a range either
        word = "a whole number" if kind is int else "a number"
        raise ModelFileError(
            f"config.json: {name} is {str(value)[:40]}; it must be {word} from {low:g} to {high:g}"
        )


def _read_blocks(raw: object) -> tuple[Any, ...]:
    blocks = tuple(raw) if isinstance(raw, list) else ()
    if len(blocks) != 4 or not all(type(count) is int and 1 <= count <= _MAX_BLOCKS for count in blocks):
        raise ModelFileError(f"config.json: blocks must be four whole numbers from 1 to {_MAX_BLOCKS}")
    return blocks


def _read_names(raw: object) -> tuple[str, ...]:
    names = tuple(raw) if isinstance(raw, list) else ()
    are_texts = all(isinstance(name, str) and name for name in names)
    if not (are_texts and 1 <= len(names) == len(set(names)) <= _MAX_CLASSES):
        raise ModelFileError(
            f"config.json: class_names must be 1 to {_MAX_CLASSES:,} different, non-empty texts"
        )
    return names


def _read_thresholds(raw: object, class_names: tuple[str, ...]) -> dict[str, Threshold]:
    if not isinstance(raw, dict) or not all(isinstance(row, dict) for row in raw.values()):
        raise ModelFileError("config.json: thresholds must be an object of objects")
    if unknown := sorted(set(raw) - set(class_names)):
        raise ModelFileError(f"config.json: thresholds has no class of the model: {', '.join(unknown[:5])}")
    return {name: _build(Threshold, row) for name, row in raw.items()}


def feature_map_names(config: ModelConfig | None) -> list[str]:
    """Names of the feature maps in the order of computation: `conv1`, ..., `layer4`. None: it has none."""
    if config is None:
        return []
    names = ["conv1"]
    for stage, count in enumerate(config.blocks, start=1):
        for block in range(count):
            names += [f"layer{stage}.block{block}.conv", f"layer{stage}.block{block}.relu"]
        names.append(f"layer{stage}")
    return names
