"""The teacher without its weights: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch

from training.teacher.network import TeacherNetwork


@pytest.fixture(scope="session")
def random_weights() -> dict[str, torch.Tensor]:
    """An untrained teacher, which has the right shapes."""
    torch.manual_seed(0)
    return TeacherNetwork().state_dict()
