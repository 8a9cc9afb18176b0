"""The parts of the page that are text: the answer, bars for the classes, the timeline and its exports."""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from itertools import pairwise
from typing import Any

from audiocnn.gateway import drawing
from audiocnn.gateway.words import friendly
from audiocnn.labels import describe

Answer = dict[str, Any]
Segment = tuple[float, float, str, float]  # start, end, class, mean confidence

TOP = 5
_MAX_LANES = 8
_SURE = 0.7
HINT = "Drop a sound, record one, or take an example. WAV, FLAC, Ogg, MP3, M4A or WebM, up to ten minutes."


def spoken(name: str) -> str:
    """A class name for people, safe inside HTML."""
    return escape(name.replace("_", " "))


def percent(confidence: float) -> str:
    """Whole percents, with one decimal below ten."""
    if confidence >= 0.0995:
        return f"{100 * confidence:.0f} %"
    return f"{100 * confidence:.1f} %" if confidence >= 0.0005 else "< 0.1 %"


def message(emoji: str, title: str, text: str, kind: str = "", more: str = "") -> str:
    """The card on top: a large emoji, a title and a line of text."""
    busy = ' aria-busy="true"' if kind == "busy" else ""
    return (
        f'<section class="card {kind}" aria-live="polite"{busy}><span class="emoji">{emoji}</span>'
        f"<div><h2>{title}</h2><p>{text}</p></div>{more}</section>"
    )


def waiting() -> str:
    """Before the first clip."""
    return message("👂", "Let me hear it", HINT, "idle")


def listening() -> str:
    """While a clip is being answered."""
    return message("👂", "Listening …", "One moment.", "busy")


def problem(code: str, detail: str) -> str:
    """An error in friendly words; the exact ones are there to unfold."""
    title, advice = friendly(code)
    more = f"<details><summary>{escape(code)}</summary>{escape(detail)}</details>"
    return message("😕", escape(title), escape(advice), "error", more)


def headline(answer: Answer, ask_ms: float, draw_ms: float) -> str:
    """The top class with its confidence, or that there is none; then the five surest."""
    best = answer["predictions"][0]
    seconds = f"{answer['duration']:.1f} s of sound"
    if answer["is_silent"]:
        card = ("🤫", "Silence", f"There is nothing to hear in {seconds}.", "silent")
    elif answer["is_unknown"] and len(heard := _surely_heard(answer)) > 1:
        several = ", ".join(f"{describe(name).emoji} {spoken(name)}" for name in heard)
        card = ("🎧", "Several sounds", f"No class fits all of {seconds}: {several}.", "unknown")
    elif answer["is_unknown"]:
        guess = f"The nearest that I know is {spoken(best['class'])}, {percent(best['confidence'])} sure."
        card = ("🤷", "I don't know this sound", guess, "unknown")
    else:
        sure = percent(best["confidence"])
        calibrated = "Of 100 answers that are this sure, about so many are right."
        text = f'<b class="sure" title="{calibrated}">{sure}</b> sure, in {seconds}'
        card = (describe(best["class"]).emoji, spoken(best["class"]), text, "known")
    model = answer["model"]
    version = f"{escape(model['name'])} {escape(str(model['version']))}"
    foot = f"{version} · heard in {ask_ms:.0f} ms, drawn in {draw_ms:.0f} ms"
    warnings = "".join(f'<p class="warning">⚠️ {escape(each)}</p>' for each in answer["warnings"])
    more = f'{bars(answer["predictions"][:TOP], "top")}{warnings}<p class="foot">{foot}</p>'
    return message(*card, more)


def _surely_heard(answer: Answer) -> list[str]:
    """Classes that at least one window of a long clip is sure of, in the order of the clip."""
    names = [row["class"] for row in answer.get("windows", []) if row["confidence"] >= _SURE]
    return list(dict.fromkeys(names))[:_MAX_LANES]


def bars(predictions: list[dict[str, Any]], kind: str) -> str:
    """A bar for each class, in the order given."""
    rows = "".join(
        f'<li data-class="{escape(row["class"])}"><span>{describe(row["class"]).emoji}</span>'
        f"<span>{spoken(row['class'])}</span>"
        f'<i><b style="width:{100 * row["confidence"]:.2f}%"></b></i>'
        f"<span>{percent(row['confidence'])}</span></li>"
        for row in predictions
    )
    return f'<ol class="bars {kind}">{rows}</ol>'


def all_classes(answer: Answer) -> str:
    """Bars for all classes, surest first."""
    predictions = answer["predictions"]
    return f"<h3>All {len(predictions)} classes</h3>{bars(predictions, 'all')}"


def legend(name: str) -> str:
    """What the colours over the spectrogram mean."""
    said = f"{describe(name).emoji} {spoken(name)}"
    return (
        '<div class="legend"><label><input type="checkbox" checked class="overlay-switch"> '
        f"Where the score of <b>{said}</b> came from</label>"
        '<span><i class="for"></i> speaks for it</span><span><i class="against"></i> speaks against it</span>'
        "</div>"
    )


