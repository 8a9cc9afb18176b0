"""`benchmarks.scale`: from what a clip costs to pods and money, and what docs/scale.md says of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from benchmarks.scale import Assumptions, plan, pod_price, pod_rate
from tests.helpers.paths import ROOT

MEASURED = {
    "cpu_ms": {"gateway": 2.0, "java": 1.0, "workers": 7.0, "client": 5.0},
    "request_bytes": 441_000,
    "reply_bytes": 500,
}


def test_a_pod_does_what_its_processors_do_without_the_client() -> None:
    given = Assumptions(pod_vcpus=2, utilisation=0.5)
    assert pod_rate(MEASURED, given) == pytest.approx(100)  # 10 ms a clip, 1 s of processor a second


def test_pods_and_prices() -> None:
    given = Assumptions(pod_vcpus=2, pod_gib=4, utilisation=0.5, vcpu_hour=0.05, gib_hour=0.01)
    assert pod_price(given) == pytest.approx(0.14)
    row = plan(MEASURED, given, 1001)
    assert row["pods"] == 11
    assert row["price_an_hour"] == pytest.approx(1.54)
    assert row["price_a_million_clips"] == pytest.approx(1.54 / 3600 / 1001 * 1e6)
    assert row["gbit_per_second"] == pytest.approx(3.536, abs=0.001)


def test_there_are_never_fewer_than_two_pods() -> None:
    assert plan(MEASURED, Assumptions(), 0.1)["pods"] == 2


def test_the_document_says_what_the_command_says() -> None:
    """docs/scale.md has the plan that follows from docs/scale.json, row by row."""
    command = [sys.executable, "-m", "benchmarks.scale", "--measured", "docs/scale.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    text = (ROOT / "docs" / "scale.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    for row in result["plan"]:
        expected = [f"{value:,.2f}" if value % 1 else f"{value:,.0f}" for value in row.values()]
        assert expected in cells
    for name, value in result["measured"]["cpu_ms"].items():
        assert re.search(rf"^\| {name} \| {value:.2f} \|", text, re.MULTILINE), name
