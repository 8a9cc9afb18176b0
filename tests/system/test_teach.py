"""Teaching on the downloaded backbone, here with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiocnn.backbone import aisfx
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioTooLongError
from audiocnn.options import Options
from audiocnn.teach.command import teach
from export import prebuilt
from tests.helpers.sounds import SAMPLE_RATE, beep, write_class


def test_a_backbone_of_waveforms_makes_int8_too(
    tmp_path: Path, random_weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is downloaded
    for name, hz in (("low", 200.0), ("middle", 1500.0), ("high", 6000.0)):
        write_class(tmp_path / "sounds", name, hz)
    aisfx.export(random_weights, aisfx.onnx_path())
    folder = tmp_path / "mine"
    result = teach(tmp_path / "sounds", folder, threads=1)
    assert result.summary["int8"]["agreement"] == 1.0
    assert result.summary["int8"]["largest_difference"] <= 0.05
    int8, float32 = (Classifier.load(path) for path in (folder, folder / "audiocnn.onnx"))
    assert int8.engine.path.name == "audiocnn-int8.onnx"
    assert int8.engine.path.stat().st_size < float32.engine.path.stat().st_size
    for hz in (200.0, 1500.0, 6000.0):
        sound = beep(hz, seed=100)
        np.testing.assert_allclose(int8.predict(sound).probs, float32.predict(sound).probs, atol=0.05)
    long = (np.zeros(400 * SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioTooLongError, match="2,356,992 numbers"):
        int8.predict(long, Options(embedding=True, windows=True, hop_seconds=1.0))
    assert prebuilt.main(["--checkpoint", str(folder), "--store", str(tmp_path / "store")]) == 0
    assert Classifier.load(tmp_path / "store").engine.path.name == "audiocnn-int8.onnx"
    assert (tmp_path / "store" / "audiocnn.onnx").is_file()
