"""What the served model is, as it says itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from audiocnn.config import Config, FrontendConfig
from audiocnn.errors import BadOptionError, ModelFileError, ServerError
from audiocnn.gateway.backend import Backend
from audiocnn.gateway.settings import Settings
from audiocnn.labels import ESC50, URBANSOUND8K, describe
from audiocnn.probe import probe_wav

ALL_CLASSES = 1_000_000  # as `top_k`: the answer names every class
_FRESH_SECONDS = 5.0  # a rollout changes the model under us
_WANTED: tuple[dict[str, Any], ...] = ({"embedding": True, "layers": "layer4"}, {"embedding": True}, {})


class ModelInfo:
    """Asks the backend with a short tone: its answer names the model and, with a large `top_k`, all classes.

    What a model cannot give is a refused option: an embedding, or the name of a layer (nothing is computed
    of a layer that is only named).

    The front end is not in an answer; it is read from the checkpoint's config.json, and told only if
    that has the same version and classes.
    """

    def __init__(self, client: Backend, settings: Settings) -> None:
        self._client = client
        self._answer: dict[str, Any] = {}
        self._asked_at = -_FRESH_SECONDS
        self._asking = asyncio.Lock()
        self._level = 0  # index into `_WANTED` of what the model gives
        try:
            self._config: Config | None = Config.from_json(
                settings.model_config_file.read_text(encoding="utf-8")
            )
        except (OSError, ModelFileError):
            self._config = None

    @property
    def frontend(self) -> FrontendConfig:
        """What sample rate and window to prepare for; the usual ones if there is no config.json."""
        return self._config.frontend if self._config else FrontendConfig()

    @property
    def activation(self) -> str:
        """The function that makes confidences of logits: `softmax` or `sigmoid`."""
        return self._config.activation if self._config else "softmax"

    async def has_feature_maps(self) -> bool:
        """Whether feature maps and evidence can be asked for."""
        await self._ask()
        return self._level == 0

    async def labels(self) -> list[dict[str, str]]:
        """All classes, in the order of the model where it is known."""
        names = {row["class"] for row in (await self._ask())["predictions"]}
        known = (*(self._config.class_names if self._config else ()), *(x.name for x in ESC50 + URBANSOUND8K))
        order = {name: number for number, name in reversed(list(enumerate(known)))}
        return [asdict(describe(name)) for name in sorted(names, key=lambda n: (order.get(n, len(order)), n))]

    async def describe(self) -> dict[str, Any]:
        """Name, version and hash; the number of classes; the front end or None."""
        answer = await self._ask()
        config = self._config
        names = {row["class"] for row in answer["predictions"]}
        is_same = config and config.version == answer["model"]["version"] and set(config.class_names) == names
        return {
            "model": answer["model"],
            "num_classes": len(names),
            "embedding_size": len(answer["embedding"]) if "embedding" in answer else None,
            "has_feature_maps": await self.has_feature_maps(),
            "frontend": asdict(config.frontend) if config and is_same else None,
        }

    async def _ask(self) -> dict[str, Any]:
        async with self._asking:
            if time.monotonic() - self._asked_at > _FRESH_SECONDS:
                self._answer = await self._probe()
                self._asked_at = time.monotonic()
            return self._answer

    async def _probe(self) -> dict[str, Any]:
        """The answer with all that the model gives; of another model than before that is found out anew."""
        answer = await self._first_accepted(self._level)
        if self._level and answer.get("model") != self._answer.get("model"):
            answer = await self._first_accepted(0)
        return answer

    async def _first_accepted(self, first: int) -> dict[str, Any]:
        for self._level, wanted in enumerate(_WANTED[first:], start=first):
            with suppress(BadOptionError):
                return await self._client.predict(probe_wav(), {"top_k": ALL_CLASSES} | wanted)
        raise ServerError("The model server refuses a plain request.")
