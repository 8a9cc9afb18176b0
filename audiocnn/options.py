"""What a request may ask for: one name each, as multipart field, JSON key, header or flag."""

from __future__ import annotations

import csv
import io
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote, unquote

from audiocnn.config import Config, feature_map_names
from audiocnn.errors import BadOptionError

TRUE_WORDS = ("true", "1", "yes", "on")
_FLAG: dict[str, Any] = {"type": "boolean", "default": False}
_FROM_0: dict[str, Any] = {"type": "number", "minimum": 0, "default": 0}
_HOP = "from one window to the next (half a window; 0.5 for detections, 1 at most)"
_PART = "classify this part of the file, seconds"
# Every option, once: its name, JSON type, default and help. The parser, the headers, the clients and OpenAPI
# read this table.
OPTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
    "min_confidence": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "classes": {"type": "string", "description": "report only these, comma-separated", "example": "dog,cat"},
    "exclude": {"type": "string", "description": "do not report these", "example": "wind"},
    "feature_maps": {"type": "string", "enum": ["none", "json", "png"], "default": "none"},
    "layers": {"type": "string", "description": "which feature maps (all)", "example": "conv1,layer4"},
    "evidence": _FLAG | {"description": "where in time and frequency the score came from"},
    "class": {"type": "string", "description": "whose evidence (the top class)", "example": "dog"},
    "spectrogram": {
        "anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["png"]}],
        "default": False,
        "description": "the log-mel spectrogram that the network saw, as numbers or as a PNG",
    },
    "clip_spectrogram": _FLAG | {"description": "the mel spectrogram of the whole clip in dB"},
    "waveform": _FLAG | {"description": "at most 8,000 values to draw"},
    "embedding": _FLAG | {"description": "feature vector of the sound; with windows also of each window"},
    "windows": _FLAG | {"description": "the answer of every window"},
    "windows_top_k": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 1},
    "detections": _FLAG | {"description": "events with class, start, end and confidence"},
    "hop_seconds": {"type": "number", "minimum": 0.5, "maximum": 5, "description": _HOP},
    "min_duration": _FROM_0 | {"maximum": 3600, "description": "seconds of the shortest detection"},
    "pool": {"type": "string", "enum": ["mean", "max"], "default": "mean", "description": "of the windows"},
    "start": _FROM_0 | {"maximum": 1e6, "description": _PART},
    "end": {"type": "number", "minimum": 0, "maximum": 1e6, "description": _PART},
    "model_info": _FLAG | {"description": "what the model is: classes, front end, thresholds of detections"},
    "reduce_payload": _FLAG | {"description": "predictions and nothing else"},
}
OPTION_NAMES = tuple(OPTIONS)
HEADERS = {"x-" + name.replace("_", "-"): name for name in OPTION_NAMES}
# Where the sound is: the names of a form's field (bytes) and of a JSON key (base64).
AUDIO_FIELDS = ("file", "files", "data", "audio_data")
AUDIO_FIELDS_TEXT = "file, files, data or audio_data"

_SAFE_IN_HEADER = "".join(sorted(set(string.printable) - set(string.whitespace) - {"%"})) + " "
_SQUEEZED = {name.replace("-", ""): name for name in HEADERS}  # as misspelt names are compared


@dataclass(frozen=True, kw_only=True)
class ClassFilter:
    """Which classes are reported."""

    classes: tuple[str, ...] = ()  # an allow-list; empty: all
    exclude: tuple[str, ...] = ()  # a deny-list

    def allows(self, name: str) -> bool:
        """Whether a class is reported."""
        return name not in self.exclude and (not self.classes or name in self.classes)


