"""Which exported file answers: int8 where it has proved itself, float32 otherwise.

`export.parity` measures what int8 costs and writes which file is to be served into `parity.json`. Where
that file is loaded, on another processor perhaps, it must agree once more with its float32 twin: there
are processors on which sums of 8-bit products saturate and a convolution silently returns something else.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from audiocnn import audio
from audiocnn.audio import synthetic, windows
from audiocnn.errors import ModelFileError
from audiocnn.model.engine import INT8, Engine

CERTIFICATE = "parity.json"
TOLERANCE = 0.15  # of the largest logit, between int8 and float32; sound files differ by 0.02 to 0.05

FloatArray = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


def served_model_path(store: Path) -> Path:
    """The file of a model store that is to answer, by its certificate; float32 ONNX if there is none."""
    try:
        name: str = json.loads((store / CERTIFICATE).read_text(encoding="utf-8"))["serves"]
    except OSError:
        name = "audiocnn.onnx"
    return store / name


STORE = Path("model_store")
_RELEASED = Path(__file__).resolve().parent.parent / "released"


def find_model() -> Path:
    """The model to use if none is named: what this checkout serves, else what the package carries.

    The exports of a checkout are looked for in `model_store` of the working folder, then beside the package.
    Raises `ModelFileError` if there is none.
    """
    checkout = Path(__file__).resolve().parent.parent.parent
    for store in (STORE, checkout / STORE, _RELEASED):
        if (path := served_model_path(store)).is_file():
            return path
    raise ModelFileError("there is no exported model here: run `make export`, or name one with --model")


def load_engine(path: Path, *, device: str = "cpu", threads: int | None = None) -> Engine:
    """The engine over `path`, or over its float32 twin, with a warning, where int8 cannot be trusted.

    On a GPU the twin is taken at once: ONNX Runtime's CUDA provider has no 8-bit convolutions. Raises
    `ModelFileError` as `Engine` does.
    """
    twin = path.with_name(path.stem.removesuffix(INT8) + path.suffix)
    if twin == path or not twin.is_file():
        return Engine(path, device=device, threads=threads)
    reference = Engine(twin, device=device, threads=threads)
    if device != "cpu":
        return reference
    engine = Engine(path, threads=threads)
    difference = largest_difference(engine, reference)
    if difference <= TOLERANCE:
        return engine
    logger.warning(
        "%s differs from %s by %.0f %% on this processor (at most %.0f %%): answering with float32, slower",
        path.name,
        twin.name,
        100 * difference,
        100 * TOLERANCE,
    )
    return reference


def largest_difference(engine: Engine, reference: Engine) -> float:
    """Of the logits on the synthetic sounds, as a share of the largest logit."""
    log_mels = _log_mels(reference)
    ours, theirs = engine.run(log_mels)["logits"], reference.run(log_mels)["logits"]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@torch.inference_mode()
def _log_mels(engine: Engine) -> FloatArray:
    config = engine.config.frontend
    clips = [audio.decode(synthetic.wav(name), sample_rate=config.sample_rate) for name in synthetic.SOUNDS]
    stack = np.stack([windows.cut(clip.waveform, config)[0] for clip in clips])
    log_mels: FloatArray = engine.log_mel(torch.from_numpy(stack)).numpy()
    return log_mels
