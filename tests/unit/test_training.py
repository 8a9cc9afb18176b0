"""Training: data, metrics, schedules and losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audiocnn import audio
from audiocnn.audio import windows
from audiocnn.classifier import Classifier
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, ResidualBlock
from audiocnn.probabilities import softmax
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone
from training import evaluate, train
from training.augmenter import Augmenter
from training.data import fit_normalisation, load_waveforms, validation_split
from training.distributed import DistributedContext
from training.recipe import RECIPES, Recipe, current_fields, sized, width_for
from training.trainer import Trainer


def test_metrics_against_numbers_counted_by_hand() -> None:
    probs = np.array(
        [[0.6, 0.3, 0.1, 0], [0.5, 0.4, 0.1, 0], [0.1, 0.2, 0.3, 0.4], [0, 0.1, 0.2, 0.7]], np.float32
    )
    report = evaluate.metrics(probs, np.array([0, 1, 0, 3]))
    assert report["accuracy"] == 0.5
    assert report["top3_accuracy"] == 0.75
    assert report["confusion"][0] == [1, 0, 0, 1]
    assert report["macro_f1"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)


def test_an_evaluation_of_clips_the_model_cannot_name_is_refused(tones: Path) -> None:
    arguments = ["--checkpoint", str(ROOT / "checkpoints" / "esc50"), "--data", str(tones), "--folds", "2"]
    assert evaluate.main(arguments) == 2


def test_fewer_clips_than_a_batch_are_refused() -> None:
    config = Config(class_names=("a",), model=ModelConfig(width=8))
    data = (torch.zeros(3, 10), torch.zeros(3).long())
    with pytest.raises(DatasetError, match="fewer than one batch"):
        Trainer(Recipe(), config, LogMel(config.frontend), data, DistributedContext())


def test_a_validation_split_keeps_recordings_whole_and_every_class() -> None:
    clips = [
        LabelledClip(Path(f"{n}.wav"), label="ab"[n % 2], fold=1, source=f"{n // 4}{'ab'[n % 2]}")
        for n in range(160)
    ]
    kept, aside = validation_split(clips, seed=0)
    assert len(kept) + len(aside) == 160
    assert not {clip.source for clip in kept} & {clip.source for clip in aside}
    assert {clip.label for clip in aside} == {"a", "b"}
    assert 8 <= len(aside) <= 32
    assert validation_split(clips, seed=0) == (kept, aside)


def test_the_cache_gives_the_same_and_notices_a_changed_file(tones: Path, tmp_path: Path) -> None:
    clips = read_dataset(tones).folds([1])
    config = FrontendConfig()
    first = load_waveforms(clips, config, cache=tmp_path, quiet=True)
    (kept,) = tmp_path.glob("*.npy")
    assert torch.equal(load_waveforms(clips, config, cache=tmp_path, quiet=True), first)
    changed = clips[0].path.read_bytes()
    clips[0].path.write_bytes(sound_file(tone(0.5)))
    try:
        assert not torch.equal(load_waveforms(clips, config, cache=tmp_path, quiet=True), first)
    finally:
        clips[0].path.write_bytes(changed)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert kept.exists()


def test_drop_path_is_off_when_it_counts() -> None:
    torch.manual_seed(0)
    model = AudioCNN(ModelConfig(width=8, drop_path=0.9), num_classes=3)
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            torch.nn.init.ones_(block.bn2.weight)
    x = torch.randn(2, 1, 64, 64)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# --- a teacher's soft labels ---

SHORT = FrontendConfig(clip_seconds=0.5, max_gain_db=40.0)
EVERYTHING = replace(
    RECIPES["distilled"],
    epochs=3,
    batch_size=4,
    background=0.3,
    resize_2x2=0.33,
    resize_2x1=0.33,
    mix_off=0.3,
)


def distilled_run(recipe: Recipe = EVERYTHING, teacher: torch.Tensor | None = None) -> Trainer:
    """Eight clips of noise and four sounds of no class, three classes."""
    config = Config(class_names=("a", "b", "c"), frontend=SHORT, model=ModelConfig(width=8))
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(8, SHORT.window_samples, generator=generator) * 0.1
    rendered = torch.randint(-999, 999, (4, SHORT.window_samples), generator=generator, dtype=torch.int16)
    if teacher is None:
        teacher = torch.randn(8, 3, generator=generator).log_softmax(dim=1)
    log_mel = LogMel(SHORT)
    fit_normalisation(log_mel, waveforms)
    data = (waveforms, torch.arange(8) % 3)
    extras = {"soft_labels": teacher, "rendered_background": rendered}
    run = Trainer(recipe, config, log_mel, data, DistributedContext(), **extras)
    # bfloat16 convolutions over maps that are one cell wide read uninitialised memory (torch 2.13, oneDNN).
    run.use_bf16 = False
    return run


def test_a_distilled_run_resumes_bit_equal_and_refuses_other_labels(tmp_path: Path) -> None:
    straight, cut = distilled_run(), distilled_run()
    for _ in range(3):
        straight.train_epoch()
    cut.train_epoch()
    cut.save_state(tmp_path / "state.pt")
    resumed = distilled_run()
    resumed.load_state(tmp_path / "state.pt")
    resumed.train_epoch()
    resumed.train_epoch()
    for name, tensor in straight.result.state_dict().items():
        assert torch.equal(tensor, resumed.result.state_dict()[name]), name
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in straight.history]

    with pytest.raises(ModelFileError, match="other settings or data"):
        distilled_run(teacher=torch.zeros(8, 3)).load_state(tmp_path / "state.pt")


def test_a_growing_log_mel_is_trained_and_watched_at_its_size_of_now() -> None:
    run = distilled_run()
    seen: list[tuple[int, ...]] = []
    for model in (run.model, run.result):
        model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    for size in ((64, 13), (64, 26), (128, 26)):
        run.train_epoch()
        run.accuracy(run.waveforms, run.target)
        assert set(seen) == {size}
        seen.clear()


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_the_teachers_part_of_the_loss_is_least_at_its_own_answer(loss: str) -> None:
    """Of all logits, with the weight wholly on the teacher, the best are those of its probabilities."""
    recipe = replace(EVERYTHING, teacher_weight=1.0, teacher_temperature=2.0, loss=loss)
    run = distilled_run(recipe)
    answer = torch.tensor([[2.0, 0.0, -1.0]])
    soft = (answer / 2).softmax(dim=1) if loss == "ce" else (answer / 2).sigmoid()
    probs = torch.cat([torch.tensor([[0.0, 0.0, 1.0]]), soft], dim=1)  # the label says otherwise

    def value(logits: torch.Tensor) -> float:
        class Fixed(torch.nn.Module):
            def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, None]:
                return logits, None

        run.network = Fixed()
        return float(run.loss(torch.zeros(1, 1, 8, 8), probs))

    best = value(answer)
    for change in torch.eye(3) * 0.3:
        assert value(answer + change) > best
        assert value(answer - change) > best


def test_a_checkpoint_of_a_bce_run_is_served_as_softmax(tmp_path: Path) -> None:
    run = distilled_run(replace(EVERYTHING, loss="bce"))
    run.train_epoch()
    checkpoint.save(tmp_path, run.config, run.log_mel, run.result)
    classifier = Classifier.load(tmp_path)
    data = sound_file(tone(0.5))
    waveform = audio.decode(data, sample_rate=SHORT.sample_rate).waveform
    log_mel = run.log_mel(torch.from_numpy(windows.cut(waveform, SHORT))).numpy()
    logits = classifier.engine.run(log_mel)["logits"]
    probs = classifier.predict(data).probs
    np.testing.assert_allclose(probs, softmax(logits)[0], atol=1e-5)
    assert probs.sum() == pytest.approx(1)


def test_old_names_of_recipes_and_options_are_accepted() -> None:
    arguments = ["--data", "d", "--train-folds", "1", "--out", "o", "--recipe", "seeds", "--nothing", "0.5"]
    args = train.parse_arguments([*arguments, "--excerpt", "0.25"])
    recipe, frontend, _ = train.settings(args, num_clips=1000)
    assert recipe == replace(RECIPES["baseline"], background_noise=0.5, random_crop=0.25)
    assert frontend.sample_rate == 22_050
    assert current_fields({"epochs": 6, "nothing": 0.1}) == {"epochs": 6, "background_noise": 0.1}


def test_the_help_has_the_values_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for name in RECIPES:
        with pytest.raises(SystemExit):
            train.parse_arguments(["--recipe", name, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"passes over the training clips ({RECIPES[name].epochs}; less for few clips)" in text
        assert "both are served as softmax (ce)" in text


def test_labels_of_mixes_are_mixed_like_targets() -> None:
    """What the network is trained on: the teacher's half has the shares of the labels' half."""
    recipe = Recipe(between_class=1.0, shift=0.0, freq_mask=0, time_mask=0)
    augmenter = Augmenter(recipe, LogMel(SHORT))
    hard = torch.eye(6)
    soft = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    waveform = 0.1 * torch.randn(6, SHORT.window_samples)
    _, mixed = augmenter(waveform, torch.cat([hard, soft], dim=1), may_mix=True)
    torch.testing.assert_close(mixed[:, 6:], mixed[:, :6] @ soft)


@pytest.mark.parametrize("num_clips", [15, 180, 500])
def test_few_clips_have_a_smaller_run(num_clips: int) -> None:
    recipe = sized(RECIPES["strong"], num_clips)
    steps = num_clips // recipe.batch_size * recipe.epochs
    assert recipe.batch_size <= num_clips
    assert 390 <= steps < RECIPES["strong"].epochs * num_clips // 4
    assert 1 / (1 - recipe.ema_decay) <= 0.051 * steps  # early weights are forgotten
    assert width_for(num_clips) < ModelConfig().width
    assert sized(RECIPES["strong"], 1200) == RECIPES["strong"]


def test_what_the_command_line_says_is_not_changed_for_few_clips() -> None:
    arguments = ["--data", "d", "--out", "o", "--epochs", "7", "--batch-size", "5", "--width", "48"]
    recipe, _, model = train.settings(train.parse_arguments(arguments), num_clips=15)
    assert (recipe.epochs, recipe.batch_size, model.width) == (7, 5, 48)
    assert recipe.ema_decay < 0.9
