"""The inputs of `benchmarks.fuzz`: `fuzz_input(seed, number)` makes the same file and options each time."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from audiocnn.options import OPTION_NAMES
from benchmarks.mutations import Rng, any_file, choice, mutate

INTACT_EVERY = 50
_OPTIONS_SHARE = 0.25
_VALUES: list[Any] = ["", " ", "0", "1", "3", "-1", "1e9", "1" * 400, "NaN", "inf", "0.5", "true", "No"]
_VALUES += ["none", "json", "png", "dog", "dog,cat", "dog,,", ",", "layer1", "layer4,conv1"]
_VALUES += ["../../etc/passwd", "\x00", "\ud800", "é🎵", "٣", "a" * 5000, 0, 1, -1, 2**70, 0.5, float("nan")]
_VALUES += [True, None, [], [1], ["dog"], ["dog", None], {}, {"a": [1]}, [[[[]]]], b"\xff\xfe", b"5"]
_VALUES += [bytearray(b"true")]
_NAMES = (*OPTION_NAMES, "top-k", "", "é", "__class__")


class Saved:
    """Base of dataclasses with a field `body`: to and from JSON."""

    body: bytes

    def to_json(self) -> dict[str, Any]:
        """For a file. Values without a JSON type are written as text."""
        content = vars(self) | {"body": base64.b64encode(self.body).decode()}
        return dict(json.loads(json.dumps(content, default=repr)))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From a file; other keys are ignored."""
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: content[name] for name in names} | {"body": base64.b64decode(content["body"])})


@dataclass(frozen=True)
class FuzzInput(Saved):
    """A file, options as in headers or form fields, and a description of the damage."""

    number: int
    body: bytes
    options: dict[str, Any]
    how: str
    intact: str = ""  # identifies the clip if it is not damaged


def fuzz_input(seed: int, number: int) -> FuzzInput:
    """The input with this number; every `INTACT_EVERY`th is not damaged."""
    rng = np.random.default_rng([seed, number])
    key, body = any_file(rng)
    kind = key.split()[0]
    if number % INTACT_EVERY == 0:
        return FuzzInput(number, body, {}, f"{kind}, intact", intact=key)
    body, names = mutate(body, rng)
    options = odd_options(rng) if rng.random() < _OPTIONS_SHARE else {}
    return FuzzInput(number, body, options, f"{kind}: {', '.join(names)}")


def intact_inputs(seed: int, numbers: Iterable[int]) -> dict[str, FuzzInput]:
    """The undamaged inputs among these, each clip once, by `intact`."""
    found = (fuzz_input(seed, number) for number in numbers if number % INTACT_EVERY == 0)
    return {one.intact: one for one in found}


def odd_options(rng: Rng) -> dict[str, Any]:
    """One or two options with right, wrong or absurd values."""
    return {choice(_NAMES, rng): choice(_VALUES, rng) for _ in range(int(rng.integers(1, 3)))}
