"""A taught model in a running server: rolled out in place of another one, asked through the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from audiocnn.classifier import Classifier
from audiocnn.config import Config
from audiocnn.embedding_table import EmbeddingTable
from audiocnn.model.engine import CONFIG_KEY
from audiocnn.teach.command import teach
from export import archive, prebuilt
from tests.helpers import batch
from tests.helpers.gateways import RunningGateway, running_gateway
from tests.helpers.paths import STORE
from tests.helpers.rollouts import RAIN, manage, versions
from tests.helpers.servers import Server
from tests.helpers.sounds import beep, write_class
from tests.helpers.waiting import wait_until

PITCHES = {"low": 200.0, "middle": 1500.0, "high": 6000.0}


def archive_of(model: Path, folder: Path, version: str) -> Path:
    """What `make archive CHECKPOINT=model STORE=folder VERSION=version` makes."""
    assert prebuilt.main(["--checkpoint", str(model), "--store", str(folder)]) == 0
    return archive.build(folder, "auto", version)


@pytest.fixture(scope="module")
def gateway(open_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), open_server.inference) as running:
        yield running


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught three pitches."""
    folder = tmp_path_factory.mktemp("own")
    for name, hz in PITCHES.items():
        write_class(folder / "sounds", name, hz)
    teach(folder / "sounds", folder / "mine", backbone=str(STORE / "audiocnn.onnx"), threads=1)
    return folder / "mine"


def test_a_taught_model_replaces_the_released_one(
    open_server: Server, store: Path, gateway: RunningGateway, mine: Path, tmp_path: Path
) -> None:
    assert gateway.get("/config").json()["has_feature_maps"]
    clip = tmp_path / "low.wav"
    clip.write_bytes(beep(200.0, seed=50))
    new = archive_of(mine, tmp_path / "build", "2.0")
    printed = manage(open_server, "rollout", new, "--clip", clip, "--store", store, code=1)
    assert "none of 1 clips can be compared" in printed
    assert versions(open_server) == ["1.0"]
    assert "version 2.0 serves" in manage(open_server, "rollout", new, "--store", store)
    check_answers(gateway, mine)


def check_answers(gateway: RunningGateway, mine: Path) -> None:
    """Answers, detections, embeddings, labels and configuration are those of the taught model."""
    local = Classifier.load(mine)
    for name, hz in PITCHES.items():
        sound = beep(hz, seed=60)
        answer = gateway.post("/predict?detections=true", files={"file": sound}).json()
        assert answer["predictions"][0]["class"] == name
        assert not answer["is_unknown"]
        assert {row["class"] for row in answer["detections"]} <= {name}
        vector = gateway.post("/embed", files={"file": sound}).json()["embedding"]
        np.testing.assert_allclose(vector, local.predict(sound).embedding, atol=1e-3)
    assert gateway.post("/predict", files={"file": RAIN}).json()["is_unknown"]
    files = [("files", ("a.wav", beep(200.0, seed=61))), ("files", ("b.wav", beep(6000.0, seed=61)))]
    rows = gateway.post("/predict_batch", files=files).json()["results"]
    assert [row["predictions"][0]["class"] for row in rows] == ["low", "high"]
    refused = gateway.post("/predict?evidence=true", files={"file": RAIN})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_option")
    assert wait_for_labels(gateway) == sorted(PITCHES)
    config = gateway.get("/config").json()
    assert (config["embedding_size"], config["has_feature_maps"]) == (256, False)
    assert gateway.get("/").status_code == 200


def wait_for_labels(gateway: RunningGateway) -> list[str]:
    """The classes, once the gateway has noticed the rollout."""

    def names() -> list[str]:
        return sorted(row["name"] for row in gateway.get("/labels").json()["labels"])

    assert wait_until(lambda: len(names()) < 50, 30)
    return names()


def test_a_rollout_may_add_a_class(
    open_server: Server, store: Path, gateway: RunningGateway, mine: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    for name, hz in (PITCHES | {"upper": 3_000.0}).items():
        write_class(clips, name, hz, 2, first_seed=70)
    assert Classifier.load(mine).predict(beep(3_000.0, seed=70)).is_unknown
    write_class(tmp_path / "more", "upper", 3_000.0)
    teach(tmp_path / "more", mine, add=True, threads=1)
    new = archive_of(mine, tmp_path / "build", "3.0")
    printed = manage(open_server, "rollout", new, "--clip", clips, "--store", store)
    assert "classes that are new: upper" in printed
    assert "different classes: 2 clips" in printed
    assert "on 6 clips: 100.0%" in printed
    answer = gateway.post("/predict", files={"file": beep(3_000.0, seed=80)}).json()
    assert answer["predictions"][0]["class"] == "upper"


def test_known_clips_that_get_a_new_class_refuse_the_rollout(
    open_server: Server, store: Path, mine: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    rename(mine / "audiocnn.onnx", {"low": "hum", "upper": "low"}, other)
    new = archive_of(other, tmp_path / "build", "4.0")
    for name in ("low", "high"):
        write_class(tmp_path / "clips", name, PITCHES[name], 2, first_seed=70)
    printed = manage(open_server, "rollout", new, "--clip", tmp_path / "clips", "--store", store, code=1)
    assert "classes that are new: hum" in printed
    assert "classes that are no longer there: upper" in printed
    assert "0.wav: low -> hum" in printed
    assert "agreement 50.0% is below 90.0%" in printed
    assert versions(open_server) == ["3.0"]


def rename(path: Path, names: dict[str, str], out: Path) -> None:
    """The model with other names for its classes."""
    proto = onnx.load(path)
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    config = Config.from_json(metadata[CONFIG_KEY])
    renamed = tuple(names.get(name, name) for name in config.class_names)
    metadata[CONFIG_KEY] = replace(config, class_names=renamed, thresholds={}).to_json()
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, out)


def test_a_model_without_an_embedding_says_so(
    open_server: Server, store: Path, gateway: RunningGateway, mine: Path, tmp_path: Path
) -> None:
    proto = onnx.load(mine / "audiocnn.onnx")
    del proto.graph.output[1:]
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    config = replace(Config.from_json(metadata[CONFIG_KEY]), embedding_size=None)
    onnx.helper.set_model_props(proto, metadata | {CONFIG_KEY: config.to_json()})
    onnx.save(proto, tmp_path / "plain.onnx")
    new = archive_of(tmp_path / "plain.onnx", tmp_path / "build", "5.0")
    assert "version 5.0 serves" in manage(open_server, "rollout", new, "--store", store)
    refused = gateway.post("/embed", files={"file": RAIN})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_option")
    assert "cannot give embedding" in refused.json()["error"]["message"]
    assert wait_until(lambda: gateway.get("/config").json()["embedding_size"] is None, 30)
    assert gateway.post("/predict", files={"file": beep(200.0, seed=50)}).status_code == 200


def test_the_batch_job_takes_the_folder_of_a_taught_model(mine: Path, tmp_path: Path) -> None:
    for name, hz in PITCHES.items():
        write_class(tmp_path / "in", name, hz, 1, first_seed=70)
    batch.score(tmp_path / "in", "--out", tmp_path / "out", "--model", mine, "--embeddings", "--workers", "1")
    rows = batch.table(tmp_path / "out")
    assert {Path(str(row["file"])).parent.name: row["class"] for row in rows} == {n: n for n in PITCHES}
    found = EmbeddingTable.load(tmp_path / "out" / "embeddings")
    assert len(found.files) == 3
    assert found.model == Classifier.load(mine).engine.sha256
