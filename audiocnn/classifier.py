"""Audio files in, results out: what the handler, the command line, evaluation and the batch job call.

    bytes -> decode (per clip, may fail) -> windows -> stacks of log-mels -> engine -> softmax -> pool

A clip that cannot be answered becomes an `AudioError` in its place; the others are not touched, and
their answers do not depend on what is beside them. Predictions come from the served file whatever else
is asked for; feature maps and evidence come from its float32 counterpart, for one window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from audiocnn import audio, detections
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.audio.audio_input import AudioInput, to_bytes
from audiocnn.audio.budget import Budget, decode_in_turns
from audiocnn.clip_windows import ClipWindows, WindowSeries, plan_windows
from audiocnn.config import AudioLimits
from audiocnn.detections import Detection
from audiocnn.errors import AudioError, BudgetExceededError
from audiocnn.model.engine import INT8, MAX_BATCH, Engine
from audiocnn.model.loading import find_model, load_engine
from audiocnn.model.spectrogram import clip_spectrogram
from audiocnn.options import Options
from audiocnn.probabilities import probabilities
from audiocnn.results import RepresentativeWindow, Result, StreamEnd, WindowProbs
from audiocnn.streams import File, predict_streams


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


class Classifier:
    """A loaded model and the bounds on what it accepts."""

    def __init__(self, engine: Engine, *, limits: AudioLimits | None = None) -> None:
        self.engine = engine
        self.config = engine.config
        self.limits = limits or AudioLimits()
        self._model = {
            "name": self.config.name,
            "version": self.config.version,
            "sha256": engine.sha256[:12],
        }
        self._precision = "int8" if engine.path.stem.endswith(INT8) else "float32"

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        limits: AudioLimits | None = None,
    ) -> Classifier:
        """From an exported file or a checkpoint folder; None: see `find_model`."""
        chosen = find_model(Path(path) if path else None)
        return cls(load_engine(chosen, device=device, threads=threads), limits=limits)

    def predict(self, audio: AudioInput, options: Options | None = None) -> Result:
        """The answer to one clip.

        `audio` is a path, the bytes of a file, a file object open for reading, or a tuple of a waveform,
        `(num_samples,)` or `(num_samples, channels)`, float in [-1, 1] or PCM in int16, int32 or uint8, and
        its sample rate in Hz. Raises `AudioError` if the clip cannot be answered, `OSError` if its file
        cannot be read, `TypeError` or `ValueError` for another object.

        >>> audiocnn.load().predict("rain.wav").label
        'rain'
        """
        (result,) = self.predict_batch([audio], [options or Options()])
        if isinstance(result, AudioError):
            raise result
        return result

    def predict_stream(
        self, audio: AudioInput, *, overlap_seconds: float | None = None, window_seconds: float | None = None
    ) -> Iterator[tuple[float, float, FloatArray]]:
        """Start and end in seconds and probabilities `(num_classes,)` of each window of a file of any length.

        Memory stays that of a few windows. `overlap_seconds` of neighbouring windows: None for half a window.
        `window_seconds`: None for the model's; shorter ones are repeated until they fill its input.
        Raises `AudioError` or `OSError`, perhaps after windows that were good, and `ValueError` for a length
        or an overlap that is not possible.
        """
        for _, item in self.predict_streams(
            [audio], overlap_seconds=overlap_seconds, window_seconds=window_seconds
        ):
            if isinstance(item, WindowProbs):
                yield item.start, item.end, item.probs
            elif item.error:
                raise item.error

    def predict_streams(
        self,
        files: Iterable[File],
        *,
        overlap_seconds: float | None = None,
        window_seconds: float | None = None,
        outputs: Sequence[str] = (),
    ) -> Iterator[tuple[File, WindowProbs | StreamEnd]]:
        """Windows of many files of any length, `MAX_BATCH` windows at a time whatever files they are of.

        Yields a file with each of its windows, then with its `StreamEnd`, in the order of `files`. An error
        ends its own file only. `files` is read lazily: an item is taken, then opened.
        `outputs`: names of further outputs of the network (`embedding`, `evidence`, feature maps) for each
        window; the embedding is that of the served file and costs nothing.
        """
        return predict_streams(
            self.engine,
            files,
            overlap_seconds=overlap_seconds,
            window_seconds=window_seconds,
            outputs=outputs,
        )

    def predict_batch(
        self,
        clips: Sequence[AudioInput],
        options: Sequence[Options | AudioError] | None = None,
        timings: Timings | None = None,
        *,
        budget_seconds: float = math.inf,
    ) -> list[Result | AudioError]:
        """Answer every clip; an `AudioError` among the options is handed through as that clip's answer.

        What it took is appended to `timings`. The shortest clips come first, and one that is not reached
        within `budget_seconds` of wall time gets `BudgetExceededError`; the first one is always answered.
        Raises `OSError` if one of the files cannot be read.
        """
        timings, budget = timings or Timings(), Budget(budget_seconds)
        answers: dict[int, Result | AudioError] = {}
        wanted: dict[int, Options] = {}
        options = [Options()] * len(clips) if options is None else options
        for number, (_, given) in enumerate(zip(clips, options, strict=True)):
            try:
                wanted[number] = self._checked(given)
            except AudioError as error:
                answers[number] = error
        work: dict[int, ClipWindows] = {}
        contents = {n: to_bytes(clips[n]) for n in wanted}
        for number, outcome in self._decode(contents, budget, timings).items():
            if isinstance(outcome, AudioError):
                answers[number] = outcome
                continue
            try:
                work[number] = plan_windows(outcome, wanted[number], self.config, self.limits)
            except AudioError as error:
                answers[number] = error
        self._run(list(work.values()), budget, timings)
        for number, done in work.items():
            if done.is_complete:
                answers[number] = self._result(done, wanted[number], timings)
            else:
                answers[number] = BudgetExceededError()
        return [answers[number] for number in range(len(clips))]

    def _checked(self, options: Options | AudioError) -> Options:
        if isinstance(options, AudioError):
            raise options
        return options.checked(self.config)

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

    def _run(self, work: Sequence[ClipWindows], budget: Budget, timings: Timings) -> None:
        """The windows of all clips through the network, `MAX_BATCH` at a time, fewest windows first."""
        order = sorted(work, key=lambda own: own.num_windows)
        queue = ((part, window) for own in order for part in own.parts for window in part)
        while batch := list(islice(queue, MAX_BATCH)):
            if budget.is_over and order[0].is_complete:
                break
            self._run_batch(batch, timings)
        timings.log_mel_ms += [sum(part.log_mel_ms for part in own.parts) for own in work]

    def _run_batch(self, batch: Sequence[tuple[WindowSeries, FloatArray]], timings: Timings) -> None:
        stack = []
        for own, window in batch:
            began = time.perf_counter()
            stack.append(self.engine.prepare(window))
            own.log_mel_ms += 1000 * (time.perf_counter() - began)
        with _timed(timings.inference_ms):
            outputs = self.engine.run(np.stack(stack), self.engine.served_outputs)
        for number, (own, _) in enumerate(batch):
            own.logits.append(outputs["logits"][number])
            if "embedding" in outputs:
                own.embeddings.append(outputs["embedding"][number])

    def _result(self, work: ClipWindows, options: Options, timings: Timings) -> Result:
        window_probs = probabilities(np.stack(work.whole.logits), self.config)
        probs = windows.pool(window_probs, options.pool)
        wanted = options.class_name
        shown_class = self.config.class_names.index(wanted) if wanted else int(probs.argmax())
        chosen = int(window_probs[:, shown_class].argmax())
        spans = [(options.start + start, options.start + end) for start, end in work.whole.spans]
        waveform, log_mel = work.clip.waveform, self.engine.log_mel
        return Result(
            self.config,
            options,
            probs,
            window_probs,
            spans,
            work.clip,
            self._representative(work.whole, chosen, options, timings),
            self._model,
            window_embeddings=np.stack(work.whole.embeddings) if work.whole.embeddings else None,
            precision=self._precision,
            spectrogram=clip_spectrogram(waveform, log_mel) if options.clip_spectrogram else None,
            detections=self._detections(work.short, options) if work.short else [],
        )

    def _representative(
        self, part: WindowSeries, number: int, options: Options, timings: Timings
    ) -> RepresentativeWindow:
        """The window of this number, with log-mel and maps if the options ask for any."""
        start, end = (options.start + seconds for seconds in part.spans[number])
        names = options.map_outputs(self.config)
        if not (names or options.spectrogram):
            return RepresentativeWindow(start, end)
        network_input = self.engine.prepare(next(islice(part, number, None)))
        maps: dict[str, FloatArray] = {}
        if names:
            with _timed(timings.inference_ms):
                raw = self.engine.run(network_input[None], names)
            maps = {name: array[0] for name, array in raw.items()}
        return RepresentativeWindow(start, end, self.engine.shown_log_mel(network_input), maps)

    def _detections(self, short: WindowSeries, options: Options) -> list[Detection]:
        return detections.detect(
            self.config,
            (
                (options.start + start, options.start + end, probabilities(logits, self.config))
                for (start, end), logits in zip(short.spans, short.logits, strict=True)
            ),
            detections.rules_of(options),
            hop_seconds=detections.hop_of(options, self.config),
        )
