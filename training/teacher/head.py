"""A linear head on the teacher's features: multinomial logistic regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audiocnn.arrays import FloatArray, IntArray

L2 = 2e-3  # penalty of the weights
_MAX_ITERATIONS = 150


@dataclass(frozen=True)
class Head:
    """Standardisation and one linear layer."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    weight: Tensor  # (num_classes, d)
    bias: Tensor  # (num_classes,)

    def log_probs(self, features: FloatArray) -> FloatArray:
        """Features `(..., d)` -> log-probabilities float32 `(..., num_classes)`."""
        x = (torch.from_numpy(features).to(self.mean) - self.mean) / self.std
        logits = x @ self.weight.T + self.bias
        return np.asarray(logits.log_softmax(dim=-1).cpu().numpy(), dtype=np.float32)


def fit_head(
    features: FloatArray, target: IntArray, num_classes: int, *, l2: float = L2, device: str = "cpu"
) -> Head:
    """Minimise the mean cross-entropy plus `l2 / 2` times the squared weights, with L-BFGS.

    `features` is `(num_examples, d)`, `target` class indices `(num_examples,)`. Constant features are
    ignored.
    """
    assert len(features) == len(target) > 1, "a target for every example"
    x = torch.from_numpy(features).to(device)
    y = torch.from_numpy(target).to(device)
    std, mean = torch.std_mean(x, dim=0)
    std = torch.where(std > 1e-6, std, torch.inf)
    x = (x - mean) / std
    weight = torch.zeros(num_classes, x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Head(mean, std, weight.detach(), bias.detach())
