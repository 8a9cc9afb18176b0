"""Audio files in, results out: what the handler, the command line, evaluation and the batch job call.

    bytes -> decode (per clip, may fail) -> windows -> one stack of log-mels -> engine -> softmax -> pool

A clip that cannot be answered becomes an `AudioError` in its place; the others are not touched, and
their answers do not depend on what is beside them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from audiocnn import audio, windows
from audiocnn.config import AudioLimits, Config
from audiocnn.engine import Engine
from audiocnn.errors import AudioError
from audiocnn.options import Options
from audiocnn.precision import trusted

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


@dataclass(frozen=True)
class Result:
    """The answer to one clip; `audiocnn.answer` turns it into JSON."""

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
        """From an exported file or a checkpoint folder, see `audiocnn.precision.trusted`."""
        return cls(trusted(path, device=device, threads=threads), limits=limits)

    def classify(
        self,
        clips: Sequence[bytes],
        options: Sequence[Options | AudioError] | None = None,
        timings: Timings | None = None,
    ) -> list[Result | AudioError]:
        """Answer every clip; an `AudioError` among the options is handed through as that clip's answer.

        What it took is appended to `timings`.
        """
        timings = timings or Timings()
        wishes = options if options is not None else [Options.parse({}, self.config)] * len(clips)
        answers: list[Result | AudioError | None] = [None] * len(clips)
        decoded: dict[int, audio.Clip] = {}
        for number, (data, wish) in enumerate(zip(clips, wishes, strict=True)):
            try:
                if isinstance(wish, AudioError):
                    raise wish
                with _timed(timings.decode_ms):
                    decoded[number] = audio.decode(
                        data, sample_rate=self.config.frontend.sample_rate, limits=self.limits
                    )
            except AudioError as error:
                answers[number] = error
        for outputs in {wish.graph_outputs for wish in wishes if isinstance(wish, Options)}:
            group = {n: c for n, c in decoded.items() if wishes[n].graph_outputs == outputs}  # type: ignore[union-attr]
            if group:
                for number, result in self._run(group, wishes, outputs, timings):
                    answers[number] = result
        assert all(answer is not None for answer in answers)
        return answers  # type: ignore[return-value]

    def _run(
        self,
        clips: dict[int, audio.Clip],
        wishes: Sequence[Options | AudioError],
        outputs: tuple[str, ...],
        timings: Timings,
    ) -> list[tuple[int, Result]]:
        """All windows of all clips of one group through the engine together."""
        stacks = []
        for clip in clips.values():
            with _timed(timings.log_mel_ms):
                stacks.append(self._log_mels(clip.waveform))
        with _timed(timings.inference_ms):
            raw = self.engine.run(np.concatenate(stacks), outputs)
        results = []
        first = 0
        for (number, clip), stack in zip(clips.items(), stacks, strict=True):
            own = {name: array[first : first + len(stack)] for name, array in raw.items()}
            first += len(stack)
            options = wishes[number]
            assert isinstance(options, Options)
            results.append((number, self._result(clip, options, stack, own)))
        return results

    def _log_mels(self, waveform: FloatArray) -> FloatArray:
        """`(num_windows, 1, n_mels, num_frames)`, one window at a time: a matrix product's rounding
        depends on the shape of its operands, and no answer may depend on a neighbour."""
        device = self.engine.device
        with torch.inference_mode():
            stack = [
                self.engine.log_mel(torch.from_numpy(window[None]).to(device)).cpu()
                for window in windows.cut(waveform, self.config.frontend)
            ]
        return torch.cat(stack).numpy()

    def _result(
        self, clip: audio.Clip, options: Options, log_mels: FloatArray, outputs: dict[str, FloatArray]
    ) -> Result:
        window_probs = softmax(outputs["logits"] / self.config.temperature)
        probs = windows.pool(window_probs)
        spans = windows.spans(len(clip.waveform), self.config.frontend)
        wanted = options.class_name
        shown_class = self.config.class_names.index(wanted) if wanted else int(probs.argmax())
        surest = int(window_probs[:, shown_class].argmax())
        maps = {name: array[surest] for name, array in outputs.items() if name != "logits"}
        shown = Shown(*spans[surest], log_mel=log_mels[surest, 0], outputs=maps)
        return Result(self.config, options, probs, window_probs, spans, clip, shown)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities along the last axis, float32, from logits that are finite.

    A model that returns NaN is broken: better an error than a confident guess.
    """
    assert np.isfinite(logits).all(), "the network returned logits that are not finite"
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True), dtype=np.float32)
