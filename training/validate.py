"""Validation of a dataset before training: missing files, duplicates, leaks between folds, empty classes.

Files that do not decode are reported when they are loaded (`training.data.load_waveforms`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from audiocnn.datasets import Dataset, LabelledClip
from audiocnn.errors import DatasetError

_LISTED = 20  # cases per problem
_RAREST = 5

# ESC-50 as published has two recordings with sounds of two classes in two folds: 131943 (clock_tick in fold
# 2, clock_alarm in fold 3) and 134049 (hen, rooster). Since the classes differ, nothing is gained by
# memorising the other clip, and published results use these folds: printed as a note, not refused.
PUBLISHED = ("ESC-50", "UrbanSound8K")


def check(dataset: Dataset, folds: Sequence[int]) -> None:
    """Raise one `DatasetError` that lists every problem of training on these folds.

    Missing files and classes without clips are searched in `folds` only. Leaks and duplicates are searched in
    the whole dataset, since the other folds are used for testing. Prints a note about tolerated leaks.
    """
    clips = dataset.folds(folds)
    where = f"fold {_join(folds)}"
    shared = _in_several_folds((clip.source, clip.fold) for clip in dataset.clips)
    if dataset.name in PUBLISHED:
        leaks = _in_several_folds((f"{clip.source} ({clip.label})", clip.fold) for clip in dataset.clips)
    else:
        leaks = shared
    problems = [
        _listing("class, and a model needs two: add recordings of other sounds", _only_class(dataset)),
        _listing("missing: put these files there, or remove their rows", _missing(clips)),
        _listing("listed more than once: keep one row of each", _repeated(dataset.clips)),
        _listing(
            "the same recording in several folds, so that a model would be measured on what it was trained "
            "on: give all clips of a recording the same fold",
            leaks,
        ),
        _listing(
            f"classes without a clip in {where}: train on more folds, or remove the class",
            sorted(set(dataset.class_names) - {label for clip in clips for label in clip.labels}),
        ),
    ]
    if found := [problem for problem in problems if problem]:
        raise DatasetError(f"{dataset.name} cannot be trained on\n" + "\n".join(found))
    if shared:
        print(
            f"note: {dataset.name} has recordings whose classes are in different folds: {'; '.join(shared)}"
        )


def class_counts(clips: Iterable[LabelledClip]) -> dict[str, int]:
    """Number of clips of each class that has one, in alphabetical order."""
    return dict(sorted(Counter(label for clip in clips for label in clip.labels).items()))


def print_class_counts(clips: Iterable[LabelledClip]) -> None:
    """Print one line: `50 classes, 24 clips each`, or the range and the rarest classes."""
    counts = class_counts(clips)
    least, most = min(counts.values()), max(counts.values())
    if least == most:
        print(f"{len(counts)} classes, {least} clips each")
        return
    rarest = sorted(counts, key=lambda label: (counts[label], label))[:_RAREST]
    named = ", ".join(f"{label} ({counts[label]})" for label in rarest if counts[label] < most)
    print(f"{len(counts)} classes, {least} to {most} clips each; rarest: {named}")


def _only_class(dataset: Dataset) -> list[str]:
    """The class of a dataset without another one; several labels a clip may be one class or none."""
    return [] if dataset.has_several_labels or len(dataset.class_names) > 1 else list(dataset.class_names)


def _missing(clips: Iterable[LabelledClip]) -> list[str]:
    return sorted({str(clip.path) for clip in clips if not clip.path.is_file()})


def _repeated(clips: Iterable[LabelledClip]) -> list[str]:
    # Resolved, because `a.wav`, `./a.wav` and `x/../a.wav` are one file.
    counts = Counter(clip.path.resolve() for clip in clips)
    return sorted(f"{path} ({count} times)" for path, count in counts.items() if count > 1)


def _in_several_folds(pairs: Iterable[tuple[str, int]]) -> list[str]:
    """Lines such as `100032 in folds 1, 2`, from pairs of recording and fold."""
    folds = defaultdict(set)
    for recording, fold in pairs:
        folds[recording].add(fold)
    return sorted(f"{name} in folds {_join(found)}" for name, found in folds.items() if len(found) > 1)


def _join(folds: Iterable[int]) -> str:
    return ", ".join(str(fold) for fold in sorted(set(folds)))


def _listing(what: str, found: Sequence[str]) -> str:
    """A problem with its first cases, one a line; empty if there are none."""
    if not found:
        return ""
    more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
    return "\n  ".join([f"{len(found)} {what}:", *found[:_LISTED], *more])
