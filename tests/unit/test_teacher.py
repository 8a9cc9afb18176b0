"""The teacher: checksums of its weights, front end, heads and soft labels."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from audiocnn.backbone import weights
from audiocnn.backbone.network import (
    NUM_FEATURES,
    SAMPLE_RATE,
    BackboneFeatures,
    BackboneFrontend,
    BackboneNetwork,
    filter_bank,
)
from audiocnn.datasets import LabelledClip
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.teach.views import VIEWS
from tests.helpers.sounds import tone
from training.teacher import online
from training.teacher.head import fit_head
from training.teacher.soft_labels import (
    SoftLabels,
    check_names,
    cross_fitted,
    linear_teacher,
    recording_groups,
)


def clip(name: str, label: str = "a", source: str = "", fold: int = 1) -> LabelledClip:
    return LabelledClip(Path(name), label, fold, source or name)


# --- weights ---


def test_another_file_than_the_expected_one_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("aisfx/models/checkpoint.pth", pickle.dumps(Bomb()))
    with pytest.raises(ModelFileError, match="another file"):
        weights.read_wheel(file.getvalue())
    assert not (tmp_path / "boom").exists()


def test_the_real_weights_fit_our_network() -> None:
    """Where they have been downloaded; nothing is downloaded here."""
    kept = weights.cache_folder() / f"teacher-{weights.WHEEL_SHA256[:12]}.safetensors"
    if not kept.is_file():
        pytest.skip("the teacher's weights have not been downloaded: python -m training.teacher")
    state = weights.load_weights()
    BackboneNetwork().load_state_dict(state)
    assert sum(t.numel() for n, t in state.items() if not n.endswith("num_batches_tracked")) > 4.68e6


# --- front end and features ---


def test_the_filter_bank_is_that_of_the_teacher() -> None:
    bank = filter_bank()
    assert bank.shape == (96, 1025)
    torch.testing.assert_close(bank.sum(dim=1), torch.ones(96))
    hertz = torch.arange(1025) * SAMPLE_RATE / 2048
    # Corners are equally spaced in HTK mel: band 47 of 0..95 is centred on 48/97 of the way to 22,050 Hz.
    mel = 48 / 97 * 2595 * np.log10(1 + 22_050 / 700)
    assert float(hertz[bank[47].argmax()]) == pytest.approx(700 * (10 ** (mel / 2595) - 1), abs=22)


def test_a_tone_is_in_its_band_at_its_level() -> None:
    mel = BackboneFrontend()(torch.from_numpy(tone(1.0, hz=1000.0))[None])
    assert mel.shape == (1, 1, 44, 96)
    middle = mel[0, 0, 20]
    expected = 2595 * np.log10(1 + 1000 / 700) / (2595 * np.log10(1 + 22_050 / 700)) * 97 - 1
    assert int(middle.argmax()) == pytest.approx(expected, abs=1)
    # A sine of amplitude a gives a power of (2048 a / 4)^2 in its bin under a Hann window; here a is 1/2.
    power = (2048 / 8) ** 2 * float(filter_bank()[int(middle.argmax())].max())
    assert float(middle.max()) == pytest.approx(np.log10(1 + 1e4 * power) / 9.457799, abs=0.02)


def test_features_hardly_change_with_a_rotation(random_weights: dict[str, torch.Tensor]) -> None:
    network = BackboneFeatures(random_weights)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(1, SAMPLE_RATE, generator=generator)
    features = network(torch.cat([waveform, VIEWS["shift"](waveform), 0 * waveform]))
    assert features.shape == (3, NUM_FEATURES)
    assert features.dtype == torch.float32
    assert (features >= 0).all()
    assert (features[0] - features[1]).norm() < 0.2 * (features[0] - features[2]).norm()


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "clean"])
def test_a_view_is_a_change_that_leaves_the_original_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(2, SAMPLE_RATE, generator=generator)
    before = waveform.clone()
    seen = VIEWS[name](waveform)
    assert torch.equal(waveform, before)
    assert torch.equal(VIEWS[name](waveform), seen)
    assert seen.shape[1] != waveform.shape[1] or not torch.equal(seen, waveform)
    assert seen.abs().max() <= 1.0
    if name.endswith("kHz"):
        edge = int(name[0]) * 1000
        spectrum = torch.fft.rfft(seen).abs()
        assert spectrum[:, edge + 1 :].max() < 1e-3 * spectrum[:, :edge].max()


# --- head and labels ---


def test_the_head_separates_classes_and_its_penalty_makes_it_less_sure() -> None:
    rng = np.random.default_rng(0)
    target = np.arange(90) % 3
    features = (rng.standard_normal((90, 20)) + 3 * np.eye(20)[target]).astype(np.float32)
    features[:, 7] = 5.0  # never varies
    head = fit_head(features, target, 3, l2=1e-3)
    log_probs = head.log_probs(features)
    assert (log_probs.argmax(axis=1) == target).mean() > 0.95
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)
    shy = fit_head(features, target, 3, l2=10.0).log_probs(features)
    assert np.exp(shy).max() < 0.5 < np.exp(log_probs).mean(axis=0).max() + 0.3
    features[:, 7] = 100.0
    np.testing.assert_array_equal(head.log_probs(features), log_probs)


def test_no_clip_is_labelled_by_a_head_trained_on_its_recording() -> None:
    """Features that only name the recording: memorised they would be right, held out they are chance."""
    rng = np.random.default_rng(0)
    clips = [clip(str(n), label="ab"[n // 2 % 2], source=f"r{n // 2}") for n in range(40)]
    target = np.array([n // 2 % 2 for n in range(40)])
    identity = np.eye(20)[np.arange(40) // 2] + 0.01 * rng.standard_normal((40, 20))
    features = identity[None].astype(np.float32)
    groups = recording_groups(clips, 4)
    assert all(groups[n] == groups[n + 1] for n in range(0, 40, 2))
    assert {(g, label) for g, label in zip(groups, target, strict=True)} == {
        (g, t) for g in range(4) for t in (0, 1)
    }
    memorised = fit_head(features[0], target, 2).log_probs(features[0])
    held_out = cross_fitted(groups, linear_teacher(features, target, 2))
    assert (memorised.argmax(axis=1) == target).all()
    assert (held_out.argmax(axis=1) == target).mean() < 0.75


def test_soft_labels_are_found_by_file_name_and_refuse_other_clips(tmp_path: Path) -> None:
    log_probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    labels = SoftLabels(log_probs, ("x.wav", "y.wav"), ("a", "b"), {"train_folds": [1]})
    labels.save(tmp_path / "labels.safetensors")
    read = SoftLabels.load(tmp_path / "labels.safetensors")
    assert read.provenance == {"train_folds": [1]}
    assert torch.equal(read.of([clip("some/y.wav"), clip("x.wav")], ["a", "b"]), log_probs[[1, 0]])
    with pytest.raises(DatasetError, match=r"z\.wav"):
        read.of([clip("z.wav")], ["a", "b"])
    with pytest.raises(DatasetError, match="other classes"):
        read.of([clip("x.wav")], ["b", "a"])
    (tmp_path / "text").write_text("no labels")
    with pytest.raises(ModelFileError, match="no file of soft labels"):
        SoftLabels.load(tmp_path / "text")
    with pytest.raises(DatasetError, match="more than one"):
        check_names([clip("one/x.wav"), clip("two/x.wav")])


# --- a teacher that answers every mix ---


def test_a_mix_is_answered_by_the_heads_of_its_clips(random_weights: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = (2, 3, NUM_FEATURES)
    heads = online.Heads(
        torch.randn(shape, generator=generator),
        torch.zeros(2, 3),
        torch.zeros(NUM_FEATURES),
        torch.ones(NUM_FEATURES),
        torch.tensor([0, 1]),
    )
    answer = online.OnlineTeacher(heads, random_weights)
    waveform = torch.from_numpy(np.stack([tone(1.0, hz=440)]))
    first, features = answer(waveform, torch.tensor([[1.0, 0.0]]), 2.0)
    second, _ = answer(waveform, torch.tensor([[0.0, 1.0]]), 2.0)
    mixed, _ = answer(waveform, torch.tensor([[0.25, 0.75]]), 2.0)
    torch.testing.assert_close(mixed, 0.25 * first + 0.75 * second)
    expected = (features @ heads.weight[0].T / 2.0).softmax(dim=1)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
