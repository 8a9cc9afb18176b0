"""Which exported file answers: int8 where it has proved itself, float32 otherwise.

`export.parity` measures what int8 costs and writes which file is to be served into `parity.json`. Where
that file is loaded, on another processor perhaps, it must agree once more with its float32 version: there
are processors on which sums of 8-bit products saturate and a convolution silently returns something else.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import synthetic, windows
from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.model.engine import INT8, Engine

PARITY_REPORT = "parity.json"
REFERENCE = "reference.json"  # float32 logits, for a model that is shipped without its float32 file
TOLERANCE = 0.15  # of the largest logit, between int8 and float32; sound files differ by 0.02 to 0.05
STORE = Path("model_store")
RELEASED = Path(__file__).resolve().parent.parent / "released"


logger = logging.getLogger(__name__)


def served_model_path(store: Path) -> Path:
    """The file of a model store that is to answer, by its parity report; float32 ONNX if there is none.

    Raises `ModelFileError` for a damaged report.
    """
    path = store / PARITY_REPORT
    return store / str(_read_json(path, "serves") if path.is_file() else "audiocnn.onnx")


def _read_json(path: Path, key: str) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError(f"{path} is damaged ({error}): export or teach the model again") from error


def model_file(path: Path) -> Path:
    """The file to serve of a taught model or a model store; any other path as it is."""
    return served_model_path(path) if (path / PARITY_REPORT).is_file() else path


def find_model(named: Path | None = None) -> Path:
    """The model to use, that of `named`; None: what this checkout serves, else what the package carries.

    The exports of a checkout are looked for in `model_store` of the working folder, then beside the package.
    Raises `ModelFileError` if there is none.
    """
    if named:
        return model_file(named)
    checkout = Path(__file__).resolve().parent.parent.parent
    for store in (STORE, checkout / STORE, RELEASED):
        if (path := served_model_path(store)).is_file():
            return path
    raise ModelFileError("there is no exported model here: run `make export`, or name one with --model")


def float32_of(path: Path) -> Path:
    """The float32 file that an int8 file was made from; the path itself for any other."""
    return path.with_name(path.stem.removesuffix(INT8) + path.suffix)


def load_engine(path: Path, *, device: str = "cpu", threads: int | None = None) -> Engine:
    """The engine over `path`, or over its float32 file, with a warning, where int8 computes something else.

    On a GPU the float32 file is used at once: ONNX Runtime's CUDA provider has no 8-bit convolutions. An
    int8 file without it is compared with the logits in `reference.json` beside it. Raises `ModelFileError`
    as `Engine` does, and if int8 is wrong here and there is nothing else.
    """
    path = model_file(path)
    float32 = float32_of(path)
    if float32 == path:
        return Engine(path, device=device, threads=threads)
    if not float32.is_file():
        return _checked(Engine(path, device=device, threads=threads), path.with_name(REFERENCE))
    reference = Engine(float32, device=device, threads=threads)
    if device != "cpu":
        return reference
    engine = Engine(path, threads=threads)
    difference = largest_difference(engine, reference)
    if difference <= TOLERANCE:
        return engine
    logger.warning(
        "%s differs from %s by %.0f %% on this processor (at most %.0f %%): answering with float32, slower",
        path.name,
        float32.name,
        100 * difference,
        100 * TOLERANCE,
    )
    return reference


def _checked(engine: Engine, reference: Path) -> Engine:
    if reference.is_file():
        logits = synthetic_logits(engine)
        difference = _difference(logits, _reference_logits(reference, logits.shape))
        if not difference <= TOLERANCE:  # NaN is more
            raise ModelFileError(
                f"{engine.path} differs from float32 by {difference:.0%} on this processor "
                f"(at most {TOLERANCE:.0%}): use a float32 export, `make export`"
            )
    return engine


def _reference_logits(path: Path, shape: tuple[int, ...]) -> FloatArray:
    try:
        logits = np.array(_read_json(path, "logits"), np.float32)
    except (TypeError, ValueError):
        logits = np.zeros(0, np.float32)
    if logits.shape != shape or not np.isfinite(logits).all():
        raise ModelFileError(f"{path} does not have the logits {shape} of the model beside it")
    return logits


def largest_difference(engine: Engine, reference: Engine) -> float:
    """Of the logits on the synthetic sounds, as a share of the largest logit."""
    return _difference(synthetic_logits(engine), synthetic_logits(reference))


def _difference(logits: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def synthetic_logits(engine: Engine, *, only: int | None = None) -> FloatArray:
    """Logits of the synthetic sounds, float32 `(5, num_classes)`, or of one of them `(1, num_classes)`."""
    sounds = synthetic_windows(engine.config.frontend)
    return engine.run_windows(sounds if only is None else sounds[only : only + 1])["logits"]


def synthetic_windows(config: FrontendConfig) -> list[FloatArray]:
    """The first window `(window_samples,)` of each synthetic sound."""
    clips = [audio.decode(data, sample_rate=config.sample_rate) for data in synthetic.reference_wavs()]
    return [windows.cut(clip.waveform, config)[0] for clip in clips]
