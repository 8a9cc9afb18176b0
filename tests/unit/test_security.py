"""The production configuration against the plain one."""

from __future__ import annotations

from pathlib import Path

from audiocnn import files
from audiocnn.torchserve import integrity
from tests.helpers.paths import STORE


def test_make_archive_leaves_a_checksum_that_fits(tmp_path: Path) -> None:
    assert integrity.recorded(STORE / "audiocnn.mar") == files.sha256(STORE / "audiocnn.mar")
    other = tmp_path / "store" / "audiocnn.mar"
    other.parent.mkdir()
    other.write_bytes(b"x")
    assert integrity.recorded(other) is None
    integrity.record(other, "0" * 64)
    integrity.record(other, "1" * 64)
    assert integrity.recorded(other) == "1" * 64
    assert len(integrity.file_for(other).read_text().splitlines()) == 1
