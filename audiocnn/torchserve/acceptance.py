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
_ALL_CLASSES = 1_000_000  # as `top_k`


@dataclass(frozen=True, kw_only=True)
class AcceptanceCriteria:
    """Conditions for serving a new version."""

    sha256: str | None = None  # of the archive; None: unknown, not verified
    clips: Sequence[Path] = ()  # compared with the old version
    min_agreement: float = 0.9  # share with the same top class, of clips of common classes, 0 to 1


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


@dataclass(frozen=True)
class _Top:
    """The top class of an answer, or the error code of a clip: equal codes count as agreement."""

    name: str
    is_unknown: bool = False


def _compare(context: RolloutContext, criteria: AcceptanceCriteria, new: Client, old: Client) -> None:
    """Agreement on the clips of classes that both versions have.

    Not compared: clips of a class that the new version lacks, and clips that the old version did not know
    and that have a new class now. A known clip that gets a new class is a disagreement.
    """
    added, removed = _class_changes(context, new, old)
    clips = criteria.clips
    after = [_top(result) for _, result in new.predict_many(clips)]
    before = [_top(result) for _, result in old.predict_many(clips)]
    compared = [
        (clip, b, a)
        for clip, b, a in zip(clips, before, after, strict=True)
        if b.name not in removed and not (b.is_unknown and a.name in added)
    ]
    if not compared:
        raise RolloutError(
            f"none of {len(clips)} clips can be compared: the old version has none of their classes, or did "
            "not know them. Give clips of classes that both versions have, or no --clip"
        )
    changes = [f"{clip.name}: {b.name} -> {a.name}" for clip, b, a in compared if a.name != b.name]
    agreement = 1 - len(changes) / len(compared)
    if skipped := len(clips) - len(compared):
        context.log(f"not compared, since the versions have different classes: {skipped} clips")
    context.log(f"agreement with the old version on {len(compared)} clips: {agreement:.1%}")
    for line in changes[:_MAX_SHOWN]:
        context.log(f"  {line}")
    if agreement < criteria.min_agreement:
        raise RolloutError(f"agreement {agreement:.1%} is below {criteria.min_agreement:.1%}")


def _class_changes(context: RolloutContext, new: Client, old: Client) -> tuple[set[str], set[str]]:
    """Classes that only the new version has, and those that only the old one has; both are logged."""
    after, before = ({row["class"] for row in _probe(client)["predictions"]} for client in (new, old))
    for word, names in (("new", after - before), ("no longer there", before - after)):
        if names:
            more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
            context.log(f"classes that are {word}: {', '.join(sorted(names)[:_MAX_SHOWN])}{more}")
    return after - before, before - after


def _probe(client: Client) -> Answer:
    return client.predict(probe_wav(), {"top_k": _ALL_CLASSES})


def _top(result: Answer | Failure) -> _Top:
    if isinstance(result, AudioError):
        return _Top(result.code)
    if isinstance(result, Exception):
        raise RolloutError(f"no answer for a clip: {result}") from result
    name = str(result["predictions"][0]["class"]) if result["predictions"] else "(none)"
    return _Top(name, bool(result.get("is_unknown")))


def make_default(context: RolloutContext, version: str) -> None:
    """Make a version the default and send it a prediction."""
    context.management.set_default(version)
    context.log(f"version {version} is the default")
    with context.connect(None) as client:
        client.predict(probe_wav())
