"""Checkpoints: round trip, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.errors import ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def write(folder: Path, **options: bool) -> AudioCNN:
    torch.manual_seed(0)
    config = Config(class_names=("a", "b"), model=ModelConfig(width=8))
    log_mel = LogMel(FrontendConfig())
    log_mel.mean.fill_(-12.0)
    model = AudioCNN(config.model, num_classes=2).eval()
    checkpoint.save(folder, config, log_mel, model, **options)
    return model


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = write(tmp_path)
    config, log_mel, loaded = checkpoint.load(tmp_path)
    assert config.class_names == ("a", "b")
    assert float(log_mel.mean[0]) == -12.0
    x = torch.randn(1, 1, 128, 251)
    assert torch.equal(model(x), loaded(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_halves_the_file_and_keeps_the_front_end_exact(tmp_path: Path) -> None:
    model = write(tmp_path / "full")
    write(tmp_path / "half", half=True)
    frontend_bytes = sum(t.numel() * 4 for t in LogMel(FrontendConfig()).state_dict().values())
    full, half = (
        (tmp_path / n / "model.safetensors").stat().st_size - frontend_bytes for n in ("full", "half")
    )
    assert half < 0.6 * full
    config, log_mel, loaded = checkpoint.load(tmp_path / "half")
    assert log_mel.fingerprint() == config.fingerprint
    x = torch.randn(2, 1, 128, 251)
    assert torch.allclose(loaded(x), model(x), atol=0.01)


def test_a_swapped_front_end_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["frontend.bank"] *= 1.001
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match="do not belong together"):
        checkpoint.load(folder)


def test_another_width_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["model"]["width"] = 16
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelFileError, match=r"does not fit its config\.json"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("frontend.n_mels", 10**12),
        ("frontend.n_mels", 0),
        ("frontend.n_fft", 2**40),
        ("frontend.clip_seconds", 1e9),
        ("frontend.clip_seconds", float("nan")),
        ("frontend.sample_rate", True),
        ("frontend.sample_rate", "44100"),
        ("frontend.log_eps", 0.0),
        ("model.width", 10**9),
        ("model.width", 1.5),
        ("model.blocks", [3, 4, 6, 10**9]),
        ("model.blocks", 7),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("unknown_threshold", -1.0),
        ("class_names", []),
        ("class_names", ["dog", "dog"]),
        ("class_names", [1, 2]),
        ("class_names", "dog"),
        ("frontend", None),
        ("model", []),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_it_takes_memory(
    folder: Path, path: str, value: object
) -> None:
    raw = json.loads((folder / "config.json").read_text())
    inner = raw
    for name in path.split(".")[:-1]:
        inner = inner[name]
    inner[path.split(".")[-1]] = value
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelFileError, match=r"config\.json"):
        checkpoint.load(folder)


def test_nesting_without_end_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"format_version": 1, "provenance": ' + "[" * 100_000)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        checkpoint.load(folder)


def test_damage_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="not a complete checkpoint"):
        checkpoint.load(folder)
    with pytest.raises(ModelFileError, match="not a complete checkpoint"):
        checkpoint.load(folder / "nowhere")
