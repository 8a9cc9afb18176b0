"""Audio files in, results out: what the handler, the command line, evaluation and the batch job call.

    bytes -> decode (per clip, may fail) -> windows -> stacks of log-mels -> engine -> softmax -> pool

A clip that cannot be answered becomes an `AudioError` in its place; the others are not touched, and
their answers do not depend on what is beside them. Predictions come from the served file whatever else
is asked for; feature maps and evidence come from its float32 counterpart, for one window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from audiocnn import audio
from audiocnn.audio import windows
from audiocnn.audio.budget import Budget, decode_in_turns
from audiocnn.config import AudioLimits, Config
from audiocnn.errors import AudioError, BudgetExceededError
from audiocnn.model.engine import MAX_BATCH, Engine
from audiocnn.model.loading import trusted
from audiocnn.options import Options

FloatArray = npt.NDArray[np.float32]

SILENCE_PEAK = 2.5e-4  # -72 dBFS, 8 steps of 16-bit audio: below it there is nothing to name
LOWEST_DBFS = -120.0  # what digital silence is called


@dataclass(frozen=True)
class Shown:
    """What pictures are drawn from: one window, the one that is surest of the class in question."""

    start: float  # seconds
    end: float
    log_mel: FloatArray  # (n_mels, num_frames), as the network saw it
    outputs: dict[str, FloatArray]  # evidence (k, h, w) and feature maps (h, w) that were asked for


@dataclass
class Timings:
    """Where the milliseconds of one call of `classify` went."""

    decode_ms: list[float] = field(default_factory=list)  # of each clip, also those that cannot be decoded
    log_mel_ms: list[float] = field(default_factory=list)  # of each clip that was decoded
    inference_ms: list[float] = field(default_factory=list)  # of each run of the network


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        into.append(1000 * (time.perf_counter() - began))


@dataclass
class _Windows:
    """What is computed of the windows of one clip, in their order."""

    expected: int
    log_mels: list[FloatArray] = field(default_factory=list)  # (1, n_mels, num_frames) each
    logits: list[FloatArray] = field(default_factory=list)  # (num_classes,) each
    log_mel_ms: float = 0.0

    @property
    def is_complete(self) -> bool:
        return len(self.logits) == self.expected


@dataclass(frozen=True)
class Result:
    """The answer to one clip; `audiocnn.results` turns it into JSON."""

    config: Config
    options: Options
    probs: FloatArray  # (num_classes,), sums to 1
    window_probs: FloatArray  # (num_windows, num_classes)
    spans: list[tuple[float, float]]  # start and end of every window, seconds
    clip: audio.Clip
    shown: Shown

    @property
    def is_silent(self) -> bool:
        """Whether the whole clip is digital silence or close to it."""
        if self._mean_square >= SILENCE_PEAK**2:  # the peak is no lower: most clips are told by one pass
            return False
        return bool(np.abs(self.clip.waveform).max() < SILENCE_PEAK)

    @property
    def level_dbfs(self) -> float:
        """RMS level in dB of full scale, `LOWEST_DBFS` at least."""
        return max(LOWEST_DBFS, 10 * math.log10(max(self._mean_square, 1e-30)))

    @cached_property
    def _mean_square(self) -> float:
        return float(np.dot(self.clip.waveform, self.clip.waveform)) / len(self.clip.waveform)

    @property
    def is_unknown(self) -> bool:
        """Whether the model is too unsure to name the sound."""
        threshold = self.config.unknown_threshold
        return threshold is not None and float(self.probs.max()) < threshold

    def top(self) -> list[tuple[str, float]]:
        """The classes and confidences to report, surest first, as the options wish."""
        allowed = self.options.classes or self.config.class_names
        ranked = [
            (self.config.class_names[i], float(self.probs[i])) for i in np.argsort(-self.probs, kind="stable")
        ]
        wanted = [(c, p) for c, p in ranked if c in allowed and p >= self.options.min_confidence]
        return wanted[: self.options.top_k]


class Classifier:
    """A loaded model and the bounds on what it accepts."""

    def __init__(self, engine: Engine, *, limits: AudioLimits | None = None) -> None:
        self.engine = engine
        self.config = engine.config
        self.limits = limits or AudioLimits()

    @classmethod
    def load(
        cls, path: Path, *, device: str = "cpu", threads: int | None = None, limits: AudioLimits | None = None
    ) -> Classifier:
        """From an exported file or a checkpoint folder, see `audiocnn.model.loading.trusted`."""
        return cls(trusted(path, device=device, threads=threads), limits=limits)

    def classify(
        self,
        clips: Sequence[bytes],
        options: Sequence[Options | AudioError] | None = None,
        timings: Timings | None = None,
        *,
        budget_seconds: float = math.inf,
    ) -> list[Result | AudioError]:
        """Answer every clip; an `AudioError` among the options is handed through as that clip's answer.

        What it took is appended to `timings`. The shortest clips come first, and one that is not reached
        within `budget_seconds` of wall time gets `BudgetExceededError`; the first one is always answered.
        """
        timings, budget = timings or Timings(), Budget(budget_seconds)
        wishes = options if options is not None else [Options.parse({}, self.config)] * len(clips)
        wanted = {n: wish for n, wish in enumerate(wishes) if isinstance(wish, Options)}
        answers: dict[int, Result | AudioError] = {
            n: wish for n, wish in enumerate(wishes) if isinstance(wish, AudioError)
        }
        decoded: dict[int, audio.Clip] = {}
        for number, outcome in self._decode({n: clips[n] for n in wanted}, budget, timings).items():
            if isinstance(outcome, AudioError):
                answers[number] = outcome
            else:
                decoded[number] = outcome
        for number, done in self._run(decoded, budget, timings).items():
            if done.is_complete:
                answers[number] = self._result(decoded[number], wanted[number], done, timings)
            else:
                answers[number] = BudgetExceededError()
        return [answers[number] for number in range(len(clips))]

    def _decode(
        self, clips: Mapping[int, bytes], budget: Budget, timings: Timings
    ) -> dict[int, audio.Clip | AudioError]:
        rate, limits = self.config.frontend.sample_rate, self.limits
        decoders = {
            number: audio.ClipDecoder(clips[number], sample_rate=rate, limits=limits)
            for number in sorted(clips, key=lambda number: len(clips[number]))
        }
        outcomes = decode_in_turns(decoders, budget)
        timings.decode_ms += [1000 * decoder.seconds_spent for decoder in decoders.values()]
        return outcomes

    def _run(self, clips: Mapping[int, audio.Clip], budget: Budget, timings: Timings) -> dict[int, _Windows]:
        """The windows of all clips through the network, `MAX_BATCH` at a time, the shortest clips first."""
        config = self.config.frontend
        order = sorted(clips, key=lambda number: len(clips[number].waveform))
        done = {n: _Windows(len(windows.starts(len(clips[n].waveform), config))) for n in order}
        queue = (
            (done[number], window)
            for number in order
            for _, window in windows.iter_windows([clips[number].waveform], config)
        )
        while batch := list(islice(queue, MAX_BATCH)):
            if budget.is_over and done[order[0]].is_complete:
                break
            self._run_batch(batch, timings)
        timings.log_mel_ms += [each.log_mel_ms for each in done.values()]
        return done

    def _run_batch(self, batch: Sequence[tuple[_Windows, FloatArray]], timings: Timings) -> None:
        stack = []
        for own, window in batch:
            began = time.perf_counter()
            stack.append(self._log_mel(window))
            own.log_mel_ms += 1000 * (time.perf_counter() - began)
            own.log_mels.append(stack[-1])
        with _timed(timings.inference_ms):
            logits = self.engine.run(np.stack(stack))["logits"]
        for (own, _), row in zip(batch, logits, strict=True):
            own.logits.append(row)

    def _log_mel(self, window: FloatArray) -> FloatArray:
        """`(1, n_mels, num_frames)` of one window by itself: a matrix product's rounding depends on the
        shape of its operands, and no answer may depend on a neighbour."""
        with torch.inference_mode():
            batch = torch.from_numpy(window[None]).to(self.engine.device)
            log_mel: FloatArray = self.engine.log_mel(batch)[0].cpu().numpy()
        return log_mel

    def _result(self, clip: audio.Clip, options: Options, done: _Windows, timings: Timings) -> Result:
        window_probs = softmax(np.stack(done.logits) / self.config.temperature)
        probs = windows.pool(window_probs)
        spans = windows.spans(len(clip.waveform), self.config.frontend)
        wanted = options.class_name
        shown_class = self.config.class_names.index(wanted) if wanted else int(probs.argmax())
        surest = int(window_probs[:, shown_class].argmax())
        log_mel = done.log_mels[surest]
        maps: dict[str, FloatArray] = {}
        if options.map_outputs:
            with _timed(timings.inference_ms):
                raw = self.engine.run(log_mel[None], options.map_outputs)
            maps = {name: array[0] for name, array in raw.items()}
        shown = Shown(*spans[surest], log_mel=log_mel[0], outputs=maps)
        return Result(self.config, options, probs, window_probs, spans, clip, shown)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities along the last axis, float32, from logits that are finite.

    A model that returns NaN is broken: better an error than a confident guess.
    """
    assert np.isfinite(logits).all(), "the network returned logits that are not finite"
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True), dtype=np.float32)
