"""The classification loss of a batch: against labels, and against the probabilities of a teacher."""

from __future__ import annotations

from torch import Tensor, nn

from training.recipe import Recipe


def classification_loss(logits: Tensor, probs: Tensor, recipe: Recipe, *, has_sigmoid: bool) -> Tensor:
    """The loss of logits `(b, k)` against target probabilities `(b, k)`, or `(b, 2 k)` where those of a
    teacher follow; `has_sigmoid`: a clip may have several labels, or none.

    The teacher's part is at its temperature T, times T^2 so that its gradients keep their size (Hinton
    et al., "Distilling the Knowledge in a Neural Network", 2015).
    """
    hard, soft = probs[:, : logits.shape[1]], probs[:, logits.shape[1] :]
    loss = _loss(logits, hard, recipe, recipe.label_smoothing, has_sigmoid=has_sigmoid)
    if not soft.shape[1]:
        return loss
    weight, temperature = recipe.teacher_weight, recipe.teacher_temperature
    distilled = temperature**2 * _loss(logits / temperature, soft, recipe, 0.0, has_sigmoid=has_sigmoid)
    return (1 - weight) * loss + weight * distilled


def _loss(logits: Tensor, probs: Tensor, recipe: Recipe, smoothing: float, *, has_sigmoid: bool) -> Tensor:
    if recipe.loss == "ce" and not has_sigmoid:
        return nn.functional.cross_entropy(logits, probs, label_smoothing=smoothing)
    level = 0.5 if has_sigmoid else 1 / probs.shape[1]  # what smoothing pulls a target towards
    smooth = probs * (1 - smoothing) + smoothing * level
    losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    return losses.sum(dim=1).mean()
