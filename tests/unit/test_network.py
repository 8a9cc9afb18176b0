"""The network: size, outputs, and evidence that sums to the logit."""

from __future__ import annotations

import pytest
import torch

from audiocnn.config import ModelConfig, feature_map_names
from audiocnn.model.network import AudioCNN, FeatureMapModel, WithEmbedding


@pytest.fixture
def model() -> AudioCNN:
    torch.manual_seed(0)
    model = AudioCNN(ModelConfig(width=8), num_classes=7).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):  # blocks start as their shortcut; here they shall do something
            torch.nn.init.uniform_(parameter, 0.2, 0.5)
    return model


def test_the_classic_network_has_21_million_parameters() -> None:
    count = sum(p.numel() for p in AudioCNN(ModelConfig(), num_classes=50).parameters())
    assert count == pytest.approx(21.3e6, rel=0.01)


def test_every_stage_halves_the_picture_and_doubles_the_channels(model: AudioCNN) -> None:
    shapes = {name: tuple(x.shape[1:]) for name, x in model.feature_maps(torch.randn(1, 1, 128, 251))}
    assert list(shapes) == feature_map_names(model.config)
    assert shapes["conv1"] == (8, 64, 126)
    assert shapes["layer1"] == (8, 32, 63)
    assert shapes["layer2"] == (16, 16, 32)
    assert shapes["layer3"] == (32, 8, 16)
    assert shapes["layer4"] == (64, 4, 8)


def test_evidence_adds_up_to_the_logits(model: AudioCNN) -> None:
    outputs = FeatureMapModel(model)(torch.randn(3, 1, 128, 251))
    named = dict(zip(FeatureMapModel(model).output_names, outputs, strict=True))
    summed = named["evidence"].mean(dim=(2, 3)) + model.fc.bias
    torch.testing.assert_close(summed, named["logits"], atol=1e-5, rtol=1e-5)


def test_maps_do_not_change_the_answer(model: AudioCNN) -> None:
    x = torch.randn(2, 1, 128, 251)
    torch.testing.assert_close(FeatureMapModel(model)(x)[0], model(x), atol=1e-6, rtol=0)


def test_logits_are_a_linear_function_of_the_embedding(model: AudioCNN) -> None:
    x = torch.randn(2, 1, 128, 251)
    logits, embedding = WithEmbedding(model)(x)
    assert torch.equal(logits, model(x))
    assert embedding.shape == (2, 64)
    assert (embedding >= 0).all()
    torch.testing.assert_close(model.fc(embedding), logits)
    maps = dict(zip(FeatureMapModel(model).output_names, FeatureMapModel(model)(x), strict=True))
    torch.testing.assert_close(maps["embedding"], embedding)
    torch.testing.assert_close(maps["layer4"].mean(dim=(1, 2)), embedding.mean(dim=1))


def test_a_block_starts_as_its_shortcut() -> None:
    fresh = AudioCNN(ModelConfig(width=8), num_classes=7).eval()
    maps = dict(fresh.feature_maps(torch.randn(1, 1, 128, 64)))
    torch.testing.assert_close(maps["layer1.block0.relu"], maps["layer1.block2.relu"])
