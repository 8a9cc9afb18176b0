"""Exported models: the outputs of PyTorch, alone and in any batch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.config import feature_map_names
from audiocnn.errors import BadOptionError, ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from audiocnn.options import Options
from audiocnn.probabilities import softmax
from export import test_signals
from tests.helpers.paths import CHECKPOINT, STORE

ENGINES = ["audiocnn.onnx", "audiocnn.pt"]


@pytest.fixture(scope="module")
def eager() -> Engine:
    return Engine(CHECKPOINT)


@pytest.fixture(scope="module")
def log_mels(eager: Engine) -> np.ndarray:
    _, log_mel, _ = checkpoint.load(CHECKPOINT)
    return test_signals.log_mels(log_mel, test_signals.waveforms(eager.config.frontend))


@pytest.fixture(scope="module")
def theirs(eager: Engine, log_mels: np.ndarray) -> dict[str, np.ndarray]:
    """Logits and embeddings of PyTorch."""
    return eager.run(log_mels, ("logits", "embedding"))


@pytest.mark.parametrize("name", ENGINES)
def test_an_export_gives_the_logits_of_pytorch(
    name: str, theirs: dict[str, np.ndarray], log_mels: np.ndarray
) -> None:
    ours = Engine(STORE / name).run(log_mels)["logits"]
    np.testing.assert_allclose(ours, theirs["logits"], atol=1e-4)


@pytest.mark.parametrize("name", [*ENGINES, "audiocnn-int8.onnx"])
def test_an_export_gives_the_embedding_of_pytorch(
    name: str, theirs: dict[str, np.ndarray], log_mels: np.ndarray
) -> None:
    outputs = ("logits", "embedding")
    engine = Engine(STORE / name)
    both = engine.run(log_mels, outputs)
    ours, expected = both["embedding"], theirs["embedding"]
    assert ours.dtype == np.float32
    assert ours.shape == (len(log_mels), 8 * engine.config.model.width)
    if name.endswith("int8.onnx"):
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((ours * expected).sum(axis=1) / norms).min() > 0.97
    else:
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
    # It changes no logit and needs no second file.
    np.testing.assert_array_equal(both["logits"], engine.run(log_mels)["logits"])
    assert engine._maps is None


@pytest.mark.parametrize("name", ENGINES)
def test_an_export_gives_the_maps_of_pytorch(name: str, eager: Engine, log_mels: np.ndarray) -> None:
    outputs = ("logits", "embedding", "evidence", *feature_map_names(eager.config.model))
    ours, theirs = Engine(STORE / name).run(log_mels[:3], outputs), eager.run(log_mels[:3], outputs)
    assert ours.keys() == theirs.keys()
    for output in outputs:
        np.testing.assert_allclose(ours[output], theirs[output], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*ENGINES, None])
def test_a_clip_alone_and_in_any_batch(name: str | None, log_mels: np.ndarray) -> None:
    engine = Engine(STORE / name if name else CHECKPOINT)
    together = engine.run(log_mels[:8])["logits"]
    for batch in (slice(0, 1), slice(2, 5), slice(1, 8)):
        np.testing.assert_allclose(engine.run(log_mels[batch])["logits"], together[batch], atol=1e-5)


def test_int8_gives_the_same_answer_alone_and_in_any_batch(log_mels: np.ndarray) -> None:
    engine = Engine(STORE / "audiocnn-int8.onnx")
    together = softmax(engine.run(log_mels[:8])["logits"])
    for batch in (slice(0, 1), slice(2, 5), slice(1, 8)):
        np.testing.assert_allclose(softmax(engine.run(log_mels[batch])["logits"]), together[batch], atol=0.01)


def test_all_files_carry_the_same_config_and_front_end(eager: Engine) -> None:
    for name in (*ENGINES, "audiocnn-int8.onnx", "audiocnn-waveform.onnx"):
        engine = Engine(STORE / name)  # which also reads the front end out of the file
        is_waveform = name == "audiocnn-waveform.onnx"  # which has no feature maps
        config = replace(eager.config, model=None, embedding_size=256) if is_waveform else eager.config
        assert engine.config == config
        assert engine.log_mel.fingerprint() == eager.config.fingerprint


def test_the_waveform_file_answers_as_the_checkpoint_does(eager: Engine) -> None:
    ours, theirs = Classifier(Engine(STORE / "audiocnn-waveform.onnx")), Classifier(eager)
    for name in synthetic.SOUNDS:
        one, two = ours.predict(synthetic.wav(name)), theirs.predict(synthetic.wav(name))
        np.testing.assert_allclose(one.probs, two.probs, atol=0.01)
        assert one.embedding is not None
    with pytest.raises(BadOptionError, match="cannot give evidence"):
        Options.parse({"evidence": "true"}, ours.config)


def test_no_path_of_the_exporting_machine_is_in_the_file() -> None:
    text = onnx.load(STORE / "audiocnn.onnx").SerializeToString()
    assert b"site-packages" not in text
    assert str(Path.home()).encode() + b"/" not in text


def test_files_that_are_not_ours_are_refused(tmp_path: Path, eager: Engine) -> None:
    with pytest.raises(ModelFileError, match="make export"):
        Engine(tmp_path / "nothing.onnx")
    for suffix in (".onnx", ".pt"):
        (tmp_path / f"text{suffix}").write_text("not a model")
        with pytest.raises(ModelFileError, match="cannot be loaded"):
            Engine(tmp_path / f"text{suffix}")
    (tmp_path / "model.h5").write_text("")
    with pytest.raises(ModelFileError, match="no model file"):
        Engine(tmp_path / "model.h5")
    proto = onnx.load(STORE / "audiocnn.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(ModelFileError, match="not exported by us"):
        Engine(tmp_path / "bare.onnx")


def test_maps_of_another_model_are_refused(tmp_path: Path, log_mels: np.ndarray) -> None:
    shutil.copy(STORE / "audiocnn.onnx", tmp_path / "audiocnn.onnx")
    proto = onnx.load(STORE / "audiocnn-maps.onnx")
    for entry in proto.metadata_props:
        entry.value = entry.value.replace('"version": "1.0"', '"version": "0.9"')
    onnx.save(proto, tmp_path / "audiocnn-maps.onnx")
    engine = Engine(tmp_path / "audiocnn.onnx")
    engine.run(log_mels[:1])
    with pytest.raises(ModelFileError, match="another model"):
        engine.run(log_mels[:1], ("logits", "conv1"))
