"""int8 files in OpenVINO."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from audiocnn.errors import ModelFileError
from audiocnn.model import openvino_graph
from audiocnn.model.engine import Engine, OnnxGraph
from audiocnn.model.loading import RELEASED, TOLERANCE, synthetic_windows
from audiocnn.model.openvino_graph import VARIABLE, OpenVinoGraph

INT8 = RELEASED / "audiocnn-int8.onnx"
_CLASSIFY = """
import sys
{before}
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
print(Classifier.load({path!r}).predict(synthetic.wav("rain")).label)
"""

pytestmark = pytest.mark.skipif(not openvino_graph.is_installed(), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def graph() -> OpenVinoGraph:
    return OpenVinoGraph(INT8, threads=1)


@pytest.fixture(scope="module")
def log_mels() -> np.ndarray:
    engine = Engine(INT8, threads=1)
    return np.stack([engine.prepare(window) for window in synthetic_windows(engine.config.frontend)])


def test_it_is_the_same_file_as_in_onnx_runtime(graph: OpenVinoGraph, log_mels: np.ndarray) -> None:
    other = OnnxGraph(INT8, "cpu", 1)
    assert graph.metadata == other.metadata
    assert graph.output_names == other.output_names
    assert graph.shapes == other.shapes
    ours, theirs = (each.run(log_mels, ["logits", "embedding"]) for each in (graph, other))
    assert np.abs(ours[0] - theirs[0]).max() <= TOLERANCE * np.abs(theirs[0]).max()
    assert (ours[0].argmax(axis=1) == theirs[0].argmax(axis=1)).all()
    assert ours[1].shape == theirs[1].shape


def test_no_answer_depends_on_its_batch(graph: OpenVinoGraph, log_mels: np.ndarray) -> None:
    (together,) = graph.run(log_mels, ["logits"])
    alone = np.concatenate([graph.run(log_mels[n : n + 1], ["logits"])[0] for n in range(len(log_mels))])
    np.testing.assert_allclose(alone, together, atol=1e-4)


def test_threads_do_not_mix_their_answers(graph: OpenVinoGraph, log_mels: np.ndarray) -> None:
    expected = [graph.run(log_mels[n : n + 1], ["logits"])[0] for n in range(len(log_mels))]
    order = list(range(len(log_mels))) * 10
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: graph.run(log_mels[n : n + 1], ["logits"])[0], order))
    for n, logits in zip(order, found, strict=True):
        np.testing.assert_allclose(logits, expected[n], atol=1e-4)


@pytest.mark.parametrize("runtime", openvino_graph.RUNTIMES)
def test_the_environment_chooses_the_runtime(
    runtime: str, log_mels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, runtime)
    chosen = OpenVinoGraph(INT8, 1) if runtime == "openvino" else OnnxGraph(INT8, "cpu", 1)
    expected = chosen.run(log_mels[:2], ["logits"])[0]
    np.testing.assert_array_equal(Engine(INT8, threads=1).run(log_mels[:2])["logits"], expected)


def test_an_unknown_runtime_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tensorrt")
    with pytest.raises(ModelFileError, match="AUDIOCNN_RUNTIME=tensorrt: expected onnxruntime or openvino"):
        Engine(INT8)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged-int8.onnx"
    damaged.write_bytes(INT8.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match=r"damaged-int8\.onnx cannot be loaded by OpenVINO"):
        OpenVinoGraph(damaged, 1)
    with pytest.raises(ModelFileError, match=r"damaged-int8\.onnx cannot be loaded by ONNX Runtime"):
        Engine(damaged)


def test_metadata_that_is_not_utf8_is_an_error_that_names_it(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged-int8.onnx"
    damaged.write_bytes(INT8.read_bytes().replace(b'"class_names"', b'"class_name\xff"', 1))
    with pytest.raises(ModelFileError, match=r"damaged-int8\.onnx cannot be loaded by OpenVINO"):
        OpenVinoGraph(damaged, 1)


def _classify(before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = _CLASSIFY.format(before=before, path=str(INT8))
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def test_without_openvino_onnx_runtime_answers() -> None:
    run = _classify('sys.modules["openvino"] = None', **{VARIABLE: "openvino"})
    assert run.stdout == "rain\n"
    assert "pip install openvino; ONNX Runtime is used, which is slower" in run.stderr
    assert _classify('sys.modules["openvino"] = None').stderr == ""


def test_nothing_is_sent_over_the_network() -> None:
    """`import openvino` alone would start a process that sends a message."""
    hook = "sys.addaudithook(lambda event, _: event in {events} and print(event, file=sys.stderr))".format(
        events={"os.fork", "os.posix_spawn", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"}
    )
    run = _classify(hook, **{VARIABLE: "openvino"})
    assert run.stdout == "rain\n"
    assert run.stderr == ""
