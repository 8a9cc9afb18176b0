"""The time limit of a batch against the time limit of TorchServe."""

from __future__ import annotations

import json

import pytest
import yaml

from audiocnn.config import AudioLimits
from audiocnn.torchserve.properties import read_properties
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("config", ["config.properties", "deploy/config.production.properties"])
def test_a_batch_ends_well_before_torchserve_gives_its_worker_up(config: str) -> None:
    settings = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
    timeout = json.loads(read_properties(ROOT / config)["models"])["audiocnn"]["1.0"]["responseTimeout"]
    assert 3 * settings["batch_seconds"] <= timeout
    assert AudioLimits().decode_seconds < timeout
