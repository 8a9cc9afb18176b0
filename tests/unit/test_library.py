"""The library and the command `audiocnn classify`."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audiocnn
from audiocnn import audio
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.errors import (
    AudioCNNError,
    AudioError,
    BadOptionError,
    BudgetExceededError,
    EmptyAudioError,
    ModelFileError,
    ModelOutputError,
    ServerFailedError,
)
from audiocnn.model.loading import RELEASED
from audiocnn.options import Options
from audiocnn.probabilities import probabilities
from tests.helpers.command_line import run
from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file


@pytest.fixture(scope="module")
def model() -> Classifier:
    return audiocnn.load(threads=1)


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    path = tmp_path / "rain.wav"
    path.write_bytes(synthetic.wav("rain"))
    return path


def test_a_clip_may_be_a_path_bytes_a_file_or_a_waveform(model: Classifier, rain: Path) -> None:
    data = rain.read_bytes()
    waveform = synthetic.SOUNDS["rain"]()
    forms = (str(rain), rain, data, io.BytesIO(data), (waveform, synthetic.SAMPLE_RATE))
    results = [model.predict(form) for form in forms]
    assert {result.label for result in results} == {"rain"}
    for result in results:
        assert result.confidence == pytest.approx(results[0].confidence, abs=0.03)  # 16 bits or float
        assert result.predictions[0] == (result.label, result.confidence)
        assert len(result.predictions) == 5
    json.dumps(results[0].to_dict())


@pytest.mark.parametrize("dtype", ["float64", ">f4", "int16", ">i2", "int32", "uint8"])
def test_a_waveform_of_floats_or_pcm_is_the_same_sound(model: Classifier, dtype: str) -> None:
    waveform = synthetic.SOUNDS["rain"]()
    scale, zero = {"i": (2**15, 0), "u": (128, 128)}.get(np.dtype(dtype).kind, (1, 0))
    scale = 2**31 - 256 if dtype == "int32" else scale
    stereo = np.stack([waveform * scale + zero] * 2, axis=1).astype(dtype)
    result = model.predict((np.asfortranarray(stereo), float(synthetic.SAMPLE_RATE)))  # type: ignore[arg-type]
    assert result.label == "rain"
    assert result.clip.warnings == []
    assert np.abs(result.clip.waveform - waveform).max() < 0.01


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(9), "tuple of a waveform and its sample rate"),
        ((np.zeros((2, 44_100)), 44_100), r"\(num_samples, channels\)"),
        ((44_100, np.zeros(9)), "shape"),
        ((np.zeros(9, complex), 44_100), "complex128"),
        ((np.zeros(9), 44_100.5), "whole number of Hz"),
        (io.StringIO("text"), "text mode"),
    ],
)
def test_what_is_no_sound_is_said_to_be_none(model: Classifier, clip: Any, message: str) -> None:
    for ask in (model.predict, lambda clip: list(model.predict_stream(clip))):
        with pytest.raises((TypeError, ValueError), match=message):
            ask(clip)
    with pytest.raises(OSError, match="null byte"):
        model.predict("a\0b.wav")


def test_results_are_printed_in_a_line_and_can_be_looked_for(model: Classifier, rain: Path) -> None:
    first, second = model.predict(rain), model.predict(rain)
    assert repr(first).startswith("Result(label='rain', confidence=0.")
    assert second not in [first, None]
    assert len({first, second, first}) == 2


def test_a_file_that_has_been_read_is_read_again(model: Classifier, rain: Path) -> None:
    with rain.open("rb") as file:
        assert model.predict(file).probs.tolist() == model.predict(file).probs.tolist()


@pytest.mark.parametrize(
    "lengths",
    [
        {"overlap_seconds": 5.0},
        {"overlap_seconds": -1.0},
        {"window_seconds": 1.0, "overlap_seconds": 1.5},
        {"window_seconds": 0.0},
        {"window_seconds": -1.0},
    ],
)
def test_a_stream_that_would_never_end_is_refused(
    model: Classifier, rain: Path, lengths: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="give"):
        next(model.predict_stream(rain, **lengths))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(hop_seconds=-1), "hop_seconds"),
        (Options(evidence=True, class_name="unicorn"), "unicorn"),
        (Options(feature_maps="jsn"), "none, json or png"),
        (Options(start=-1), "start"),
    ],
)
def test_options_made_by_hand_are_checked(
    model: Classifier, rain: Path, options: Options, message: str
) -> None:
    (answer,) = model.predict_batch([rain], [options])
    assert isinstance(answer, BadOptionError)
    assert message in str(answer)
    with pytest.raises(ValueError, match="shorter"):
        model.predict_batch([rain, rain], [Options()])


def test_every_error_can_be_pickled() -> None:
    for error in (BudgetExceededError(), EmptyAudioError("none"), ServerFailedError("died", status=500)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_device_that_does_not_exist_or_a_damaged_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cuda:1"):
        audiocnn.load(device="gpu")
    (tmp_path / "parity.json").write_text("{")
    with pytest.raises(ModelFileError, match="damaged"):
        audiocnn.load(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", '{"logits": "x"}', '{"logits": [[1], [2, 3]]}', '{"logits": [[NaN]]}']
)
def test_a_wrong_reference_beside_int8_is_named(tmp_path: Path, content: str) -> None:
    file = Path(shutil.copy(RELEASED / "audiocnn-int8.onnx", tmp_path))
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"reference\.json"):
        Classifier.load(file)


def test_the_sounds_of_reference_json_are_those_of_earlier_releases() -> None:
    clips = [audio.decode(data, sample_rate=44_100) for data in synthetic.reference_wavs()]
    found = [clip.waveform for clip in clips]
    levels = [float(np.sqrt(np.square(sound, dtype=float).mean())) for sound in found]
    assert levels == pytest.approx([0.1595, 0.2925, 0.2737, 0.0859, 0.0320], abs=1e-4)
    crossings = [int((np.diff(np.sign(sound)) != 0).sum()) for sound in found]
    assert crossings == pytest.approx([6243, 13192, 5257, 66027, 103401], rel=1e-3)


def test_the_error_of_a_clip_is_raised_alone_and_returned_in_a_batch(model: Classifier) -> None:
    with pytest.raises(AudioError) as caught:
        model.predict(b"no sound at all")
    assert isinstance(caught.value, AudioCNNError)
    good, bad = model.predict_batch([synthetic.wav("siren"), b"no sound at all"])
    assert not isinstance(good, AudioError)
    assert good.label == "siren"
    assert isinstance(bad, AudioError)


def test_a_stream_has_the_windows_of_the_clip(model: Classifier) -> None:
    waveform = np.concatenate([synthetic.SOUNDS["rain"](), synthetic.SOUNDS["siren"]()])
    clip = (waveform, synthetic.SAMPLE_RATE)
    result = model.predict(clip)
    windows = list(model.predict_stream(clip))
    spans = [(start, end) for start, end, _ in windows]
    np.testing.assert_allclose(spans, result.spans)
    for (_, _, probs), expected in zip(windows, result.window_probs, strict=True):
        np.testing.assert_allclose(probs, expected, atol=0.01)


def test_options_mean_what_they_say(model: Classifier) -> None:
    maps = model.predict(synthetic.wav("rain"), Options(feature_maps="json")).to_dict()["visualization"]
    assert {"conv1", "layer1", "layer4"} <= set(maps)


def test_logits_that_are_not_finite_are_an_error(model: Classifier) -> None:
    with pytest.raises(ModelOutputError):
        probabilities(np.array([0.0, np.nan], np.float32), model.config)


def test_importing_the_package_or_a_client_loads_no_torch() -> None:
    for name in ("audiocnn", "audiocnn.cli"):
        code = f"import sys, {name}; assert not {{'torch', 'numpy', 'soundfile'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_only_one_onnx_runtime_is_installed() -> None:
    names = {d.metadata["Name"].lower() for d in distributions()}
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1


def test_the_version_is_that_of_the_package() -> None:
    command = [sys.executable, "-m", "audiocnn", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["audiocnn", audiocnn.__version__]


def test_folders_globs_and_standard_input_are_classified(rain: Path) -> None:
    (rain.parent / "notes.txt").write_text("no sound")
    words = ("--json", rain.parent, rain.parent / "*.wav", "-")
    done = run("classify", *words, data=rain.read_bytes())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for answer in map(json.loads, lines):
        assert next(iter(answer)) == "file"
        assert answer["predictions"][0]["class"] == "rain"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_names_that_the_terminal_cannot_show_end_no_command(rain: Path, words: tuple[str, ...]) -> None:
    name = rain.rename(rain.with_name(os.fsdecode(b"\xff") + "\N{DOG}.wav"))
    done = subprocess.run(
        [sys.executable, "-m", "audiocnn", "classify", *words, name],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "1"},
        cwd=ROOT,
        check=True,
    )
    text = done.stdout.decode("latin-1")
    assert json.loads(text)["file"] == str(name) if words else "rain" in text


def test_a_folder_is_read_in_order_and_must_have_a_sound(tmp_path: Path, rain: Path, narrow: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("c", "a", "b"):
        (folder / f"{name}.wav").write_bytes(rain.read_bytes())
    done = run("classify", folder, "--json", "--model", narrow)
    assert [Path(json.loads(line)["file"]).stem for line in done.stdout.splitlines()] == ["a", "b", "c"]
    (tmp_path / "empty").mkdir()
    for command in (("classify",), ("detect",), ("embed", "--out", tmp_path / "x.npz")):
        done = run(*command, tmp_path / "empty", "--model", narrow)
        assert done.returncode == 2
        assert "no sound files" in done.stderr


def test_errors_are_below_the_table(rain: Path, narrow: Path) -> None:
    bad = rain.with_name("bad.wav")
    bad.write_text("no sound")
    done = run("classify", rain, bad, rain.with_name("missing.wav"), "--model", narrow)
    assert done.returncode == 1
    assert "unsupported_format" not in done.stdout
    assert "bad.wav: unsupported_format" in done.stderr
    assert "missing.wav: unreadable_file" in done.stderr


def test_silence_has_no_class_and_a_long_file_its_windows(tmp_path: Path, narrow: Path) -> None:
    rate = synthetic.SAMPLE_RATE
    (tmp_path / "quiet.wav").write_bytes(sound_file(np.zeros(rate, np.float32)))
    long = np.concatenate([synthetic.SOUNDS["rain"](), synthetic.SOUNDS["siren"]()])
    (tmp_path / "long.wav").write_bytes(sound_file(long))
    text = run("classify", tmp_path, "--model", narrow).stdout
    quiet = next(line for line in text.splitlines() if "quiet.wav" in line)
    assert "silence" in quiet
    assert "0.0 to 5.0 s" in text


def test_a_wrong_model_or_command_ends_with_2(rain: Path) -> None:
    missing = run("classify", rain, "--model", "nowhere.onnx")
    assert missing.returncode == 2
    assert "make export" in missing.stderr
    assert run("no-such-command").returncode == 2
    for name in ("classify", "listen", "batch", "gateway", "serve", "manage", "tune"):
        text = run(name, "--help").stdout
        assert "Usage: audiocnn " + name in text


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import audiocnn
print(audiocnn.load().predict(sys.argv[1]).label)
try:
    audiocnn.load("checkpoints/esc50")
except audiocnn.errors.ModelFileError as error:
    print(error)
"""


def test_a_file_is_classified_without_pytorch(rain: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(rain)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    label, message = printed.splitlines()
    assert label == "rain"
    assert "pip install torch" in message


WITHOUT_PACKAGES = """
import sys
for module in ("httpx", "pyarrow"):
    sys.modules[module] = None
from audiocnn.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "install"),
    [
        (["manage", "status"], "pip install 'audiocnn-serve[torchserve]'"),
        (["embed", "RAIN", "--out", "x.parquet"], "pip install pyarrow"),
        (["detect", "RAIN", "--parquet", "x.parquet"], "pip install pyarrow"),
        (["search", "RAIN", "--in", "x.parquet"], "pip install pyarrow"),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    rain: Path, tmp_path: Path, arguments: list[str], install: str
) -> None:
    command = [sys.executable, "-c", WITHOUT_PACKAGES, *(str(rain) if a == "RAIN" else a for a in arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert install in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.parquet")) == []
