"""The teacher without its weights: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch

from audiocnn.backbone.network import BackboneNetwork


@pytest.fixture(scope="session")
def random_weights() -> dict[str, torch.Tensor]:
    """An untrained teacher, which has the right shapes."""
    torch.manual_seed(0)
    return BackboneNetwork().state_dict()
