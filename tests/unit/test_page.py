"""The page in a real Chromium: a file, the microphone, live, errors, a phone, the dark, keys."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from audiocnn.errors import AudioError
from audiocnn.gateway import cards, drawing
from audiocnn.gateway.errors import _SERVER_CODES, GatewayError
from audiocnn.gateway.words import all_words

# Gradio's queue asks pandas 3 for what that does anyway; nothing of ours is in it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(each) for each in cls.__subclasses__()))


def test_every_error_code_has_words() -> None:
    codes = {each.code for base in (AudioError, GatewayError) for each in subclasses(base)}  # type: ignore[attr-defined]
    codes |= {code for _, code in _SERVER_CODES.values()}
    codes -= {"bad_audio", "bad_request", "wrong_media_type"}  # of no clip, or never met on the page
    assert codes <= set(all_words())


def test_zero_is_white_and_signs_have_their_colours() -> None:
    grey = np.array([[0, 85, 255]], np.uint8)  # -1, 0, 2
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="PNG")
    item = {"shape": [1, 3], "range": [-1.0, 2.0], "png": base64.b64encode(file.getvalue()).decode()}
    html = drawing.feature_map("conv1", item)
    png = base64.b64decode(html.split("base64,")[1].split('"')[0])
    minus, zero, plus = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)[0]
    assert zero.min() > 250
    assert minus[2] > minus[0]
    assert tuple(plus) == tuple(drawing.SIGNED[-1])


def test_ticks_are_round() -> None:
    assert [label for _, label in drawing.second_ticks(2.5, 7.5)] == ["3", "4", "5", "6", "7"]
    assert drawing.second_ticks(2.5, 7.5)[0][0] == pytest.approx(0.1)
    assert [label for _, label in drawing.second_ticks(0, 300)][:3] == ["0:00", "1:00", "2:00"]
    assert [label for _, label in drawing.hz_ticks(list(np.linspace(0, 4000, 128)))] == [
        "100",
        "500",
        "1k",
        "2k",
        "4k",
    ]


def test_windows_become_segments_without_gaps() -> None:
    rows = [("a", 0.0, 5.0), ("a", 2.5, 7.5), ("b", 5.0, 10.0)]
    windows = [{"class": name, "start": start, "end": end, "confidence": 0.5} for name, start, end in rows]
    assert cards.segments(windows) == [(0.0, 6.25, "a", 0.5), (6.25, 10.0, "b", 0.5)]
    assert cards.audacity_of(cards.segments(windows)).splitlines()[1] == "6.250\t10.000\tb 50 %"


def test_a_class_name_is_text_not_html() -> None:
    row = {"class": '<img src=x onerror="alert(1)">', "confidence": 0.5}
    assert "<img" not in cards.bars([row], "all")
