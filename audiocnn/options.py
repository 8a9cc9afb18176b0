"""What a request may ask for: one name each, as multipart field, JSON key, header or flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from audiocnn.config import Config, feature_map_names
from audiocnn.errors import BadOptionError

OPTION_NAMES = (
    "top_k",
    "min_confidence",
    "classes",
    "feature_maps",
    "layers",
    "evidence",
    "class",
    "spectrogram",
    "waveform",
    "windows",
    "reduce_payload",
)
HEADERS = {"x-" + name.replace("_", "-"): name for name in OPTION_NAMES}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one clip is to be answered. The defaults are those of a request that says nothing."""

    top_k: int = 5
    min_confidence: float = 0.0
    classes: tuple[str, ...] = ()  # an allow-list; empty: all
    feature_maps: str = "none"  # none, json or png
    layers: tuple[str, ...] = ()  # feature maps to send; empty: all
    evidence: bool = False
    class_name: str | None = None  # whose evidence; None: that of the top class
    spectrogram: bool = False
    waveform: bool = False
    windows: bool = False
    reduce_payload: bool = False  # predictions only, whatever else is asked for
    explain: bool = False  # the evidence of all that is predicted; asked for by address, not by name

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
    def parse(cls, raw: Mapping[str, object], config: Config) -> Options:
        """Options from names and values as they came; raises `BadOptionError` that names the culprit."""
        parsers: dict[str, Callable[[str, object], object]] = {
            "top_k": _positive_int,
            "min_confidence": _fraction,
            "classes": lambda name, value: _names(name, value, config.class_names),
            "feature_maps": _map_format,
            "layers": lambda name, value: _names(name, value, feature_map_names(config.model)),
            "evidence": _flag,
            "class": lambda name, value: _names(name, [_text(value)], config.class_names)[0],
            "spectrogram": _flag,
            "waveform": _flag,
            "windows": _flag,
            "reduce_payload": _flag,
        }
        values: dict[str, object] = {}
        for name, value in raw.items():
            if name not in parsers:
                raise BadOptionError(f"There is no option {name[:40]!r}. Options: {', '.join(OPTION_NAMES)}.")
            values["class_name" if name == "class" else name] = parsers[name](name, value)
        return cls(**values)  # type: ignore[arg-type]


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


def _fraction(name: str, value: object) -> float:
    try:
        number = float(_text(value))
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise _bad(name, value, "it must be a number from 0 to 1")
    return number


def _flag(name: str, value: object) -> bool:
    text = _text(value).lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise _bad(name, value, "it must be true or false")


def _map_format(name: str, value: object) -> str:
    text = _text(value).lower()
    if text not in ("none", "json", "png"):
        raise _bad(name, value, "it must be none, json or png")
    return text


def _names(name: str, value: object, known: object) -> tuple[str, ...]:
    parts = [_text(item) for item in value] if isinstance(value, list | tuple) else _text(value).split(",")
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))  # each once
    assert isinstance(known, list | tuple)
    if unknown := [item for item in names if item not in known]:
        raise _bad(name, unknown[0], f"it must be of {', '.join(known)}")
    if not names:
        raise _bad(name, value, "it is empty")
    return names


def option_headers(options: Mapping[str, object]) -> dict[str, str]:
    """Options as headers; raises `BadOptionError` for a name that does not exist (a header would be ignored).

    None means not given; `class` is a word of Python's and may be written `class_`.
    """
    headers = {}
    for given, value in options.items():
        name = given.rstrip("_")
        if name not in OPTION_NAMES:
            raise BadOptionError(f"There is no option {given!r}. Options: {', '.join(OPTION_NAMES)}.")
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = text.strip()  # HTTP libraries refuse a header's value with spaces around it
        if not (text.isascii() and text.isprintable()):
            raise BadOptionError(f"{name}={text!r} cannot be sent: a header carries printable ASCII only.")
        if value is not None:
            headers["X-" + name.replace("_", "-").title()] = text
    return headers
