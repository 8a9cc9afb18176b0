"""Exports of a small network: int8, the waveform file, and the parity report."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from audiocnn.classifier import Classifier
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint, loading
from audiocnn.model.engine import Engine, open_graph
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN
from export import (
    accuracy,
    archive,
    common,
    parity,
    program,
    quantize,
    test_signals,
    torchscript,
    triton,
    waveform,
)
from export import onnx as export_onnx
from export.common import export
from tests.helpers.clients import run_client
from tests.helpers.paths import CHECKPOINT, ROOT, STORE
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tones in two folds."""
    folder = tmp_path_factory.mktemp("tones")
    rows = ["filename,fold,label"]
    for number in range(16):
        low = number % 2 == 0
        waveform = tone(1.0, hz=(300 if low else 3000) + 10 * number)
        (folder / f"{number}.wav").write_bytes(sound_file(waveform))
        rows.append(f"{number}.wav,{1 + number // 8},{'low' if low else 'high'}")
    (folder / "clips.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network "trained" on fold 1: its class is the pitch, which random features can tell."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Config(
        class_names=("low", "high"),
        frontend=FrontendConfig(clip_seconds=1.0),
        model=ModelConfig(width=8),
        provenance={"train_folds": [1]},
    )
    checkpoint.save(folder, config, LogMel(config.frontend), AudioCNN(config.model, num_classes=2))
    return folder


@pytest.fixture(scope="module")
def store(trained: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of the small network."""
    folder = tmp_path_factory.mktemp("store")
    common.export(trained, folder, ".onnx", export_onnx.write)
    common.export(trained, folder, ".pt", torchscript.write)
    common.export(trained, folder, ".pt2", program.write, read=program.ExportedProgramGraph)
    waveform.export(trained, folder)
    source = folder / "audiocnn.onnx"
    quantize.calibrate(trained, source, quantize.training_clips(trained, dataset))
    quantize.quantize(trained, source, folder / "audiocnn-int8.onnx")
    return folder


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    """A store that a test may spoil."""
    return Path(shutil.copytree(store, tmp_path / "store"))


def write_report(trained: Path, store: Path) -> dict[str, object]:
    report = parity.build_report(parity.Model(trained, store), [])
    (store / loading.PARITY_REPORT).write_text(json.dumps(report))
    return report


def spoil(path: Path) -> None:
    """Multiply the first convolution's weights, or their scales, by three."""
    proto = onnx.load(path)
    weights = {w.name: w for w in proto.graph.initializer}
    nodes = {output: node for node in proto.graph.node for output in node.output}
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    source = nodes.get(conv.input[1])
    weight = weights[source.input[1] if source is not None else conv.input[1]]
    weight.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(weight), weight.name))
    onnx.save(proto, path)


# --- int8 ---


def test_int8_is_smaller_and_its_stem_and_head_stay_in_float(store: Path) -> None:
    assert (STORE / "audiocnn-int8.onnx").stat().st_size < 0.35 * (STORE / "audiocnn.onnx").stat().st_size
    proto = onnx.load(store / "audiocnn-int8.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in proto.graph.initializer}
    inputs = {output: node.op_type for node in proto.graph.node for output in node.output}
    (head,) = (node for node in proto.graph.node if node.op_type == "Gemm")
    assert weights[head.input[1]].dtype == np.float32
    stem, *others = (node for node in proto.graph.node if node.op_type == "Conv")
    assert weights[stem.input[1]].dtype == np.float32
    assert {inputs[node.input[1]] for node in others} == {"DequantizeLinear"}


def test_int8_weights_have_seven_bits(store: Path) -> None:
    """So that sums of U8 x S8 products cannot saturate on a processor without VNNI."""
    proto = onnx.load(store / "audiocnn-int8.onnx")
    weights = [numpy_helper.to_array(w) for w in proto.graph.initializer]
    assert all(np.abs(w.astype(int)).max() <= 64 for w in weights if w.dtype == np.int8 and w.ndim == 4)


def test_a_released_checkpoint_is_quantised_without_clips(trained: Path, store: Path, tmp_path: Path) -> None:
    quantize.quantize(trained, store / "audiocnn.onnx", tmp_path / "again-int8.onnx")
    log_mels = np.random.default_rng(0).normal(size=(2, 1, 128, 51)).astype(np.float32)
    ours = Engine(tmp_path / "again-int8.onnx").run(log_mels)["logits"]
    np.testing.assert_array_equal(ours, Engine(store / "audiocnn-int8.onnx").run(log_mels)["logits"])


def test_ranges_of_other_weights_are_refused(trained: Path, store: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "copy"))
    config, log_mel, _ = checkpoint.load(folder)
    checkpoint.save(folder, config, log_mel, AudioCNN(config.model, num_classes=2))
    with pytest.raises(ModelFileError, match="other weights"):
        quantize.quantize(folder, store / "audiocnn.onnx", tmp_path / "int8.onnx")


