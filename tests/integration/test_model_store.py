"""The model store: concurrent writers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from audiocnn.torchserve import integrity
from tests.helpers.paths import ROOT

_WRITER = """
import sys
from pathlib import Path
from audiocnn.torchserve import integrity
for number in range(100):
    integrity.record(Path(sys.argv[1]) / f"{sys.argv[2]}-{number}.mar", "0" * 64)
"""


def test_two_writers_lose_no_checksum(tmp_path: Path) -> None:
    store = tmp_path / "store"  # the record is in the store's parent folder
    store.mkdir()
    command = [sys.executable, "-c", _WRITER, str(store)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0, 0]
    assert len(integrity.file_for(store / "a-0.mar").read_text().splitlines()) == 300
