"""The rate limit and the log of the gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiocnn.gateway.auth import TokenBucket
from audiocnn.gateway.errors import RateLimitedError
from tests.helpers.paths import ROOT


def test_the_rate_comes_back_with_time() -> None:
    now = 0.0
    rate = TokenBucket(60, clock=lambda: now)
    for _ in range(10):
        rate.charge("a")
    with pytest.raises(RateLimitedError):
        rate.charge("a")
    rate.charge("b")
    rate.owe("a", 3)
    now = 3.5
    with pytest.raises(RateLimitedError) as caught:
        rate.charge("a")
    assert caught.value.retry_after_seconds == pytest.approx(0.5)
    now = 4.1
    rate.charge("a")


def test_standard_error_stays_small_beside_a_log_file(tmp_path: Path) -> None:
    program = (
        "import logging; from audiocnn.gateway.server import Settings, start_logs; start_logs(Settings())\n"
        "for n in range(1000): logging.getLogger('gateway').error('failure %d', n)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"LOG_FILE": str(tmp_path / "log")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    printed, written = result.stderr.splitlines(), (tmp_path / "log").read_text().splitlines()
    assert (len(printed), len(written)) == (100, 1000)
    assert "failure 0" in printed[0]
