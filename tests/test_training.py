"""Training on small synthetic sounds: it learns, resumes bit-equal, and its augmentations keep their word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file

from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, ResidualBlock
from tests.conftest import ROOT, running_server, server_settings, sound_file, tone
from training import evaluate, release
from training.data import fit_normalisation, inner_split, load_waveforms
from training.recipe import RECIPES, Augmenter, Recipe
from training.teacher.soft_labels import SoftLabels
from training.trainer import Place, Run

RECIPE = (
    "--recipe",
    "plain",
    "--epochs",
    "40",
    "--ema-decay",
    "0.8",
    "--max-lr",
    "0.01",
    "--weight-decay",
    "0",
)


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


def train(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.train", "--data", str(data), "--train-folds", "1"]
    command += ["--out", str(out), "--width", "8", "--batch-size", "6", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_learns_resumes_after_a_kill_and_is_measured(tones: Path, tmp_path: Path) -> None:
    straight = train(tones, tmp_path / "straight", *RECIPE)
    assert straight.returncode == 0, straight.stderr

    command = [sys.executable, "-m", "training.train", "--data", str(tones), "--train-folds", "1"]
    command += [
        "--out",
        str(tmp_path / "killed"),
        "--width",
        "8",
        "--batch-size",
        "6",
        "--threads",
        "1",
        *RECIPE,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        part = tmp_path / "killed" / "state.part"
        while process.poll() is None and not (part.exists() and part.with_suffix(".pt").exists()):
            pass  # until it is writing its second checkpoint, or a later one
        process.kill()
    assert (tmp_path / "killed" / "state.pt").exists()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert list((tmp_path / "straight" / "tensorboard").glob("events.out.*"))
    resumed = train(tones, tmp_path / "killed", *RECIPE)
    assert "resumed after epoch" in resumed.stdout

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    arguments = ["--checkpoint", str(tmp_path / "killed"), "--data", str(tones), "--folds", "2"]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "metrics.json")]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["accuracy"] >= 0.9
    assert np.array(report["confusion"]).sum() == report["num_clips"] == 12

    other = train(tones, tmp_path / "killed", *RECIPE, "--seed", "7")
    assert other.returncode == 2
    assert "choose another --out" in other.stderr


def test_a_run_starts_from_the_weights_of_another(tones: Path, tmp_path: Path) -> None:
    still = ("--max-lr", "0", "--epochs", "1", "--recipe", "plain")  # what is taken over stays as it is
    assert train(tones, tmp_path / "first", "--epochs", "1").returncode == 0
    second = train(
        tones, tmp_path / "second", *still, "--init", str(tmp_path / "first"), "--train-folds", "2"
    )
    assert second.returncode == 0, second.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {"model.fc.weight", "model.conv1.weight", "frontend.mean", "frontend.std"} <= same
    config = Config.from_json((tmp_path / "second" / "config.json").read_text())
    assert config.provenance["train_folds"] == [1, 2]  # what the first run heard counts
    assert config.frontend.max_gain_db == 20  # the first run's front end, not the plain recipe's

    third = train(tones, tmp_path / "third", *still, "--init", str(tmp_path / "first"), "--exclude", "low")
    assert third.returncode == 0, third.stderr
    other = load_file(tmp_path / "third" / "model.safetensors")
    assert torch.equal(one["model.conv1.weight"], other["model.conv1.weight"])
    assert other["model.fc.weight"].shape[0] == 2


def test_bad_data_is_named_before_training(tones: Path, tmp_path: Path) -> None:
    table = tmp_path / "tones.csv"
    table.write_text("filename,fold,label\ngone.wav,1,a\nbroken.wav,1,b\n")
    (tmp_path / "broken.wav").write_text("no sound")
    for name in ("gone.wav", "broken.wav"):  # what is missing is seen before anything is decoded
        run = train(tmp_path, tmp_path / "out")
        assert run.returncode == 2
        assert name in run.stderr
        assert "Traceback" not in run.stderr
        table.write_text("filename,fold,label\nbroken.wav,1,b\n")
    missing = train(tones, tmp_path / "out", "--train-folds", "9")
    assert "no fold [9]" in missing.stderr


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
        Run(Recipe(), config, LogMel(config.frontend), data, Place())


def test_early_stopping_looks_at_an_inner_split_of_recordings(tones: Path, tmp_path: Path) -> None:
    run = train(tones, tmp_path / "out", "--epochs", "60", "--max-lr", "1e-9", "--early-stopping", "2")
    assert run.returncode == 0, run.stderr
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert 3 <= len(history) < 60  # nothing is learnt, so nothing improves
    assert all("inner_accuracy" in row for row in history)


def test_an_inner_split_keeps_recordings_whole_and_every_class() -> None:
    clips = [
        LabelledClip(Path(f"{n}.wav"), label="ab"[n % 2], fold=1, source=f"{n // 4}{'ab'[n % 2]}")
        for n in range(160)
    ]
    kept, aside = inner_split(clips, seed=0)
    assert len(kept) + len(aside) == 160
    assert not {clip.source for clip in kept} & {clip.source for clip in aside}
    assert {clip.label for clip in aside} == {"a", "b"}
    assert 8 <= len(aside) <= 32
    assert inner_split(clips, seed=0) == (kept, aside)


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


@pytest.mark.slow
def test_a_tree_in_the_layout_of_urbansound8k_trains(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        (tmp_path / "audio" / f"fold{fold}").mkdir(parents=True)
        for target, name in enumerate(("air_conditioner", "car_horn")):
            file = f"{fold}{target}-{target}-0-0.wav"
            (tmp_path / "audio" / f"fold{fold}" / file).write_bytes(
                sound_file(tone(0.4, hz=300 + 2000 * target))
            )
            rows.append(f"{file},{fold}{target},0,0.4,1,{fold},{target},{name}")
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    run = train(tmp_path, tmp_path / "out", "--train-folds", "1,2,3,4,5,6,7,8,9", "--epochs", "2")
    assert run.returncode == 0, run.stderr
    assert "2 classes, 9 clips each" in run.stdout
    arguments = ["--checkpoint", str(tmp_path / "out"), "--data", str(tmp_path), "--folds", "10"]
    assert evaluate.main(arguments) == 0


@pytest.mark.slow
def test_a_release_is_measured_on_folds_that_it_or_its_twin_has_not_seen(tones: Path, tmp_path: Path) -> None:
    assert train(tones, tmp_path / "twin", *RECIPE).returncode == 0
    everything = train(tones, tmp_path / "all", *RECIPE, "--train-folds", "1,2", "--epochs", "2")
    assert everything.returncode == 0, everything.stderr
    fitted = {"temperature": 0.8, "unknown_threshold": 0.1, "folds": [1, 2], "accuracy_mean": 0.9}
    (tmp_path / "pool.json").write_text(json.dumps(fitted | {"accuracy_std": 0.01, "ece_scaled": 0.02}))
    arguments = ["--run", str(tmp_path / "all"), "--data", str(tones), "--pool", str(tmp_path / "pool.json")]
    out = tmp_path / "out"

    assert release.main([*arguments, "--folds", "2", "--out", str(out)]) == 2  # it has seen them
    assert not out.exists()

    arguments += ["--twin", f"{tmp_path / 'twin'}=2", "--out", str(out)]
    assert release.main([*arguments, "--scratch", f"{tmp_path / 'all'}=2"]) == 2
    assert release.main([*arguments, "--scratch", f"{tmp_path / 'twin'}=2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["temperature"], config["unknown_threshold"]) == (0.8, 0.1)
    assert config["provenance"]["train_folds"] == [1, 2]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] >= 0.9
    assert (metrics["folds"], metrics["is_twin"]) == ([2], True)
    assert metrics["from_scratch"] == {"accuracy": metrics["accuracy"], "folds": [2], "epochs": 40}
    assert not (out / "NOTICE").exists()  # no teacher asks for it
    card = (out / "MODEL_CARD.md").read_text()
    assert "accuracy 90.00%, standard deviation 1.00%" in card
    assert "a twin of it" in card


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


def distilled_run(recipe: Recipe = EVERYTHING, teacher: torch.Tensor | None = None) -> Run:
    """Eight clips of noise and four sounds of no class, three classes."""
    config = Config(class_names=("a", "b", "c"), frontend=SHORT, model=ModelConfig(width=8))
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(8, SHORT.window_samples, generator=generator) * 0.1
    recorded = torch.randint(-999, 999, (4, SHORT.window_samples), generator=generator, dtype=torch.int16)
    if teacher is None:
        teacher = torch.randn(8, 3, generator=generator).log_softmax(dim=1)
    log_mel = LogMel(SHORT)
    fit_normalisation(log_mel, waveforms)
    data = (waveforms, torch.arange(8) % 3)
    return Run(recipe, config, log_mel, data, Place(), teacher=teacher, recorded=recorded)


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
            def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
                return logits

        run.network = Fixed()
        return float(run.loss(torch.zeros(1, 1, 8, 8), probs))

    best = value(answer)
    for change in torch.eye(3) * 0.3:
        assert value(answer + change) > best
        assert value(answer - change) > best


def test_labels_of_mixes_are_mixed_like_targets() -> None:
    """What the network is trained on: the teacher's half has the shares of the labels' half."""
    recipe = Recipe(between_class=1.0, shift=0.0, freq_mask=0, time_mask=0)
    augmenter = Augmenter(recipe, LogMel(SHORT))
    hard = torch.eye(6)
    soft = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    waveform = 0.1 * torch.randn(6, SHORT.window_samples)
    _, mixed = augmenter(waveform, torch.cat([hard, soft], dim=1), may_mix=True)
    torch.testing.assert_close(mixed[:, 6:], mixed[:, :6] @ soft)


@pytest.mark.timeout(200)
def test_soft_labels_reach_a_run_and_are_remembered(tones: Path, tmp_path: Path) -> None:
    dataset = read_dataset(tones)
    clips = dataset.folds([1, 2])
    log_probs = torch.full((len(clips), 3), 1 / 3).log()
    names = tuple(clip.path.name for clip in clips)
    provenance = {"train_folds": [1, 2], "teacher": "somebody"}
    SoftLabels(log_probs, names, dataset.class_names, provenance).save(tmp_path / "labels")

    options = ("--recipe", "plain", "--epochs", "2", "--teacher", str(tmp_path / "labels"))
    run = train(tones, tmp_path / "out", *options)
    assert run.returncode == 0, run.stderr
    config = Config.from_json((tmp_path / "out" / "config.json").read_text())
    assert config.provenance["teacher"] == provenance
    assert config.provenance["train_folds"] == [1, 2]  # trained on fold 1 by a teacher that heard fold 2

    wrong = train(tones, tmp_path / "wrong", *options, "--exclude", "low")
    assert wrong.returncode == 2
    assert "other classes" in wrong.stderr


# --- several processes ---

STEP = """
import sys, torch
from audiocnn.config import Config, ModelConfig
from audiocnn.frontend import LogMel
from training.data import fit_normalisation
from training.loop import Run
from training.recipe import Recipe
from training.train import join