def test_only_clips_of_the_training_folds_calibrate(trained: Path, dataset: Path, tmp_path: Path) -> None:
    clips = quantize.training_clips(trained, dataset, 4)
    assert {clip.fold for clip in clips} == {1}
    assert {clip.label for clip in clips} == {"low", "high"}
    folder = Path(shutil.copytree(trained, tmp_path / "copy"))
    config, log_mel, model = checkpoint.load(folder)
    checkpoint.save(folder, replace(config, provenance={"train_folds": [9]}), log_mel, model)
    with pytest.raises(DatasetError, match=r"no clip of the folds \[9\]"):
        quantize.training_clips(folder, dataset)


# --- the waveform file ---


def test_the_waveform_file_answers_any_length_like_the_classifier(trained: Path, store: Path) -> None:
    classifier = Classifier.load(trained)
    session = onnxruntime.InferenceSession(store / "audiocnn-waveform.onnx")
    for samples in test_signals.edge_cases(classifier.config.frontend):
        (probs,) = session.run(["probs"], {"waveform": samples[None]})
        (result,) = classifier.predict_batch([sound_file(samples, subtype="FLOAT")])
        np.testing.assert_allclose(probs[0], result.probs, atol=1e-4)


def test_the_waveform_file_takes_batches(store: Path) -> None:
    session = onnxruntime.InferenceSession(store / "audiocnn-waveform.onnx")
    batch = np.stack([tone(1.0, hz=hz) for hz in (200, 1000, 5000)])
    (together,) = session.run(["probs"], {"waveform": batch})
    for row, alone in zip(together, batch, strict=True):
        np.testing.assert_allclose(row, session.run(["probs"], {"waveform": alone[None]})[0][0], atol=1e-5)
    assert together.shape == (3, 2)


def test_the_waveform_file_gives_the_embedding(trained: Path, store: Path) -> None:
    engine = Engine(trained)
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, SAMPLE_RATE)).astype(np.float32)
    log_mel = engine.prepare(noise[0])[None]
    session = onnxruntime.InferenceSession(store / "audiocnn-waveform.onnx")
    (embedding,) = session.run(["embedding"], {"waveform": noise})
    np.testing.assert_allclose(
        embedding, engine.run(log_mel, ["embedding"])["embedding"], atol=1e-3, rtol=1e-2
    )


def test_digital_silence_is_finite_in_the_waveform_file(store: Path) -> None:
    """onnxscript takes the 1e-10 inside the logarithm for nothing and drops it, if it may."""
    session = onnxruntime.InferenceSession(store / "audiocnn-waveform.onnx")
    (probs,) = session.run(["probs"], {"waveform": np.zeros((1, SAMPLE_RATE), np.float32)})
    assert np.isfinite(probs).all()


# --- the parity report ---


def test_int8_is_served_only_if_its_cost_is_known_and_small(trained: Path, copy: Path) -> None:
    measured = {"num_clips": 400, "float32": 0.8, "int8": 0.8, "points_lost": 0.0}
    assert write_report(trained, copy)["serves"] == "audiocnn.onnx"  # int8 was not measured
    for points, served in ((0.5, "audiocnn-int8.onnx"), (0.75, "audiocnn.onnx")):
        quantize.record_accuracy(trained, measured | {"points_lost": points})
        assert write_report(trained, copy)["serves"] == served
        assert loading.served_model_path(copy).name == served
    quantize.record_accuracy(trained, measured)
    write_report(trained, copy)
    assert archive.stage(copy, "auto", copy / "staged").path.name == "audiocnn-int8.onnx"
    names = {path.name for path in (copy / "staged").iterdir()}
    assert {"audiocnn.onnx", "audiocnn-maps.onnx", "parity.json"} <= names


@pytest.mark.parametrize("name", ["audiocnn.onnx", "audiocnn-maps.onnx", "audiocnn-waveform.onnx"])
def test_a_file_that_computes_something_else_stops_the_archive(trained: Path, copy: Path, name: str) -> None:
    spoil(copy / name)
    write_report(trained, copy)
    with pytest.raises(ModelFileError, match=name):
        archive.stage(copy, "auto", copy / "staged")


def test_a_file_that_changed_after_the_comparison_stops_the_archive(trained: Path, copy: Path) -> None:
    write_report(trained, copy)
    spoil(copy / "audiocnn.onnx")
    with pytest.raises(ModelFileError, match=r"audiocnn\.onnx.*run it again"):
        archive.stage(copy, "auto", copy / "staged")


