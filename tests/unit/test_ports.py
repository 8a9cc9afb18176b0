"""What `make serve PORT_BASE=...` and `audiocnn serve` say to a wrong port, address or checkpoint."""

from __future__ import annotations

import subprocess

import pytest

from audiocnn.torchserve import ports
from tests.helpers.command_line import run
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("base", ["abc", "0", "70000"])
def test_a_wrong_base_is_named(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ports.main([base]) == 2
    assert f"PORT_BASE={base} is no number from 1 to 65453" in capsys.readouterr().err
    assert run("serve", "--port-base", base).returncode == 2


@pytest.mark.parametrize("address", ["8000", "127.0.0.1:", "127.0.0.1:99999", "localhost"])
def test_a_wrong_address_of_the_gateway_is_named(address: str) -> None:
    done = run("serve", "--gateway", address)
    assert done.returncode == 2
    assert f"error: --gateway {address}: expected HOST:PORT" in done.stderr


@pytest.mark.parametrize("checkpoint", ["nowhere", "nowhere.onnx"])
def test_make_names_a_checkpoint_that_is_missing(checkpoint: str) -> None:
    command = ["make", "export", f"CHECKPOINT={checkpoint}", "STORE=build/missing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: there is no {checkpoint}" in done.stderr
