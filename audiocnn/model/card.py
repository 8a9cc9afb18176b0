"""The front matter of a model card, as Hugging Face's Hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from audiocnn.config import Config

# Licence of weights and id of the dataset on the Hub, by the name of the dataset.
_DATASETS = {"ESC-50": ("cc-by-nc-3.0", "ashraq/esc50")}
_TAGS = ["audio", "onnx", "environmental-sounds", "sound-event-detection"]


def front_matter(config: Config, scores: Mapping[str, float], measured_on: str = "") -> str:
    """YAML between two lines of dashes: licence, task, dataset, metrics and results.

    Of a model that was trained on another dataset the licence is its owner's (`other`), unless it was taught
    on a backbone for non-commercial use (`licence_id` in the provenance). `scores` are metrics of the Hub by
    name, from 0 to 1, `measured_on` says on which clips.
    """
    dataset = str(config.provenance.get("dataset", "own recordings"))
    licence, hub_id = _DATASETS.get(dataset, (config.provenance.get("licence_id") or "other", ""))
    values: dict[str, Any] = {"license": licence}
    if licence == "other":
        values["license_name"] = "owner"
    tags = _TAGS if config.model is None else [*_TAGS[:2], "pytorch", *_TAGS[2:]]
    values |= {"pipeline_tag": "audio-classification", "tags": tags}
    if hub_id:
        values["datasets"] = [hub_id]
    if scores:
        values["metrics"] = list(scores)
        result = {
            "task": {"type": "audio-classification"},
            "dataset": {"type": hub_id or dataset, "name": " ".join((dataset, measured_on)).strip()},
            "metrics": [{"type": name, "value": round(value, 4)} for name, value in scores.items()],
        }
        values["model-index"] = [{"name": f"{config.name} {config.version}", "results": [result]}]
    # JSON is YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---", ""])
