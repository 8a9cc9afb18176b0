"""What the served model is, as it says itself."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from audiocnn.config import Config, FrontendConfig
from audiocnn.detections import thresholds_of
from audiocnn.errors import ModelFileError
from audiocnn.gateway.backend import Backend
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.shared_call import SharedCall
from audiocnn.labels import ESC50, URBANSOUND8K, describe
from audiocnn.probe import probe_wav

ALL_CLASSES = 1_000_000  # as `top_k`: the answer names every class
_FRESH_SECONDS = 5.0  # a rollout changes the model under us


class ModelInfo:
    """Asks the backend with a short tone: the answer has the model's configuration and all classes.

    An archive of version 0.2.0 or earlier does not tell its configuration: then it is read from the
    checkpoint's config.json, and told only if that has the same version and classes.
    """

    def __init__(self, client: Backend, settings: Settings) -> None:
        self._client = client
        self._answer: dict[str, Any] = {}
        self._asked_at = -_FRESH_SECONDS
        self._ask_model = SharedCall(self._ask_once)
        self._served: Config | None = None  # what the model said of itself
        try:
            self._file: Config | None = Config.from_json(
                settings.model_config_file.read_text(encoding="utf-8")
            )
        except (OSError, ModelFileError):
            self._file = None

    @property
    def frontend(self) -> FrontendConfig:
        """What sample rate and window to prepare for; the usual ones where nothing is known."""
        config = self._served or self._file
        return config.frontend if config else FrontendConfig()

    @property
    def activation(self) -> str:
        """The function that makes confidences of logits: `softmax` or `sigmoid`."""
        config = self._served or self._file
        return config.activation if config else "softmax"

    async def config(self) -> Config | None:
        """The configuration of the served model; None if neither it nor config.json has one."""
        answer = await self._ask()
        if self._served or self._file is None:
            return self._served
        is_same = self._file.version == answer["model"]["version"]
        return self._file if is_same and set(self._file.class_names) == _names_in(answer) else None

    async def has_feature_maps(self) -> bool:
        """Whether feature maps and evidence can be asked for."""
        config = await self.config()
        return config is not None and config.model is not None

    async def labels(self) -> list[dict[str, str]]:
        """All classes, in the order of the model where it is known."""
        names = _names_in(await self._ask())
        config = self._served or self._file
        known = (*(config.class_names if config else ()), *(x.name for x in ESC50 + URBANSOUND8K))
        order = {name: number for number, name in reversed(list(enumerate(known)))}
        return [asdict(describe(name)) for name in sorted(names, key=lambda n: (order.get(n, len(order)), n))]

    async def describe(self) -> dict[str, Any]:
        """Name, version and hash; the number of classes; what the model gives; its front end or None."""
        answer, config = await self._ask(), await self.config()
        thresholds = {name: asdict(one) for name, one in thresholds_of(config).items()} if config else None
        return {
            "model": answer["model"],
            "num_classes": len(answer["predictions"]),
            "embedding_size": config.num_features if config else None,
            "has_feature_maps": await self.has_feature_maps(),
            "thresholds": thresholds,
            "frontend": asdict(config.frontend) if config else None,
        }

    async def _ask(self) -> dict[str, Any]:
        if time.monotonic() - self._asked_at > _FRESH_SECONDS:
            await self._ask_model()
        return self._answer

    async def _ask_once(self) -> None:
        options = {"top_k": ALL_CLASSES, "model_info": True}
        self._answer = await self._client.predict(probe_wav(), options)
        self._served = _config_in(self._answer)
        self._asked_at = time.monotonic()


def _names_in(answer: dict[str, Any]) -> set[str]:
    return {row["class"] for row in answer["predictions"]}


def _config_in(answer: dict[str, Any]) -> Config | None:
    """The configuration in an answer; None if it has none, or one of a later format."""
    try:
        return Config.from_json(json.dumps(answer["model_info"]))
    except (KeyError, ModelFileError):
        return None