def mel_card(answer: Answer) -> str:
    """The spectrogram with its legend; of a long clip, which part of it this is."""
    evidence = answer["evidence"]
    part = ""
    if answer["duration"] > evidence["end"] - evidence["start"] + 0.3:
        span = f"{evidence['start']:.1f} to {evidence['end']:.1f} s"
        part = f" <small>{span}, where {spoken(evidence['class'])} is surest</small>"
    note = "Loudness in standard deviations of each band over the training clips."
    return (
        f"<h3>Mel spectrogram{part}</h3>{drawing.spectrogram(answer)}{legend(evidence['class'])}"
        f'<p class="foot">{note}</p>'
    )


def wave_card(answer: Answer) -> str:
    """The waveform; of a long clip with the part marked that the spectrogram shows."""
    evidence = answer["evidence"]
    is_long = answer["duration"] > evidence["end"] - evidence["start"] + 0.3
    shown = (evidence["start"], evidence["end"]) if is_long else None
    return f"<h3>Waveform</h3>{drawing.waveform(answer, shown)}"


def map_cards(answer: Answer) -> str:
    """The main layers side by side; the blocks inside each unfold below."""
    maps = answer["visualization"]
    main = [name for name in maps if "." not in name]
    figures = "".join(drawing.feature_map(name, maps[name]) for name in main)
    inside = ""
    for name in main:
        parts = [each for each in maps if each.startswith(name + ".")]
        drawn = "".join(drawing.feature_map(each, maps[each]) for each in parts)
        if parts:
            summary = f"<summary>Inside {escape(name)} <small>{len(parts)} maps</small></summary>"
            inside += (
                f'<details data-stage="{escape(name)}">{summary}<div class="maps">{drawn}</div></details>'
            )
    note = (
        "Mean over the channels of each layer, low frequencies at the bottom; each map is divided by its "
        "largest magnitude."
    )
    return (
        f'<h3>What the layers see</h3><div class="map-row"><div class="maps main">{figures}</div>'
        f'{drawing.signed_bar()}</div>{inside}<p class="foot">{note}</p>'
    )


def segments(windows: list[dict[str, Any]]) -> list[Segment]:
    """Windows overlap by half: each speaks for the part nearest to its middle; equal neighbours are one."""
    middles = [(row["start"] + row["end"]) / 2 for row in windows]
    edges = [windows[0]["start"], *((a + b) / 2 for a, b in pairwise(middles)), windows[-1]["end"]]
    runs: list[tuple[float, float, str, list[float]]] = []
    for row, (start, end) in zip(windows, pairwise(edges), strict=True):
        if runs and runs[-1][2] == row["class"]:
            runs[-1] = (runs[-1][0], end, row["class"], [*runs[-1][3], row["confidence"]])
        else:
            runs.append((start, end, row["class"], [row["confidence"]]))
    return [(start, end, name, sum(all_) / len(all_)) for start, end, name, all_ in runs]


def timeline(answer: Answer) -> str:
    """What was heard when, a lane for each class; nothing for a clip of one window."""
    windows = answer.get("windows", [])
    if len(windows) < 2:
        return ""
    runs, duration = segments(windows), answer["duration"]
    heard: dict[str, float] = {}
    for start, end, name, sure in runs:
        heard[name] = heard.get(name, 0.0) + (end - start) * sure
    lanes = sorted(sorted(heard, key=lambda name: -heard[name])[:_MAX_LANES], key=lambda n: _first(runs, n))
    drawn = "".join(_lane(name, runs, duration) for name in lanes)
    ticks = drawing.ticks("x", drawing.second_ticks(0.0, duration))
    left_out = len(heard) - len(lanes)
    more = f" {left_out} more classes are in the CSV." if left_out > 0 else ""
    note = f'<p class="foot">The stronger the colour, the surer.{more}</p>'
    return (
        f'<h3>What was heard when</h3><div class="timeline">{drawn}<div class="lane axis"><span></span>'
        f'{ticks}</div></div>{note}<p class="exports">{_exports(windows, runs)}</p>'
    )


def _first(runs: list[Segment], name: str) -> float:
    return next(start for start, _, each, _ in runs if each == name)


def _lane(name: str, runs: list[Segment], duration: float) -> str:
    blocks = "".join(
        f'<i style="left:{100 * start / duration:.2f}%;width:{100 * (end - start) / duration:.2f}%;'
        f'opacity:{0.25 + 0.75 * sure:.2f}" title="{start:.1f} to {end:.1f} s: {percent(sure)}"></i>'
        for start, end, each, sure in runs
        if each == name
    )
    label = f"<span>{describe(name).emoji} {spoken(name)}</span>"
    return f'<div class="lane" data-class="{escape(name)}">{label}<div>{blocks}</div></div>'


def _exports(windows: list[dict[str, Any]], runs: list[Segment]) -> str:
    """Both files are inside the page: nothing is kept on the server for them."""
    return _download("timeline.csv", "text/csv", csv_of(windows), "CSV") + _download(
        "labels.txt", "text/plain", audacity_of(runs), "Audacity labels"
    )


def csv_of(windows: list[dict[str, Any]]) -> str:
    """Every window: start, end, class, confidence."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["start", "end", "class", "confidence"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(windows)
    return file.getvalue()


def audacity_of(runs: list[Segment]) -> str:
    """A label track for Audacity: File, Import, Labels."""
    return "".join(
        f"{start:.3f}\t{end:.3f}\t{name.replace('_', ' ')} {percent(sure)}\n"
        for start, end, name, sure in runs
    )


def _download(name: str, media_type: str, text: str, label: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{name}" href="data:{media_type};base64,{data}">⬇ {label}</a> '
