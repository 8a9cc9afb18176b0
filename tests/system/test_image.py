"""The images, built and run as an orchestrator runs them (`make image-test`), and what they are made from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import image_test
from tests.helpers.paths import ROOT


@pytest.mark.timeout(3600)
def test_the_images_are_built_and_serve(tmp_path: Path) -> None:
    if missing := image_test.missing_tools():
        message = "needs " + ", ".join(missing)
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    command = [sys.executable, "-m", "deploy.image_test", "--folder", str(tmp_path / "image")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["prediction"]["class"] == "rain"
    assert seen["exit_codes"] == {"server": 0, "gateway": 0}
    assert max(seen["stop_seconds"].values()) < image_test.GRACE_SECONDS
    sizes = seen["megabytes"]
    assert sizes["gateway"]["all"] < sizes["server"]["all"] < 1700
    assert not (tmp_path / "image").exists()
