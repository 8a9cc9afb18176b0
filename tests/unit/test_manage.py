"""`audiocnn manage`: what it imports, and the checksum of an archive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from audiocnn.errors import ModelFileError
from audiocnn.torchserve.archives import ArchiveError, known_sha256
from tests.helpers.paths import ROOT


def test_ready_is_quick_to_start() -> None:
    heavy = "{'torch', 'numpy', 'soundfile'}"
    code = f"import sys, audiocnn.torchserve.manage\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_checksum_is_found_beside_the_archive_but_not_in_the_store(tmp_path: Path) -> None:
    archive, digest = tmp_path / "new.mar", "ab" * 32
    assert known_sha256(archive, tmp_path / "store", None) is None
    (tmp_path / "new.mar.sha256").write_text(f"{digest.upper()}  new.mar\n")
    assert known_sha256(archive, tmp_path / "store", None) == digest
    assert known_sha256(archive, tmp_path, None) is None  # a user who changes the archive can change it too
    assert known_sha256(archive, tmp_path, str(tmp_path / "new.mar.sha256")) == digest
    assert known_sha256(archive, tmp_path, "CD" * 32) == "cd" * 32
    (tmp_path / "new.mar.sha256").write_text(f"{'cd' * 32}  other.mar\n")
    with pytest.raises(ModelFileError, match=r"of new\.mar"):
        known_sha256(archive, tmp_path / "store", None)
    (tmp_path / "audiocnn.mar.sha256").write_text(f"{'cd' * 32}  store/new.mar\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "new.mar").touch()
    assert known_sha256(tmp_path / "store" / "new.mar", tmp_path / "store", None) == "cd" * 32
    with pytest.raises(ArchiveError, match="neither 64 hex digits nor a file"):
        known_sha256(archive, tmp_path, "abc")
