"""The model card, written from the numbers of a release so that it cannot say anything else."""

from __future__ import annotations

from typing import Any

from audiocnn.config import Config

_TEMPLATE = """# Model card: AudioCNN, {dataset}

Written by `python -m training.release`; the numbers are those of `metrics.json` beside it.

## What it is
A residual network ({blocks} basic blocks in four stages, width {width}) on the log-mel spectrogram of
{clip_seconds:g} s windows ({n_mels} bands from {f_min:g} to {f_max:g} Hz at {sample_rate:,} Hz). It names
one of {num_classes} sounds and how sure it is. Weights are stored in half precision and run in float32.

## Data and licence
{origin} {licence}

## How it was trained
{recipe}
Nothing was chosen on the measured folds; the weights are those of the last epoch. {minutes:g} minutes on
{hardware} ({precision}, torch {torch}).

## What it does, on folds {folds} that {who} never saw
| measure | value |
|---|---|
| accuracy | {accuracy:.2%} of {num_clips} clips, standard error {error:.1%} |
| top-3 accuracy | {top3_accuracy:.2%} |
| macro F1 | {macro_f1:.3f} |
| calibration error (ECE, 15 equal-mass bins) | {ece:.2%} |

No epoch was chosen by them; no test-time augmentation; every clip sent as a file through the code that
serves.
{spread}{from_scratch}

Most frequent mistakes: {mistakes}.

## Under conditions that a benchmark does not have
| condition | accuracy | difference |
|---|---|---|
{robustness}

The worst is **{worst}**.

## What it must not be used for
Anything where a missed or invented sound harms somebody: alarms, medicine, security, evidence. It has heard
a few dozen clips of each sound at most, and {else_heard} outside its {num_classes} names, {unknown}
"""

_LICENCES = {
    "ESC-50": """ESC-50 (K. J. Piczak, "ESC: Dataset
for Environmental Sound Classification", ACM Multimedia 2015) is CC BY-NC 3.0, so **these weights are for
non-commercial use only**. The code is MIT."""
}