@dataclass(frozen=True, kw_only=True)
class Options(ClassFilter):
    """How one clip is to be answered. The defaults are those of a request that says nothing."""

    top_k: int = 5
    min_confidence: float = 0.0
    feature_maps: str = "none"  # none, json or png
    layers: tuple[str, ...] = ()  # feature maps to send; empty: all
    evidence: bool = False
    class_name: str | None = None  # whose evidence; None: that of the top class
    spectrogram: bool | str = False  # True or "png"
    clip_spectrogram: bool = False
    waveform: bool = False
    embedding: bool = False
    windows: bool = False
    windows_top_k: int = 1  # classes of every window
    detections: bool = False
    hop_seconds: float | None = None  # from one window to the next; None: half a window
    min_duration: float = 0.0  # of a detection, seconds
    pool: str = "mean"  # or max: how the windows of a clip become one answer
    start: float = 0.0  # seconds: the part of the file to classify
    end: float | None = None  # None: to its end
    model_info: bool = False  # the model's configuration
    reduce_payload: bool = False  # predictions only, whatever else is asked for
    explain: bool = False  # the evidence of all that is predicted; asked for by address, not by name

    @property
    def gives_window_embeddings(self) -> bool:
        """Whether every window has its feature vector in the answer."""
        return self.embedding and self.windows and not self.reduce_payload

    def layer_names(self, config: Config) -> tuple[str, ...]:
        """Names of the feature maps to send."""
        return self.layers or tuple(feature_map_names(config.model))

    def map_outputs(self, config: Config) -> tuple[str, ...]:
        """Names of the graph outputs that the answer needs besides the logits."""
        if self.explain:
            return ("evidence",)
        if self.reduce_payload:
            return ()
        evidence = ("evidence",) if self.evidence else ()
        return (*evidence, *(self.layer_names(config) if self.feature_maps != "none" else ()))

    @classmethod
    def parse(cls, raw: Mapping[str, object], config: Config, *, explain: bool = False) -> Options:
        """Options from names and values as they came.

        Raises `BadOptionError` that names the culprit, also for what the model cannot give.
        """
        if unknown := [name for name in raw if name not in OPTIONS]:
            raise unknown_option(*unknown)
        values = {name: _parse(name, value, config) for name, value in raw.items()}
        if "class" in values:
            values["class_name"] = values.pop("class")
        options = cls(**values, explain=explain)  # type: ignore[arg-type]
        options._check(config)
        return options

    def checked(self, config: Config) -> Options:
        """These, made without `parse`, after its checks: raises `BadOptionError` as that does."""
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        explain = bool(given.pop("explain", False))
        if "class_name" in given:
            given["class"] = given.pop("class_name")
        return Options.parse(given, config, explain=explain)

    def _check(self, config: Config) -> None:
        """Raise `BadOptionError` for values that do not fit together or not the model."""
        if self.end is not None and self.end <= self.start:
            raise _bad("end", self.end, f"it must be more than start, {self.start:g}")
        if not any(map(self.allows, config.class_names)):
            raise _bad("exclude", ",".join(self.exclude), "no class is left")
        window = config.frontend.clip_seconds
        if self.hop_seconds is not None and self.hop_seconds > window:
            raise _bad("hop_seconds", self.hop_seconds, f"a window has {window:g} s")
        self._check_outputs(config)

    def _check_outputs(self, config: Config) -> None:
        """Raise `BadOptionError` for what the network has no output for."""
        wanted = {"feature_maps": self.feature_maps != "none", "evidence": self.evidence or self.explain}
        missing = [name for name, is_wanted in wanted.items() if is_wanted and config.model is None]
        if self.embedding and config.num_features is None:
            missing.append("embedding")
        if missing:
            raise BadOptionError(
                f"The model {config.name} cannot give {' and '.join(missing)}: there is no such output."
            )


def unknown_option(*names: str) -> BadOptionError:
    """The error for names that are neither an option nor a place of the sound."""
    listed = ", ".join(repr(name[:40]) for name in names[:5])
    return BadOptionError(
        f"There is no option {listed}: the sound is sent as {AUDIO_FIELDS_TEXT}. "
        f"Options: {', '.join(OPTION_NAMES)}."
    )


