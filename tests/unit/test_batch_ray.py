"""The CPUs that the batch job takes."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.batch import fill, score
from tests.helpers.ports import free_ports


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    (port,) = free_ports(1)
    _, err = score(tmp_path / "in", "--out", tmp_path / "out", "--address", f"127.0.0.1:{port}", code=1)
    assert f"Ray cannot be reached at 127.0.0.1:{port}" in err
