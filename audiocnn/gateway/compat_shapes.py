"""Parameters and replies of the Environmental-Audio project, made from answers of ours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from audiocnn.config import FrontendConfig
from audiocnn.greyscale import to_grey

SPECTROGRAM = {"clip_spectrogram": True}
_NUM_TICKS = 5

DecibelArray = npt.NDArray[np.float64]


class SpectrogramParameters(BaseModel):
    """Query of `/predict` and `/spectrogram`, and the first frame of `/ws/predict`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    sample_rate: Annotated[int, Field(ge=8000, le=48_000)] = 22_050
    duration: Annotated[float, Field(gt=0, le=30)] = 4.0
    n_mels: Annotated[int, Field(ge=16, le=256)] = 128

    def warnings(self, frontend: FrontendConfig) -> list[str]:
        """What was given and differs from the model's front end."""
        used = {
            "sample_rate": frontend.sample_rate,
            "duration": frontend.clip_seconds,
            "n_mels": frontend.n_mels,
        }
        return [
            f"{name}={getattr(self, name):g} is not used: the model's front end has {value:g}."
            for name, value in used.items()
            if name in self.model_fields_set and getattr(self, name) != value
        ]


class PredictParameters(SpectrogramParameters):
    """Query of `/predict`."""

    top_k: Annotated[int, Field(ge=1, le=20)] = 3
    reduce_payload: bool = False


def to_reply(answer: Mapping[str, Any], frontend: FrontendConfig, *, image: bool = True) -> dict[str, Any]:
    """An answer of ours in the shape of that project; `image`: with pictures of the spectrograms."""
    ranked = [{"label": row["class"], "confidence": row["confidence"]} for row in answer["predictions"]]
    reply: dict[str, Any] = {
        "top_prediction": ranked[0],
        "top_k": ranked,
        "spectrogram": None,
        "spectrograms": [],
    }
    if whole := answer.get("clip_spectrogram"):
        reply["spectrogram"] = spectrogram_object(whole, frontend, image=image)
        reply["spectrograms"] = [
            spectrogram_object(_part(whole, row["start"], row["end"]), frontend, image=image)
            | {"window_start": row["start"], "window_end": row["end"]}
            for row in answer["windows"]
        ]
    return reply


def _part(spectrogram: Mapping[str, Any], start: float, end: float) -> dict[str, Any]:
    """The columns from `start` to `end`, at least one."""
    seconds = spectrogram["seconds"]
    first, last = np.searchsorted(seconds, (start, end))
    columns = slice(min(int(first), len(seconds) - 1), max(int(last), int(first) + 1))
    rows = [row[columns] for row in spectrogram["values"]]
    return {"values": rows, "hz": spectrogram["hz"], "seconds": seconds[columns]}


def spectrogram_object(
    shown: Mapping[str, Any], frontend: FrontendConfig, *, image: bool = True
) -> dict[str, Any]:
    """One spectrogram object: dB values, lowest band first, with five ticks an axis."""
    values: DecibelArray = np.asarray(shown["values"], np.float64)
    seconds, hz = shown["seconds"], shown["hz"]
    column = seconds[1] - seconds[0] if len(seconds) > 1 else frontend.hop_length / frontend.sample_rate
    top, bottom = float(values.max()), float(values.min())
    ends = np.linspace(0, len(hz) - 1, _NUM_TICKS).round().astype(int)
    return {
        "image": _picture(values) if image else "",
        "features": values.tolist(),
        "shape": list(values.shape),
        "time_ticks": np.linspace(0, len(seconds) * column, _NUM_TICKS).round(3).tolist(),
        "freq_ticks": [hz[number] for number in ends[::-1]],
        "db_ticks": [round(level, 1) for level in (top, (top + bottom) / 2, bottom)],
        "sample_rate": frontend.sample_rate,
        "hop_length": round(column * frontend.sample_rate),
        "n_mels": len(hz),
    }


def _picture(values: DecibelArray) -> str:
    """PNG of 8-bit greys as RGB, base64: low frequencies at the bottom, loud is bright."""
    grey, _, _ = to_grey(values)
    file = io.BytesIO()
    Image.fromarray(grey[::-1]).convert("RGB").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