def _stages(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that led to the weights, first one first: each but the first started from the one before."""
    earlier = _stages(provenance["init"]) if "init" in provenance else []
    return [*earlier, provenance]


def _recipe(provenance: dict[str, Any], max_gain_db: float) -> str:
    """What each run did; of a later one only what it did otherwise."""
    texts: list[str] = []
    before: dict[str, Any] = {}
    for stage in _stages(provenance):
        changes = {
            name: value
            for name, value in stage["recipe"].items()
            if value != before.get(name, 0) and ("teacher" in stage or not name.startswith("teacher_"))
        }
        settings = ", ".join(f"{name} {value}" for name, value in changes.items() if name != "seed")
        texts.append(f"{'then, from there' if before else 'AdamW and OneCycle'}: {settings}")
        before = stage["recipe"]
    level = f" Windows are levelled by {max_gain_db:g} dB at most." if max_gain_db else ""
    return "; ".join(texts) + "." + level


def render(report: dict[str, Any], config: Config) -> str:
    """Markdown from the report of `evaluate(robust=True)` and the configuration that is released."""
    provenance = config.provenance
    frontend = config.frontend
    accuracy, count = report["accuracy"], report["num_clips"]
    mistakes = "; ".join(
        f"{row['true']} heard as {row['predicted']} ({row['count']})"
        for row in report["worst_confusions"][:5]
    )
    conditions = report["robustness"]["conditions"]
    rows = [f"| clean | {accuracy:.2%} | |"]
    rows += [
        f"| {row['condition']} | {row['accuracy']:.2%} | {row['difference']:+.2%} |" for row in conditions
    ]
    values = {
        **report,
        "blocks": "-".join(map(str, config.model.blocks)),
        "width": config.model.width,
        **{
            name: getattr(frontend, name)
            for name in ("clip_seconds", "n_mels", "f_min", "f_max", "sample_rate")
        },
        "num_classes": len(config.class_names),
        "from_scratch": _from_scratch(report.get("from_scratch")),
        "origin": _origin(provenance),
        "else_heard": _else_heard(provenance),
        "recipe": _recipe(provenance, frontend.max_gain_db),
        "minutes": sum(stage["minutes"] for stage in _stages(provenance)),
        **{name: provenance[name] for name in ("hardware", "precision", "torch")},
        "folds": _listing(report["folds"]),
        "error": (accuracy * (1 - accuracy) / count) ** 0.5,
        "mistakes": mistakes,
        "robustness": "\n".join(rows),
        "worst": report["robustness"]["worst"],
        "who": "a twin of it, trained alike without them," if report["is_twin"] else "it",
        "spread": _spread(report["cross_validation"]),
        "licence": _LICENCES.get(
            provenance["dataset"], "The licence of the recordings holds for the weights too."
        ),
        "unknown": _unknown(config),
    }
    return _TEMPLATE.format(**values)


def notice(config: Config) -> str:
    """The attribution that a teacher's licence asks for, as a file; empty without a teacher."""
    taught = [stage["teacher"]["teacher"] for stage in _stages(config.provenance) if "teacher" in stage]
    if not taught:
        return ""
    return (
        f"{config.name} {config.version} was trained with soft labels, computed with the weights of\n"
        f"{taught[-1]}\n(https://creativecommons.org/licenses/by/4.0/). "
        "They were used unchanged, below a linear head of our own;\nnone of them are in this folder.\n"
    )


def _from_scratch(scratch: dict[str, Any] | None) -> str:
    if scratch is None:
        return ""
    return (
        f"\nThe same network from scratch, without a teacher, {scratch['epochs']} epochs, on folds "
        f"{_listing(scratch['folds'])}: accuracy {scratch['accuracy']:.2%}."
    )


def _origin(provenance: dict[str, Any]) -> str:
    """What the network was trained on, with the attribution that the teacher's licence asks for."""
    data = f"folds {_listing(provenance['train_folds'])} of {provenance['dataset']}"
    teachers = [stage["teacher"]["teacher"] for stage in _stages(provenance) if "teacher" in stage]
    if not teachers:
        return f"Trained from scratch on {data}; no other recording was used."
    return (
        f"Trained on {data}, by its labels and by the soft labels of a teacher: a linear head, fitted on\n"
        f"the same folds, on features of {teachers[-1]}.\n"
        "That network was trained on commercial libraries of sound effects. Overlap of these with\n"
        "Freesound, where the clips of ESC-50 come from, cannot be excluded."
    )


def _else_heard(provenance: dict[str, Any]) -> str:
    """Sounds without a class that it was trained to answer with none."""
    if not any(stage["recipe"].get("background") for stage in _stages(provenance)):
        return "nothing"
    rendered = {"espeak-ng": "speech", "fluidsynth": "music"}
    programs = [name for stage in _stages(provenance) for name in stage.get("background_programs", [])]
    names = ["noise", "tones", "clicks", "chirps", "shuffled pieces of clips"]
    return "only synthetic " + ", ".join(names + [rendered[name] for name in dict.fromkeys(programs)])


def _listing(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _spread(pooled: dict[str, Any] | None) -> str:
    if pooled is None:
        return "One run: the spread between folds and seeds is not in these numbers."
    return (
        f"Cross-validation, {len(pooled['folds'])} runs: accuracy {pooled['accuracy_mean']:.2%}, standard "
        f"deviation {pooled['accuracy_std']:.2%};\nECE over pooled out-of-fold predictions "
        f"{pooled['ece_scaled']:.2%} with temperatures fitted on the other folds."
    )


def _unknown(config: Config) -> str:
    if config.unknown_threshold is None:
        return "and it has no\nthreshold for saying so: it answers everything with one of them."
    return f"and it\nsays `is_unknown` below a confidence of {config.unknown_threshold:.3f}."
