"""The files of the page: what they refer to, what they say, and that a wheel has them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from audiocnn.gateway.errors import known_codes
from audiocnn.gateway.page.static_files import examples_in
from tests.helpers.paths import ROOT

PAGE = ROOT / "audiocnn" / "gateway" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
INDEX = (PAGE / "index.html").read_text()


def test_every_error_code_has_words() -> None:
    words = re.findall(r"^  (\w+): \[", (PAGE / "words.js").read_text(), re.MULTILINE)
    assert known_codes() <= set(words)
    assert len(words) == len(set(words))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_modules_import_files_of_the_page_only(script: Path) -> None:
    imported = re.findall(r'(?:from|import|URL\() ?"([^"]+)"', script.read_text())
    files = [name.removeprefix("./") for name in imported if name.endswith(".js")]
    assert all((PAGE / name).is_file() for name in files)
    assert not re.search(r"https?://\w", script.read_text())
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text())


def test_the_document_has_no_inline_code_and_refers_to_files_that_exist() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", INDEX)
    assert re.findall(r"<script[^>]*>(.*?)</script>", INDEX, re.DOTALL) == [""]
    addresses = re.findall(r'(?:src|href)="([^"]+)"', INDEX)
    assert all((PAGE / address.removeprefix("page/")).is_file() for address in addresses if address != "docs")
    preloaded = {address.removeprefix("page/") for address in addresses if address.endswith(".js")}
    assert preloaded | {"tap.js"} == {
        script.name for script in SCRIPTS
    }  # tap.js: once a microphone is opened


def test_the_page_is_small() -> None:
    files = [path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".json", ".svg")]
    assert sum(path.stat().st_size for path in files) <= 120_000


def test_examples_are_offered_for_classes_of_the_model(tmp_path: Path) -> None:
    for name in ("rain.wav", "doorbell.wav", "dog.mp3"):
        (tmp_path / name).touch()
    assert examples_in(tmp_path, ["rain", "dog", "siren"]) == ["rain"]
    assert examples_in(tmp_path / "nothing", ["rain"]) == []


def test_a_wheel_has_the_files_of_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "audiocnn", source / "audiocnn", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "checkpoints" / "esc50").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "checkpoints/esc50/NOTICE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True, timeout=300
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/gateway/page/" in name}
    assert files == {path.name for path in PAGE.iterdir() if path.is_file()}
