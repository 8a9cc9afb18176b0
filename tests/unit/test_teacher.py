"""The teacher: its weights are checked, its labels are honest, and what is made of them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiocnn.backbone import weights
from audiocnn.backbone.network import (
    NUM_FEATURES,
    SAMPLE_RATE,
    BackboneFeatures,
    BackboneFrontend,
    BackboneNetwork,
    filter_bank,
)
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN
from audiocnn.teach.views import VIEWS
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone
from training import train
from training.data import load_waveforms
from training.teacher import __main__ as teacher
from training.teacher import fine_tuning, online
from training.teacher.features import FeatureStore
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


@pytest.fixture(scope="module")
def random_weights() -> dict[str, torch.Tensor]:
    """A teacher that was never trained: the shapes are right, and it needs no download."""
    torch.manual_seed(0)
    return BackboneNetwork().state_dict()


@pytest.fixture
def cache(tmp_path: Path, random_weights: dict[str, torch.Tensor]) -> Path:
    """A cache folder that looks as if the weights had been downloaded."""
    folder = tmp_path / "cache"
    folder.mkdir()
    save_file(random_weights, folder / f"teacher-{weights.WHEEL_SHA256[:12]}.safetensors")
    return folder


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Two pitches, two folds, four recordings each."""
    folder = tmp_path / "tones"
    folder.mkdir()
    rows = ["filename,fold,label,source"]
    for number in range(16):
        label, hz = [("low", 300), ("high", 5000)][number % 2]
        waveform = tone(5.0, hz=hz * (1 + number / 100)) * (0.3 + number / 32)
        (folder / f"{number}.wav").write_bytes(sound_file(waveform))
        rows.append(f"{number}.wav,{1 + number // 8},{label},{number // 2}{label}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder


# --- weights ---


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    """A real pip that finds no index."""
    environment = os.environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for name in [name for name in environment if name.startswith("PIP_") and "INDEX_URL" in name]:
        del environment[name]
    code = "import sys, pathlib, audiocnn.backbone.weights as w; w.load_weights(pathlib.Path(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModelFileError" in run.stderr
    assert "go online" in run.stderr
    assert not list(tmp_path.iterdir())


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


def test_features_are_kept_and_follow_the_content_of_a_file(cache: Path, tones: Path) -> None:
    clips = read_dataset(tones).folds([1])
    store = FeatureStore(cache, cache=cache)
    first = store.features(clips, ["clean", "shift"])
    assert first.shape == (2, 8, NUM_FEATURES)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert len(kept) == 16
    expected = BackboneFeatures(weights.load_weights(cache))(
        load_waveforms(clips, FrontendConfig(sample_rate=SAMPLE_RATE), quiet=True)
    )
    np.testing.assert_allclose(first[0], expected.numpy(), atol=2e-3, rtol=1e-3)

    clips[0].path.write_bytes(clips[1].path.read_bytes())
    again = FeatureStore(cache, cache=cache).features(clips, ["clean", "shift"])
    np.testing.assert_array_equal(again[:, 0], first[:, 1])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == kept


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


def test_no_clip_is_labelled_by_a_head_that_heard_its_recording() -> None:
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


def test_labels_come_back_by_file_name_and_refuse_strangers(tmp_path: Path) -> None:
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


def test_fine_tuning_starts_at_the_frozen_teacher_and_moves_its_last_blocks(
    random_weights: dict[str, torch.Tensor], tones: Path
) -> None:
    clips = read_dataset(tones).folds([1])
    waveforms = load_waveforms(clips, FrontendConfig(sample_rate=SAMPLE_RATE), quiet=True)
    target = np.arange(8) % 2
    features = BackboneFeatures(random_weights)(waveforms).numpy()
    head = fit_head(features, target, 2, l2=1.0)
    start = fine_tuning.TunedTeacher(random_weights, head)
    (answers,) = fine_tuning.log_probs(start, waveforms, ["clean"], "cpu")
    np.testing.assert_allclose(answers, head.log_probs(features), atol=1e-3)

    torch.manual_seed(0)
    tuning = fine_tuning.Tuning(random_weights, epochs=2, max_lr=1e-3, batch_size=4)
    tuned = fine_tuning.tune(tuning, head, waveforms, torch.from_numpy(target)).network.state_dict()
    moved = {name for name, tensor in random_weights.items() if not torch.equal(tensor, tuned[name])}
    assert {name.split(".")[1] for name in moved} == {"2", "3"}
    assert not [name for name in moved if "running" in name]


def test_the_command_measures_and_writes_labels(
    cache: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tones), "--cache", str(cache), "--views", "clean,gain-20dB", "--groups", "2"]
    out = tmp_path / "labels.safetensors"
    arguments += ["--train-folds", "1", "--device", "cpu", "--soft-labels", str(out)]
    assert teacher.main([*arguments, "--measure", "2"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(summary["heads"]) == {"frozen", "frozen, averaged", "views", "views, averaged"}
    assert summary["heads"]["frozen"]["accuracy"] >= 0.75  # two pitches: even random filters tell them apart
    labels = SoftLabels.load(out)
    assert labels.provenance["train_folds"] == [1]
    assert labels.provenance["teacher_sha256"] == weights.WHEEL_SHA256
    assert labels.of(read_dataset(tones).folds([1]), labels.class_names).shape == (8, 2)

    assert teacher.main([*arguments, "--measure", "1"]) == 2
    assert "fitted on" in capsys.readouterr().err

    assert teacher.main([*arguments, "--measure", "2", "--fine-tune", "1"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"frozen", "fine-tuned", "fine-tuned, averaged"} <= set(summary["heads"])
    tuned = SoftLabels.load(out)
    assert tuned.provenance["fine_tuned_epochs"] == 1
    assert not torch.equal(tuned.log_probs, labels.log_probs)


def test_a_teacher_is_averaged_with_a_network_that_never_saw_the_fold(
    cache: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = read_dataset(tones)

    def network(train_fold: int) -> str:
        config = Config(
            class_names=dataset.class_names,
            model=ModelConfig(width=8),
            provenance={"dataset": dataset.name, "train_folds": [train_fold]},
        )
        folder = tmp_path / f"network{train_fold}"
        checkpoint.save(folder, config, LogMel(config.frontend), AudioCNN(config.model, num_classes=2))
        return str(folder)

    arguments = ["--data", str(tones), "--cache", str(cache), "--views", "clean", "--device", "cpu"]
    arguments += ["--train-folds", "1", "--measure", "2", "--ensemble"]
    assert teacher.main([*arguments, network(1)]) == 0
    heads = json.loads(capsys.readouterr().out.splitlines()[-1])["heads"]
    frozen, own = heads["frozen, averaged"]["nll"], heads["network"]["nll"]
    assert min(frozen, own) < heads["frozen, averaged, and network"]["nll"] < max(frozen, own)

    assert teacher.main([*arguments, network(2)]) == 2
    assert "was trained on fold [2]" in capsys.readouterr().err


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


def test_a_network_learns_from_a_teacher_that_answers_every_mix(
    cache: Path, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without programs for speech and music; stopped after an epoch, it goes on with the same heads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "audiocnn").mkdir()
    cache.rename(tmp_path / "audiocnn" / "teacher")
    out = tmp_path / "run"
    arguments = ["--data", str(tones), "--train-folds", "1", "--recipe", "taught", "--online-teacher"]
    arguments += ["--width", "8", "--batch-size", "4", "--out", str(out), "--no-tensorboard"]
    assert train.main([*arguments, "--epochs", "2"]) == 0
    config, _, _ = checkpoint.load(out)
    assert config.provenance["teacher"]["teacher_sha256"] == weights.WHEEL_SHA256
    assert config.provenance["teacher"]["train_folds"] == [1]
    heads = online.Heads.load(out / "heads.safetensors")
    assert heads.weight.shape == (online.GROUPS, 2, NUM_FEATURES)
    assert len(json.loads((out / "history.json").read_text())) == 2
    (out / "config.json").unlink()
    assert train.main([*arguments, "--epochs", "2"]) == 0  # from its state
    assert (out / "config.json").is_file()
