"""A TorchServe with token authorization."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT
from tests.helpers.servers import server_settings


@contextmanager
def torchserve_with_tokens(folder: Path) -> Iterator[dict[str, str]]:
    """TorchServe as it comes, with tokens; its key file is in `folder`."""
    settings = server_settings(minWorkers=1, maxWorkers=1) | {"disable_token_authorization": "false"}
    settings["model_store"] = str(ROOT / settings["model_store"])
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "LOG_LOCATION"), str(folder))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["torchserve", "--start", "--foreground", "--ts-config", str(config), "--no-config-snapshots"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield settings
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "java":
                child.terminate()
        process.wait(timeout=120)
