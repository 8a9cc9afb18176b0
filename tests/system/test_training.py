"""Training in several processes, releases and datasets of users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch

from audiocnn.datasets import Dataset
from export import archive, onnx, parity, program, torchscript, waveform
from tests.helpers.paths import CHECKPOINT, ROOT
from tests.helpers.servers import running_server, server_settings
from tests.helpers.sounds import sound_file, tone
from tests.helpers.training_runs import RECIPE, train
from training import evaluate, release, robustness


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


def test_a_release_is_measured_on_folds_that_it_or_a_fold_model_has_not_seen(
    tones: Path, tmp_path: Path
) -> None:
    assert train(tones, tmp_path / "fold-model", *RECIPE).returncode == 0
    everything = train(tones, tmp_path / "all", *RECIPE, "--train-folds", "1,2", "--epochs", "2")
    assert everything.returncode == 0, everything.stderr
    fitted = {"temperature": 0.8, "unknown_threshold": 0.1, "folds": [1, 2], "accuracy_mean": 0.9}
    (tmp_path / "pool.json").write_text(json.dumps(fitted | {"accuracy_std": 0.01, "ece_scaled": 0.02}))
    arguments = [
        "--run",
        str(tmp_path / "all"),
        "--data",
        str(tones),
        "--calibration",
        str(tmp_path / "pool.json"),
    ]
    out = tmp_path / "out"

    assert release.main([*arguments, "--folds", "2", "--out", str(out)]) == 2  # it has seen them
    assert not out.exists()

    arguments += ["--fold-model", f"{tmp_path / 'fold-model'}=2", "--out", str(out)]
    assert release.main([*arguments, "--scratch", f"{tmp_path / 'all'}=2"]) == 2
    assert release.main([*arguments, "--scratch", f"{tmp_path / 'fold-model'}=2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["temperature"], config["unknown_threshold"]) == (0.8, 0.1)
    assert config["provenance"]["train_folds"] == [1, 2]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] >= 0.9
    assert (metrics["folds"], metrics["is_fold_model"]) == ([2], True)
    assert metrics["from_scratch"] == {"accuracy": metrics["accuracy"], "folds": [2], "epochs": 40}
    assert not (out / "NOTICE").exists()  # no teacher asks for it
    card = (out / "README.md").read_text()
    assert "accuracy 90.00%, standard deviation 1.00%" in card
    assert "measured on a cross-validation run" in card


# --- several processes ---

STEP = """
import sys, torch
from audiocnn.config import Config, ModelConfig
from audiocnn.model.frontend import LogMel
from training.data import fit_normalisation
from training.recipe import Recipe
from training.distributed import init_distributed
from training.trainer import Trainer

torch.set_num_threads(1)
context = init_distributed()
config = Config(class_names=("a", "b", "c"), model=ModelConfig(width=8))
generator = torch.Generator().manual_seed(1)
data = (torch.randn(8, config.frontend.window_samples, generator=generator) * 0.1, torch.arange(8) % 3)
recipe = Recipe(batch_size=8, shift=0, freq_mask=0, time_mask=0)
log_mel = LogMel(config.frontend)
fit_normalisation(log_mel, data[0])
run = Trainer(recipe, config, log_mel, data, context)
run.use_bf16 = False
run.network.eval()
for name, parameter in run.model.named_parameters():
    if name.endswith("bn2.weight"):  # blocks start as their shortcut: no gradient would pass them
        torch.nn.init.constant_(parameter, 0.1)
own = slice(context.rank, None, context.world_size)
probs = torch.nn.functional.one_hot(run.target[own], 3).float()
run.loss(*run.augmenter(run.waveforms[own], probs, may_mix=False)).backward()
if context.rank == 0:
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


def test_a_users_own_csv_trains_exports_and_serves(tones: Path, tmp_path: Path) -> None:
    """The commands of the README, one after another."""
    assert train(tones, tmp_path / "run", *RECIPE).returncode == 0
    store = tmp_path / "store"
    source = ["--checkpoint", str(tmp_path / "run")]
    for exporter in (onnx, torchscript, program, waveform):
        assert exporter.main([*source, "--out", str(store)]) == 0
    assert parity.main([*source, "--store", str(store)]) == 0
    assert archive.main(["--store", str(store)]) == 0
    settings = server_settings(minWorkers=1) | {"model_store": str(store)}
    with running_server(tmp_path / "logs", settings) as server:
        for name, hz in (("low", 200.0), ("middle", 1500.0), ("high", 6000.0)):
            reply = requests.post(server.predictions, data=sound_file(tone(1.0, hz=hz)), timeout=120)
            assert reply.json()["predictions"][0]["class"] == name


def test_an_evaluation_with_all_it_can_measure(
    esc50: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "CONDITIONS", {"gain -15 dB": robustness.gain(-15)})
    rows = ["filename,fold,label"]
    rows += [f"{clip.path},4,{clip.label}" for clip in esc50.folds([4])[::80]]
    (tmp_path / "few.csv").write_text("\n".join(rows) + "\n")
    arguments = ["--checkpoint", str(CHECKPOINT), "--data", str(tmp_path / "few.csv"), "--folds", "4"]
    arguments += ["--json", str(tmp_path / "eval.json"), "--report", str(tmp_path), "--tta", "--robustness"]
    assert evaluate.main(arguments) == 0
    measured = json.loads((tmp_path / "eval.json").read_text())
    assert measured["num_clips"] == 5
    assert sum(row["support"] for row in measured["per_class"].values()) == 5
    assert 0 <= measured["ece"] <= 1
    assert 0 <= measured["accuracy_tta"] <= 1
    assert [row["condition"] for row in measured["robustness"]["conditions"]] == ["gain -15 dB"]
    assert (tmp_path / "report.html").is_file()
