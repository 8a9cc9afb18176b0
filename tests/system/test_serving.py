"""A second signal during the stop of a real server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests

from tests.helpers.servers import running_server, server_settings
from tests.helpers.sounds import sound_file


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    silence = sound_file(np.zeros(590 * 8000, np.float32), sample_rate=8000)
    settings = server_settings(minWorkers=1, batchSize=1)
    with running_server(tmp_path, settings) as running, ThreadPoolExecutor(12) as pool:
        replies = [
            pool.submit(requests.post, running.predictions, data=silence, timeout=120) for _ in range(12)
        ]
        time.sleep(1.0)
        running.process.terminate()
        time.sleep(1.0)
        assert running.process.poll() is None  # it waits for them
        running.process.terminate()
        assert running.process.wait(timeout=120) == 0
        failed = [reply for reply in replies if isinstance(reply.exception(), requests.ConnectionError)]
        assert failed  # it did not wait for all of them