def _parse(name: str, value: object, config: Config) -> object:
    kind = OPTIONS[name]
    if name in ("classes", "exclude"):
        return _names(name, value, config.class_names)
    if name == "layers" and config.model is None:
        raise _bad(name, value, "the model has no feature maps")
    if name == "layers":
        return _names(name, value, feature_map_names(config.model))
    if name == "class":
        return _names(name, [_text(value)], config.class_names)[0]
    if name == "spectrogram":
        return "png" if _text(value).lower() == "png" else _flag(name, value, ", false or png")
    if "enum" in kind:
        return _choice(name, value, kind["enum"])
    return {"integer": _positive_int, "number": _number, "boolean": _flag}[kind["type"]](name, value)


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace").strip()
    return str(value).strip()


def _bad(name: str, value: object, expected: str) -> BadOptionError:
    return BadOptionError(f"{name}={_text(value)[:40]!r} is not possible: {expected}.")


def _positive_int(name: str, value: object) -> int:
    text = _text(value)
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) == 0:
        raise _bad(name, value, "it must be a whole number from 1")
    return int(text)


def _number(name: str, value: object) -> float:
    low, high = OPTIONS[name]["minimum"], OPTIONS[name]["maximum"]
    try:
        number = float(_text(value))
    except ValueError:
        number = -1.0
    if not low <= number <= high:
        raise _bad(name, value, f"it must be a number from {low:g} to {high:g}")
    return number


def _flag(name: str, value: object, others: str = " or false") -> bool:
    text = _text(value).lower()
    if text in TRUE_WORDS:
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise _bad(name, value, f"it must be true{others}")


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    text = _text(value).lower()
    if text not in choices:
        raise _bad(name, value, f"it must be {', '.join(choices[:-1])} or {choices[-1]}")
    return text


def _names(name: str, value: object, known: object) -> tuple[str, ...]:
    assert isinstance(known, list | tuple)
    parts = (
        [_text(item) for item in value] if isinstance(value, list | tuple) else _listed(_text(value), known)
    )
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))  # each once
    if unknown := [item for item in names if item not in known]:
        raise _bad(name, unknown[0], f"it must be of {', '.join(known)}")
    if not names:
        raise _bad(name, value, "it is empty")
    return names


def _listed(text: str, known: Sequence[str]) -> list[str]:
    """The names in a comma-separated text; a name with a comma is alone or in double quotes."""
    if text in known:
        return [text]
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:  # lines without quotes, or longer than any name
        return text.split(",")


def _join(names: Iterable[object]) -> str:
    """What `_listed` reads."""
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(names)
    return file.getvalue()


def options_in_headers(headers: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The options among headers, values percent-decoded (UTF-8).

    Raises `BadOptionError` for one that is given twice, and for a name that is nearly one, such as `X-TopK`.
    """
    given = [(name.lower(), value) for name, value in headers if name.lower().startswith("x-")]
    for name, _ in given:
        meant = _SQUEEZED.get(name.replace("-", "").replace("_", ""), name)
        if meant != name:
            raise BadOptionError(f"The header {name[:40]} is no option: send {_header(HEADERS[meant])}.")
    counts = Counter(name for name, _ in given)
    if twice := [name for name in HEADERS if counts[name] > 1]:
        raise BadOptionError(f"The header {_header(HEADERS[twice[0]])} was sent more than once.")
    return {HEADERS[name]: unquote(_text(value)) for name, value in given if name in HEADERS}


def option_headers(options: Mapping[str, object]) -> dict[str, str]:
    """Options as headers; raises `BadOptionError` for a name that does not exist (a header would be ignored).

    None means not given; `class` is a word of Python's and may be written `class_`. What a header cannot
    carry is percent-encoded.
    """
    headers = {}
    for given, value in options.items():
        name = given.rstrip("_")
        if name not in OPTION_NAMES:
            raise unknown_option(given)
        text = _join(value) if isinstance(value, list | tuple) else str(value)
        if value is not None:  # HTTP libraries refuse a header's value with spaces around it
            headers[_header(name)] = quote(text.strip(), safe=_SAFE_IN_HEADER, errors="replace")
    return headers


def _header(name: str) -> str:
    return "X-" + name.replace("_", "-").title()
