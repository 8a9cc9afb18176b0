"""One measurement of `audiocnn tune` on a real TorchServe."""

from __future__ import annotations

import pytest

from audiocnn.torchserve.tune import measure
from tests.helpers.paths import ROOT
from tests.helpers.servers import Server


def test_what_is_measured_adds_up(server: Server) -> None:
    measured = measure(server.inference, [(ROOT / "samples" / "rain.wav").read_bytes()], clients=2, seconds=2)
    assert 0 < measured.p50_ms <= measured.p99_ms
    # Two clients, each with one request under way at a time (Little's law; means and medians differ).
    assert measured.clips_per_second * measured.p50_ms / 1000 == pytest.approx(2, rel=0.5)
