"""Acceptance of a new version: warm-up predictions, and agreement with the old version on clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiocnn.client.base import Answer, Failure
from audiocnn.client.client import Client
from audiocnn.errors import AudioError
from audiocnn.probe import probe_wav
from audiocnn.torchserve.rollout_context import RolloutContext, RolloutError

_WARM_CONCURRENCY = 8
_MAX_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class AcceptanceCriteria:
    """Conditions for serving a new version."""

    sha256: str | None = None  # of the archive; None: unknown, not verified
    clips: Sequence[Path] = ()  # compared with the old version
    min_agreement: float = 0.9  # share of `clips` with the same top class, 0 to 1


def validate(context: RolloutContext, version: str, old_version: str, criteria: AcceptanceCriteria) -> None:
    """Send predictions to all workers of a version, then compare it with the old one on `criteria.clips`.

    Raises `RolloutError` if a prediction fails or the agreement is too low.
    """
    count = 2 * _WARM_CONCURRENCY
    context.log(f"warming version {version} with {count} predictions")
    with context.connect(version) as new:
        for _, result in new.predict_many([probe_wav()] * count, concurrency=_WARM_CONCURRENCY):
            if isinstance(result, Exception):
                raise RolloutError(f"version {version} does not answer: {result}") from result
        if criteria.clips:
            with context.connect(old_version) as old:
                _compare(context, criteria, new, old)


def _compare(context: RolloutContext, criteria: AcceptanceCriteria, new: Client, old: Client) -> None:
    clips = criteria.clips
    after = [_top_class(result) for _, result in new.predict_many(clips)]
    before = [_top_class(result) for _, result in old.predict_many(clips)]
    changes = [f"{clip.name}: {b} -> {a}" for clip, a, b in zip(clips, after, before, strict=True) if a != b]
    agreement = 1 - len(changes) / len(clips)
    context.log(f"agreement with the old version on {len(clips)} clips: {agreement:.1%}")
    for line in changes[:_MAX_SHOWN]:
        context.log(f"  {line}")
    if agreement < criteria.min_agreement:
        raise RolloutError(f"agreement {agreement:.1%} is below {criteria.min_agreement:.1%}")


def _top_class(result: Answer | Failure) -> str:
    """The top class, or the error code of a clip: equal codes count as agreement."""
    if isinstance(result, AudioError):
        return result.code
    if isinstance(result, Exception):
        raise RolloutError(f"no answer for a clip: {result}") from result
    return str(result["predictions"][0]["class"]) if result["predictions"] else "(none)"


def make_default(context: RolloutContext, version: str) -> None:
    """Make a version the default and send it a prediction."""
    context.management.set_default(version)
    context.log(f"version {version} is the default")
    with context.connect(None) as client:
        client.predict(probe_wav())
