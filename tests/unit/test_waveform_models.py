"""ONNX files from elsewhere: what they lack is said, and the rest is served like our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from audiocnn.audio import synthetic
from audiocnn.check import problems_of
from audiocnn.classifier import Classifier
from audiocnn.config import Config
from audiocnn.errors import BadOptionError, ModelFileError
from audiocnn.model.waveform import WaveformGraph
from audiocnn.options import Options
from audiocnn.probabilities import probabilities
from export import prebuilt
from tests.helpers.command_line import run as run_cli
from tests.helpers.sounds import sound_file, tone

RATE, SECONDS = 8_000, 1.0
NAMES = ["quiet", "loud", "louder"]


def write_model(
    path: Path,
    *,
    source: str = "waveform",
    output: str = "logits",
    batch: str | int = "batch",
    activation: str | None = None,
    scale: float = 1.0,
    num_samples: int = 8_000,
    description: dict[str, object] | None = None,
) -> Path:
    """A network that is not ours: its logits are the mean of |x| times three numbers."""
    nodes = [
        helper.make_node("Abs", [source], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["m"], keepdims=1),
        helper.make_node("MatMul", ["m", "w"], ["z" if activation else output]),
    ]
    if activation:
        nodes.append(helper.make_node(activation, ["z"], [output]))
    weight = np.array([[-9.0, 3.0, 6.0]], np.float32) * scale
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [batch, num_samples])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    document = {"sample_rate": RATE, "clip_seconds": SECONDS, "class_names": NAMES} | (description or {})
    path.with_suffix(".json").write_text(json.dumps(document))
    return path


def loud() -> bytes:
    return sound_file(tone(1.0))


def test_it_answers_like_our_own(tmp_path: Path) -> None:
    classifier = Classifier.load(
        write_model(tmp_path / "m.onnx", description={"name": "bird", "version": "3"})
    )
    result = classifier.predict(loud())
    assert result.label == "louder"
    assert float(result.probs.sum()) == pytest.approx(1.0, abs=1e-5)
    assert result.to_dict()["model"]["name"] == "bird"
    mean = 2 / np.pi * 0.5
    expected = np.exp(np.array([-9.0, 3.0, 6.0]) * mean)
    np.testing.assert_allclose(result.probs, expected / expected.sum(), atol=0.02)
    shown = classifier.predict(loud(), Options(spectrogram=True)).to_dict()["input_spectrogram"]
    row = int(np.array(shown["values"]).mean(axis=1).argmax())
    assert shown["hz"][row] == pytest.approx(1000, rel=0.05)
    assert len(classifier.predict(sound_file(tone(3.0))).spans) == 5
    for name in ("evidence", "embedding"):
        with pytest.raises(BadOptionError, match=f"cannot give {name}"):
            Options.parse({name: "true"}, classifier.config)


@pytest.mark.parametrize(("operator", "activation"), [("Softmax", "softmax"), ("Sigmoid", "sigmoid")])
def test_probabilities_are_taken_as_they_are(tmp_path: Path, operator: str, activation: str) -> None:
    model = write_model(
        tmp_path / "m.onnx", output="probs", activation=operator, description={"activation": activation}
    )
    probs = Classifier.load(model).predict(loud()).probs
    logits = np.array([-9.0, 3.0, 6.0]) * 2 / np.pi * 0.5
    softmax, sigmoid = np.exp(logits) / np.exp(logits).sum(), 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(probs, softmax if activation == "softmax" else sigmoid, atol=0.02)


class Probabilities:
    """What a server answers for a taught model: the rest of the sum is the background."""

    shapes = {"waveform": [None, None], "probs": [None, 3]}  # noqa: RUF012

    def run(self, inputs: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        return [np.array([[0.2, 0.1, 0.4]], np.float32)]


def test_the_probability_of_the_background_is_kept() -> None:
    config = Config(class_names=tuple(NAMES), model=None, has_background=True, temperature=1.7)
    (logits,) = WaveformGraph(Probabilities(), config, {}).run(np.zeros((1, 9), np.float32), ["logits"])
    np.testing.assert_allclose(probabilities(logits, config), [[0.2, 0.1, 0.4]], atol=1e-6)


def test_a_batch_size_of_one_is_enough(tmp_path: Path) -> None:
    single = Classifier.load(write_model(tmp_path / "one.onnx", batch=1))
    many = Classifier.load(write_model(tmp_path / "many.onnx"))
    sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
    for one, two in zip(single.predict_batch(sounds), many.predict_batch(sounds), strict=True):
        np.testing.assert_allclose(one.probs, two.probs, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "audio"}, "no input 'waveform'"),
        ({"output": "scores"}, "no output 'logits' or 'probs'"),
        ({"batch": 4}, "batch size is fixed to 4"),
        ({"num_samples": 16_000}, "takes 16000 samples, but clip_seconds x sample_rate is 8000"),
        ({"description": {"class_names": ["a", "b"]}}, "3 values, but class_names has 2"),
        ({"description": {"class_names": ["a", "a", "b"]}}, "different"),
        ({"description": {"class_names": "abc"}}, "class_names must be"),
        ({"description": {"version": 2}}, "version must be a text"),
        ({"description": {"sample_rate": "8k"}}, "whole number of Hz"),
        ({"description": {"activation": "relu"}}, "softmax or sigmoid"),
        ({"description": {"colour": "red"}}, "unknown keys colour"),
        ({"scale": 0.0}, "same answer to every test sound"),
        ({"scale": float("nan")}, "not finite"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, options: dict[str, object], message: str) -> None:
    model = write_model(tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    assert any(message in problem for problem in problems_of(model)), problems_of(model)
    run = run_cli("check", str(model), "--threads", "1")
    assert run.returncode == 2
    assert message in run.stderr


def test_check_says_what_the_description_needs(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    model.with_suffix(".json").unlink()
    assert "sample_rate, clip_seconds, class_names" in problems_of(model)[0]
    with pytest.raises(ModelFileError, match=r"write m\.json"):
        Classifier.load(model)
    model.with_suffix(".json").write_text('{"sample_rate": 8000}')
    assert "lacks clip_seconds, class_names" in problems_of(model)[0]
    model.with_suffix(".json").write_text("not JSON")
    assert "is not JSON" in problems_of(model)[0]


def test_check_measures_a_model_that_can_be_served(tmp_path: Path) -> None:
    run = run_cli("check", str(write_model(tmp_path / "m.onnx")), "--threads", "1")
    assert run.returncode == 0, run.stderr
    assert "windows of 1 s at 8,000 Hz" in run.stdout
    assert "ms a window alone" in run.stdout


def test_it_goes_into_the_store_with_its_description(tmp_path: Path) -> None:
    model, store = write_model(tmp_path / "m.onnx"), tmp_path / "store"
    assert prebuilt.main(["--checkpoint", str(model), "--store", str(store)]) == 0
    assert not (store / "audiocnn.json").exists()
    assert Classifier.load(store).predict(loud()).label == "louder"  # the file alone is enough