torch.set_num_threads(1)
place = join()
config = Config(class_names=("a", "b", "c"), model=ModelConfig(width=8))
generator = torch.Generator().manual_seed(1)
data = (torch.randn(8, config.frontend.window_samples, generator=generator) * 0.1, torch.arange(8) % 3)
recipe = Recipe(batch_size=8, shift=0, freq_mask=0, time_mask=0)
log_mel = LogMel(config.frontend)
fit_normalisation(log_mel, data[0])
run = Run(recipe, config, log_mel, data, place)
run.use_bf16 = False
run.network.eval()
for name, parameter in run.model.named_parameters():
    if name.endswith("bn2.weight"):  # blocks start as their shortcut: no gradient would pass them
        torch.nn.init.constant_(parameter, 0.1)
own = slice(place.rank, None, place.world)
probs = torch.nn.functional.one_hot(run.target[own], 3).float()
run.loss(*run.augmenter(run.waveforms[own], probs, may_mix=False)).backward()
if place.rank == 0:
    torch.save({name: p.grad for name, p in run.model.named_parameters()}, sys.argv[1])
"""


def torchrun(*arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_two_processes_compute_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(STEP)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, tmp_path / "one.pt"], env=environment, check=True)
    torchrun(str(script), str(tmp_path / "two.pt"))
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=0)
        assert gradient.abs().max() > 0


@pytest.mark.slow
def test_a_run_of_two_processes_converges(tones: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(tones), "--train-folds", "1", "--out", str(tmp_path), "--width", "8"]
    torchrun("-m", "training.train", *arguments, "--batch-size", "6", *RECIPE)
    assert (
        evaluate.main(
            [
                "--checkpoint",
                str(tmp_path),
                "--data",
                str(tones),
                "--folds",
                "2",
                "--json",
                str(tmp_path / "m"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "m").read_text())["accuracy"] >= 0.9


# --- a user's own sounds, from the CSV to HTTP ---


@pytest.mark.slow
def test_a_users_own_csv_trains_exports_and_serves(tones: Path, tmp_path: Path) -> None:
    """The commands of the README, one after another."""
    assert train(tones, tmp_path / "run", *RECIPE).returncode == 0
    store = tmp_path / "store"
    source = ["--checkpoint", str(tmp_path / "run")]
    for command in (
        ["export.onnx", *source, "--out", str(store)],
        ["export.torchscript", *source, "--out", str(store)],
        ["export.waveform", *source, "--out", str(store)],
        ["export.parity", *source, "--store", str(store)],
        ["export.archive", "--store", str(store)],
    ):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    settings = server_settings(minWorkers=1) | {"model_store": str(store)}
    with running_server(tmp_path / "logs", settings) as server:
        for name, hz in (("low", 200.0), ("middle", 1500.0), ("high", 6000.0)):
            reply = requests.post(server.predictions, data=sound_file(tone(1.0, hz=hz)), timeout=120)
            assert reply.json()["predictions"][0]["class"] == name