def test_the_cost_of_int8_is_measured_on_a_fold_that_the_run_never_saw(trained: Path, dataset: Path) -> None:
    cost = accuracy.int8_cost([(trained, [2])], dataset)
    assert cost["num_clips"] == 8
    assert cost["points_lost"] == pytest.approx(100 * (cost["float32"] - cost["int8"]))
    with pytest.raises(DatasetError, match="trained on fold"):
        accuracy.int8_cost([(trained, [1])], dataset)


# --- torch.export ---


def test_the_exported_program_has_the_metadata_and_no_path_of_this_machine(store: Path) -> None:
    path = store / "audiocnn.pt2"
    assert program.ExportedProgramGraph(path).metadata == open_graph(store / "audiocnn.onnx").metadata
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert str(ROOT).encode() not in archive.read(name)


# --- Triton ---


def test_the_model_repository_is_what_triton_reads(trained: Path, copy: Path, tmp_path: Path) -> None:
    write_report(trained, copy)
    folder = triton.export(copy, tmp_path / "repository")
    printed = run_client(["python", "-c", READ_CONFIG, folder / "config.pbtxt"])
    config = json.loads(printed)
    assert (config["name"], config["backend"]) == (folder.name, "onnxruntime")
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    (given,) = config["input"]
    for size in (warmup["batchSize"] for warmup in config["modelWarmup"]):
        assert size <= config["maxBatchSize"]
        batch = np.zeros((size, *map(int, given["dims"])), np.float32)
        outputs = session.run([each["name"] for each in config["output"]], {given["name"]: batch})
        for described, output in zip(config["output"], outputs, strict=True):
            assert [int(size) for size in described["dims"]] == list(output.shape[1:])
    assert (folder / config["output"][0]["labelFilename"]).read_text().split() == ["low", "high"]
    values = {name: value["stringValue"] for name, value in config["parameters"].items()}
    assert json.loads(values["class_names"]) == ["low", "high"]
    assert (values["sample_rate"], values["clip_seconds"]) == ("44100", "1")


READ_CONFIG = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
with open(sys.argv[1]) as file:
    print(json_format.MessageToJson(text_format.Parse(file.read(), model_config_pb2.ModelConfig())))
"""


def test_a_file_that_failed_its_gate_is_not_exported(trained: Path, copy: Path, tmp_path: Path) -> None:
    spoil(copy / "audiocnn-waveform.onnx")
    write_report(trained, copy)
    with pytest.raises(ModelFileError, match=r"audiocnn-waveform\.onnx"):
        triton.export(copy, tmp_path)
    assert list(tmp_path.glob("audiocnn-waveform*")) == []


# --- where it is loaded ---


def test_int8_that_is_wrong_on_a_processor_is_replaced(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert loading.load_engine(copy / "audiocnn-int8.onnx").path.name == "audiocnn-int8.onnx"
    assert not caplog.records
    spoil(copy / "audiocnn-int8.onnx")
    with caplog.at_level(logging.WARNING):
        engine = loading.load_engine(copy / "audiocnn-int8.onnx")
    assert engine.path.name == "audiocnn.onnx"
    assert "answering with float32" in caplog.text


def test_pictures_of_an_int8_model_come_from_float32(copy: Path) -> None:
    log_mels = np.random.default_rng(0).normal(size=(1, 1, 128, 51)).astype(np.float32)
    outputs = ("logits", "evidence")
    ours = Engine(copy / "audiocnn-int8.onnx").run(log_mels, outputs)
    theirs = Engine(copy / "audiocnn.onnx").run(log_mels, outputs)
    np.testing.assert_array_equal(ours["evidence"], theirs["evidence"])


@pytest.mark.parametrize(("suffix", "write"), [(".onnx", export_onnx.write), (".pt", torchscript.write)])
def test_an_export_that_differs_gets_no_file(tmp_path: Path, suffix: str, write: object) -> None:
    """The exporter is handed a network with one weight changed; the check has to see it."""

    def write_wrong(module, example, outputs, metadata, path):  # type: ignore[no-untyped-def]
        weight = next(parameter for parameter in module.parameters() if parameter.ndim == 4)
        weight.data[0, 0, 3, 3] += 0.01
        write(module, example, outputs, metadata, path)  # type: ignore[operator]

    with pytest.raises(ModelFileError, match="differs from PyTorch"):
        export(CHECKPOINT, tmp_path, suffix, write_wrong)
    assert list(tmp_path.iterdir()) == []
