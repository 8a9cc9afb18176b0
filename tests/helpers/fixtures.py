"""Fixtures of all tests: clips, engines, and a real TorchServe; tests/conftest.py loads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from audiocnn.classifier import Classifier
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from audiocnn.model.frontend import LogMel
from audiocnn.model.loading import load_engine, served_model_path
from audiocnn.model.network import AudioCNN
from tests.helpers.paths import ROOT, STORE
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.sounds import sound_file, tone

# Fixtures that several folders share stand beside what they start.
pytest_plugins = [
    f"tests.helpers.{name}"
    for name in ("gateways", "kserve", "kubernetes", "rollouts", "teacher", "traffic", "training_runs")
]


@pytest.fixture(scope="session")
def esc50() -> Dataset:
    """The real clips; CI has them, elsewhere a test that needs them is skipped."""
    folder = Path(os.environ.get("ESC50_DIR", ROOT / "data" / "ESC-50"))
    if not (folder / "meta" / "esc50.csv").is_file():
        message = f"no ESC-50 at {folder}: link it there or set ESC50_DIR"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return read_dataset(folder)


@pytest.fixture(scope="session")
def fold4(esc50: Dataset) -> list[LabelledClip]:
    """200 clips of the fold that the released model has not seen, spread over the classes."""
    clips = sorted(esc50.folds([4]), key=lambda clip: clip.path.name)
    return clips[::2]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that is served."""
    return load_engine(served_model_path(STORE))


@pytest.fixture(scope="session")
def classifier(engine: Engine) -> Classifier:
    return Classifier(engine)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it is configured, on free ports."""
    with running_server(tmp_path_factory.mktemp("logs"), server_settings()) as running:
        yield running


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained network of width 8."""
    folder = tmp_path_factory.mktemp("narrow")
    config = Config(class_names=("dog", "cat", "rain"), model=ModelConfig(width=8))
    checkpoint.save(folder, config, LogMel(FrontendConfig()), AudioCNN(config.model, num_classes=3))
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own dataset: three pitches, two folds."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    rows = ["filename,fold,label"]
    for number in range(24):
        label, hz = [("low", 200), ("middle", 1500), ("high", 6000)][number % 3]
        waveform = tone(1.0, hz=hz * rng.uniform(0.9, 1.1)) * rng.uniform(0.2, 1)
        (folder / f"{number}.wav").write_bytes(sound_file(waveform))
        rows.append(f"{number}.wav,{1 + number // 12},{label}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder
