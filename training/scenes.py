"""Scenes of one minute with events at known times: clips of labelled datasets over synthetic background.

The background is fan noise of random spectral tilt with mains hum; none of it is a class of ESC-50. An event
is the active part of one clip, without leading and trailing silence. Scenes are drawn from a seed, so two
runs measure the same audio, and a scene differs between signal-to-noise ratios in the level of its events
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio.audio_input import AudioInput
from audiocnn.datasets import LabelledClip
from audiocnn.errors import AudioError, DatasetError

SECONDS = 60.0
MAX_EVENTS = 6
_BACKGROUND_DBFS = -40.0  # RMS
_FRAME_SECONDS = 0.05
_ACTIVE_DB = 40.0  # below the loudest frame of a clip: silence
_GAP_SECONDS = 1.0  # a longer silence ends the event
_MIN_EVENT_SECONDS = 0.1
_FADE_SECONDS = 0.01


@dataclass(frozen=True)
class SceneEvent:
    """One true event of a scene."""

    label: str
    start: float  # seconds
    end: float


@dataclass(frozen=True)
class Scene:
    """A recording and what is in it."""

    name: str
    audio: AudioInput
    events: tuple[SceneEvent, ...]


def scenes(
    clips: Sequence[LabelledClip], count: int, *, snr_db: float, sample_rate: int, seed: int = 0
) -> Iterator[Scene]:
    """`count` scenes of one minute, see `scene`."""
    return (scene(clips, number=n, snr_db=snr_db, sample_rate=sample_rate, seed=seed) for n in range(count))


def empty_scenes(count: int, *, sample_rate: int, seed: int = 0) -> Iterator[Scene]:
    """`count` minutes of background without an event."""
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        mix = background(rng, sample_rate=sample_rate)
        yield Scene(f"empty-{number:03d}", (mix, sample_rate), ())


def clip_scenes(clips: Iterable[LabelledClip], *, sample_rate: int) -> Iterator[Scene]:
    """Every clip as it is: one event, its active part."""
    for clip in clips:
        waveform = _decode(clip, sample_rate)
        first, last = _active_part(waveform, round(_FRAME_SECONDS * sample_rate))
        start, end = first / sample_rate, last / sample_rate
        events = tuple(SceneEvent(label, start, end) for label in clip.labels)
        yield Scene(clip.path.name, (waveform, sample_rate), events)


def scene(
    clips: Sequence[LabelledClip], *, number: int, snr_db: float, sample_rate: int, seed: int = 0
) -> Scene:
    """Scene `number` of a seed: 1 to 6 events of different classes, `snr_db` above the background (RMS).

    Raises `DatasetError` for a clip that cannot be read.
    """
    rng = np.random.default_rng([seed, number])
    mix = background(rng, sample_rate=sample_rate)
    level = float(np.sqrt(np.square(mix).mean())) * 10 ** (snr_db / 20)
    events: list[SceneEvent] = []
    for clip in _draw(rng, clips):
        sound = event_sound(clip, sample_rate)
        first = int(rng.integers(len(mix) - len(sound)))
        rms = float(np.sqrt(np.square(sound).mean()))
        mix[first : first + len(sound)] += sound * (level / max(rms, 1e-9))
        start = first / sample_rate
        end = start + len(sound) / sample_rate
        events += [SceneEvent(label, start, end) for label in clip.labels]
    mix /= max(1.0, float(np.abs(mix).max()))
    ordered = tuple(sorted(events, key=lambda event: event.start))
    return Scene(f"scene-{number:03d}", (mix, sample_rate), ordered)


def _draw(rng: np.random.Generator, clips: Sequence[LabelledClip]) -> list[LabelledClip]:
    """1 to 6 clips of different classes."""
    labels = sorted({clip.label for clip in clips})
    count = min(int(rng.integers(1, MAX_EVENTS + 1)), len(labels))
    chosen = rng.choice(len(labels), size=count, replace=False)
    by_label = [[clip for clip in clips if clip.label == labels[number]] for number in chosen]
    return [own[int(rng.integers(len(own)))] for own in by_label]


def background(rng: np.random.Generator, *, sample_rate: int, seconds: float = SECONDS) -> FloatArray:
    """White to pink noise with mains hum at -40 to -6 dB: float32 `(n,)`."""
    length = round(seconds * sample_rate)
    hertz = np.fft.rfftfreq(length, 1 / sample_rate)
    slope = rng.uniform(0.0, 0.5)  # of the amplitude: 0 to -3 dB an octave; steeper is wind
    shape = (np.maximum(hertz, 50.0) / 1000.0) ** -slope
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * shape, n=length)
    times = np.arange(length) / sample_rate
    mains, phase = float(rng.choice((50.0, 60.0))), rng.uniform(0, 2 * np.pi, 8)
    partials = (np.sin(2 * np.pi * mains * (n + 1) * times + phase[n]) / (n + 1) for n in range(8))
    mix = noise / noise.std() + 10 ** (rng.uniform(-40, -6) / 20) * sum(partials)
    return np.asarray(mix / mix.std() * 10 ** (_BACKGROUND_DBFS / 20), dtype=np.float32)


@lru_cache(maxsize=512)
def event_sound(clip: LabelledClip, sample_rate: int) -> FloatArray:
    """The event of a clip: its active part with the most energy, with no silence of a second in it.

    Float32 `(n,)` with faded ends. Raises `DatasetError` for a clip that cannot be read.
    """
    waveform = _decode(clip, sample_rate)
    first, last = _active_part(waveform, round(_FRAME_SECONDS * sample_rate))
    sound = waveform[first:last].copy()
    fade = min(round(_FADE_SECONDS * sample_rate), len(sound) // 2)
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    sound[:fade] *= ramp
    sound[len(sound) - fade :] *= ramp[::-1]
    return sound


def _decode(clip: LabelledClip, sample_rate: int) -> FloatArray:
    try:
        return audio.decode(clip.path.read_bytes(), sample_rate=sample_rate).waveform
    except (OSError, AudioError) as error:
        raise DatasetError(f"{clip.path}: {error}") from error


def _active_part(waveform: FloatArray, frame: int) -> tuple[int, int]:
    """First and last sample of the active part that has the most energy."""
    power = np.add.reduceat(np.square(waveform, dtype=np.float64), np.arange(0, len(waveform), frame))
    active = np.flatnonzero(power > power.max() * 10 ** (-_ACTIVE_DB / 10))
    if not len(active):
        return 0, len(waveform)
    parts = np.split(active, np.flatnonzero(np.diff(active) * _FRAME_SECONDS >= _GAP_SECONDS) + 1)
    loudest = max(parts, key=lambda part: float(power[part[0] : part[-1] + 1].sum()))
    first, last = int(loudest[0]), int(loudest[-1]) + 1
    last = max(last, first + round(_MIN_EVENT_SECONDS / _FRAME_SECONDS))
    return first * frame, min(last * frame, len(waveform))
