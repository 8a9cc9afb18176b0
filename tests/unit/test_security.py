"""The production configuration against the plain one."""

from __future__ import annotations

from pathlib import Path

from audiocnn import files
from audiocnn.torchserve import integrity
from audiocnn.torchserve.launch import example_request
from audiocnn.torchserve.properties import read_properties
from tests.helpers.paths import ROOT, STORE


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


def test_the_server_prints_a_request_that_its_configuration_allows() -> None:
    plain = read_properties(ROOT / "config.properties")
    assert example_request(plain, "http://h:1") == "curl -T CLIP http://h:1/predictions/audiocnn"
    production = read_properties(ROOT / "deploy" / "config.production.properties")
    line = example_request(production, "https://h:1")
    assert "--cacert deploy/tls/server.crt -H 'Authorization: Bearer TOKEN' https://h:1/predictions" in line
    assert "key_file.json" in line
