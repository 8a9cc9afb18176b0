"""The events of long files, also by all ways: `/predict`, `audiocnn detect`, the batch job and a stream."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.client.stream import stream
from audiocnn.datasets import Dataset
from audiocnn.options import Options
from tests.helpers.batch import score, table
from tests.helpers.gateways import RunningGateway
from tests.helpers.labelled_clips import siren_in_rain
from tests.helpers.paths import ROOT
from tests.helpers.sounds import SAMPLE_RATE, sound_file

KEYS = ("class", "start", "end", "peak_confidence", "mean_confidence")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three synthetic sounds, 4 s of each, with pauses."""
    (tmp_path / "in").mkdir()
    pause = np.zeros(3 * SAMPLE_RATE, np.float32)
    sounds = [synthetic.clock_alarm(), synthetic.clock_tick(), synthetic.rain()]
    parts = [part for sound in sounds for part in (pause, sound[: 4 * SAMPLE_RATE])]
    path = tmp_path / "in" / "recording.wav"
    path.write_bytes(sound_file(np.concatenate([*parts, pause])))
    return path


def by_detect(path: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "audiocnn", "detect", str(path), "--ndjson"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_batch(path: Path, out: Path) -> list[dict[str, Any]]:
    printed, _ = score(path.parent, "--out", out, "--workers", 1, "--detections", "--format", "parquet,csv")
    rows: list[dict[str, Any]] = table(out, "detections")
    assert f"events     {len(rows)}" in printed
    assert len((out / "detections.csv").read_text().splitlines()) == len(rows) + 1
    return rows


def by_stream(path: Path, address: str) -> list[dict[str, Any]]:
    replies: list[dict[str, Any]] = []
    pcm = path.read_bytes()[44:]
    samples = np.frombuffer(pcm, "<i2").astype("<f4") / 32_768
    sending = stream(
        samples.tobytes(),
        sample_rate=SAMPLE_RATE,
        hop_seconds=5.0,
        detections=True,
        url=address,
        on_reply=replies.append,
    )
    asyncio.run(sending)
    over = [row for row in replies if row["type"] == "detection" and row["end"] is not None]
    return sorted(over, key=lambda row: float(row["start"]))


def test_the_same_events_everywhere(recording: Path, gateway: RunningGateway, tmp_path: Path) -> None:
    """The stream sends 16-bit windows, resampled as they come: within a hop of 0.5 s."""
    content = recording.read_bytes()
    events = gateway.post("/predict?detections=true", content=content).json()["detections"]
    assert {"clock_alarm", "clock_tick"} <= {row["class"] for row in events}
    for found in (by_detect(recording), by_batch(recording, tmp_path / "out")):
        assert [[row[key] for key in KEYS[:3]] for row in found] == [
            [row[key] for key in KEYS[:3]] for row in events
        ]
        for row, event in zip(found, events, strict=True):
            assert [row[key] for key in KEYS[3:]] == pytest.approx([event[key] for key in KEYS[3:]], abs=0.01)
    streamed = by_stream(recording, gateway.stream)
    assert [row["class"] for row in streamed] == [row["class"] for row in events]
    for row, event in zip(streamed, events, strict=True):
        assert (row["start"], row["end"]) == pytest.approx((event["start"], event["end"]), abs=0.5)
        assert row["peak_confidence"] == pytest.approx(event["peak_confidence"], abs=0.05)


def test_two_seconds_of_siren_in_ten_minutes_of_rain_are_an_event(
    classifier: Classifier, esc50: Dataset
) -> None:
    data = sound_file(siren_in_rain(esc50, 600, 314.0))
    options = Options.parse({"detections": "true", "pool": "max"}, classifier.config)
    answer = json.loads(json.dumps(classifier.predict(data, options).to_dict()))
    surest = {row["class"]: row["confidence"] for row in answer["predictions"]}
    mean = classifier.predict(data, Options(top_k=50)).to_dict()["predictions"]
    assert surest["siren"] > 0.5
    assert {row["class"]: row["confidence"] for row in mean}["siren"] < 0.05  # 2 s in 10 minutes
    (siren,) = [row for row in answer["detections"] if row["class"] == "siren"]
    assert siren["start"] == pytest.approx(314.0, abs=0.75)
    assert siren["end"] == pytest.approx(316.0, abs=1.0)
    assert siren["mean_confidence"] <= siren["peak_confidence"]
    assert "rain" in [row["class"] for row in answer["detections"]]
