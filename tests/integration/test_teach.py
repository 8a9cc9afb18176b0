"""Teaching: a few recordings become a model that is served like any other; what is wrong is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.datasets import check_labels, read_dataset
from audiocnn.errors import BadOptionError, DatasetError
from audiocnn.model.engine import Engine
from audiocnn.options import Options
from audiocnn.teach.command import Teaching, teach
from audiocnn.teach.examples import Example, load_clips
from audiocnn.teach.features import FeatureTable, views_for
from audiocnn.teach.fit import HeldOut, TaughtHead, fit, unknown_threshold
from audiocnn.teach.int8 import is_acceptable
from audiocnn.teach.report import advice, model_card, print_report, wilson_interval
from export import prebuilt
from tests.helpers.command_line import run as run_cli
from tests.helpers.paths import STORE
from tests.helpers.sounds import SAMPLE_RATE, beep, sound_file, write_class

BACKBONE = str(STORE / "audiocnn.onnx")  # the released network: no download
RECORDINGS = 5


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of three classes."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, hz in (("low", 200.0), ("middle", 1500.0), ("high", 6000.0)):
        write_class(folder, name, hz)
    return folder


@pytest.fixture(scope="module")
def taught(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Teaching]:
    out = tmp_path_factory.mktemp("taught") / "mine"
    return out, teach(sounds, out, backbone=BACKBONE, threads=1)


@pytest.fixture
def copy(sounds: Path, tmp_path: Path) -> Path:
    shutil.copytree(sounds, tmp_path / "sounds")
    return tmp_path / "sounds"


def test_a_taught_model_answers(taught: tuple[Path, Teaching]) -> None:
    folder, result = taught
    assert result.summary["accuracy"] == 1.0
    assert result.summary["num_groups"] == 3 * RECORDINGS  # each recording was left out by itself
    classifier = Classifier.load(folder)
    assert classifier.config.class_names == ("high", "low", "middle")
    for hz, name in ((200.0, "low"), (1500.0, "middle"), (6000.0, "high")):
        answer = classifier.predict(beep(hz, seed=100))
        assert answer.label == name
        assert not answer.is_unknown
    rain = classifier.predict(synthetic.wav("rain"))
    assert rain.is_unknown
    assert rain.embedding is not None
    assert len(rain.embedding) == classifier.config.num_features
    assert float(rain.probs.sum()) < 1
    assert [name for name, _ in rain.predictions] != ["background"]


def test_few_clips_have_a_threshold_of_one_half_at_least() -> None:
    high, low = np.full(30, 0.9, np.float32), np.float32([0.1, 0.2, 0.3])
    assert unknown_threshold(np.concatenate([low[:1], high[:12]])) == 0.5
    assert unknown_threshold(high[:18]) == pytest.approx(0.9)
    assert unknown_threshold(np.concatenate([low, high[:27]])) == pytest.approx(0.3)  # 2 of 30 are rejected


def test_noise_is_no_background_where_a_class_resembles_it(copy: Path, tmp_path: Path) -> None:
    (copy / "hiss").mkdir()
    for seed in range(RECORDINGS):
        (copy / "hiss" / f"{seed}.wav").write_bytes(white_noise(seed))
    result = teach(copy, tmp_path / "mine", backbone=BACKBONE, threads=1)
    assert "noise" in result.config.provenance["background_left_out"]
    answer = Classifier.load(tmp_path / "mine").predict(white_noise(100))
    assert answer.label == "hiss"
    assert not answer.is_unknown


def white_noise(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(5 * SAMPLE_RATE).astype(np.float32)
    return sound_file(noise * rng.uniform(0.02, 0.1))


def test_detections_have_thresholds(taught: tuple[Path, Teaching]) -> None:
    config = Classifier.load(taught[0]).config
    assert set(config.thresholds) == {"high", "low", "middle"}
    assert all(one.on >= config.unknown_threshold - 1e-4 for one in config.thresholds.values())
    assert all(one.precision is None for one in config.thresholds.values())  # too few clips to say


def test_a_class_that_others_are_taken_for_gets_a_higher_threshold() -> None:
    """Of the clips that reach 0.7 for `dog` half are cats; from 0.9 on all are dogs."""
    probs = np.array([[0.95, 0.05]] * 20 + [[0.7, 0.3]] * 10 + [[0.05, 0.95]] * 20, np.float32)
    target = np.array([0] * 20 + [1] * 10 + [1] * 20)
    held_out = HeldOut(probs, target, np.arange(50), 50)
    empty = np.zeros((3, 1), np.float32)
    head = TaughtHead(("dog", "cat"), empty, empty[:, 0], 1.0, 0.4, 0.1, held_out)
    assert {name: one.on for name, one in head.thresholds.items()} == {"dog": 0.75, "cat": 0.4}


def test_few_recordings_are_a_warning(taught: tuple[Path, Teaching]) -> None:
    assert [warning.split()[0] for warning in taught[1].warnings] == ["high", "low", "middle"]


def test_what_a_taught_model_cannot_give_is_refused(taught: tuple[Path, Teaching]) -> None:
    config = Classifier.load(taught[0]).config
    for name, value in (("evidence", "true"), ("feature_maps", "json"), ("layers", "conv1")):
        with pytest.raises(BadOptionError, match=name):
            Options.parse({name: value}, config)
    assert Options.parse({"embedding": "true", "spectrogram": "true"}, config).embedding


def test_the_card_and_the_notice_name_the_backbone(taught: tuple[Path, Teaching]) -> None:
    card, notice = ((taught[0] / name).read_text() for name in ("README.md", "NOTICE"))
    assert BACKBONE in card
    assert BACKBONE in notice
    head, body = card.removeprefix("---\n").split("\n---\n")
    values = yaml.safe_load(head)
    assert (values["license"], values["license_name"]) == ("other", "owner")
    assert values["pipeline_tag"] == "audio-classification"
    assert "pytorch" not in values["tags"]
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 1.0}]
    assert body.startswith("# Model card: high, low, middle")


def test_the_card_of_a_model_on_the_released_weights_is_non_commercial(
    taught: tuple[Path, Teaching],
) -> None:
    config = taught[1].config
    other = replace(config, provenance=config.provenance | {"licence_id": "cc-by-nc-3.0"})
    assert 'license: "cc-by-nc-3.0"\npipeline_tag' in model_card(other, taught[1].summary)


def test_a_class_survives_an_addition_without_its_sounds(
    taught: tuple[Path, Teaching], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(taught[0], folder)
    write_class(tmp_path / "more", "hiss", 12_000.0)
    teach(tmp_path / "more", folder, add=True, threads=1)
    classifier = Classifier.load(folder)
    assert classifier.config.class_names == ("high", "hiss", "low", "middle")
    for hz, name in ((200.0, "low"), (6000.0, "high"), (12_000.0, "hiss")):
        assert classifier.predict(beep(hz, seed=100)).label == name
    with pytest.raises(DatasetError, match="backbone"):
        teach(tmp_path / "more", folder, add=True, backbone="released")
    with pytest.raises(DatasetError, match="there twice"):
        teach(tmp_path / "more", folder, add=True, threads=1)
    (tmp_path / "more" / "hiss").rename(tmp_path / "more" / "hum")
    with pytest.raises(DatasetError, match=r"0\.wav \(hiss\) and .*0\.wav \(hum\)"):
        teach(tmp_path / "more", folder, add=True, threads=1)
    write_class(tmp_path / "case", "Hiss", 11_000.0)
    with pytest.raises(DatasetError, match="'Hiss', 'hiss'"):
        teach(tmp_path / "case", folder, add=True, threads=1)
    assert Classifier.load(folder).config.class_names == ("high", "hiss", "low", "middle")


def test_the_onnx_file_has_the_features_that_it_was_taught_with(
    taught: tuple[Path, Teaching], sounds: Path
) -> None:
    folder = taught[0]
    table, engine = FeatureTable.load(folder / "features.npz"), Engine(folder / "audiocnn.onnx", threads=1)
    for clip in load_clips(read_dataset(sounds).clips, engine.config.frontend):
        assert isinstance(clip, Example)
        outputs = engine.run(np.stack([engine.prepare(w) for w in clip.windows]), ("logits", "embedding"))
        rows = (table.clip == table.digests.index(clip.sha256)) & (table.view == 0)
        largest = np.abs(table.features[rows]).max()
        np.testing.assert_allclose(outputs["embedding"], table.features[rows], atol=1e-3 * largest)
        expected = fit(table).logits(table.features[rows])
        np.testing.assert_allclose(outputs["logits"], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    "rows", [["0.wav,low", "0.wav,high"], ["0.wav,low", "0.wav,low"], ["0.wav,low;high"]]
)
def test_rows_of_a_table_that_cannot_be_used_are_named(sounds: Path, tmp_path: Path, rows: list[str]) -> None:
    shutil.copy(sounds / "low" / "0.wav", tmp_path)
    (tmp_path / "mine.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    with pytest.raises(DatasetError, match=r"(two classes|there twice|several classes).*\n.*0\.wav"):
        teach(tmp_path, tmp_path / "mine", backbone=BACKBONE, threads=1)


def test_background_is_unknown_and_no_class(copy: Path, tmp_path: Path) -> None:
    write_class(copy, "background", 700.0)
    (copy / "background" / "._0.wav").write_bytes(b"what macOS writes beside a file")
    shutil.move(copy / "background", tmp_path / "background")
    teach(copy, tmp_path / "mine", backbone=BACKBONE, background=tmp_path / "background", threads=1)
    classifier = Classifier.load(tmp_path / "mine")
    assert classifier.config.class_names == ("high", "low", "middle")
    assert classifier.predict(beep(700.0, seed=100)).is_unknown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.copy(folder / "low" / "0.wav", folder / "high" / "same.wav"), "two classes"),
        (lambda folder: shutil.copy(folder / "low" / "0.wav", folder / "low" / "same.wav"), "there twice"),
        (lambda folder: [path.unlink() for path in sorted((folder / "low").iterdir())[1:]], "low has 1"),
        (lambda folder: (folder / "low" / "0.wav").write_bytes(b"RIFF no sound"), r"low/0\.wav"),
        (lambda folder: write_class(folder, "Low", 205.0), "'Low', 'low'"),
        (lambda folder: [shutil.rmtree(folder / name) for name in ("low", "high")], "no two classes"),
    ],
)
def test_clips_that_cannot_be_used_are_named(
    copy: Path, tmp_path: Path, change: object, message: str
) -> None:
    change(copy)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        teach(copy, tmp_path / "mine", backbone=BACKBONE, threads=1)
    assert not (tmp_path / "mine").exists()


def test_silent_clips_are_said_to_be_the_same(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "sounds" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound_file(np.zeros(SAMPLE_RATE + number, np.float32)))
    with pytest.raises(DatasetError, match="silent"):
        teach(tmp_path / "sounds", tmp_path / "mine", backbone=BACKBONE, threads=1)


def test_the_command_prints_a_report_and_ends_with_2_for_bad_clips(copy: Path, tmp_path: Path) -> None:
    options = ["--backbone", BACKBONE, "--threads", "1", "--json"]
    run = run_cli("teach", str(copy), "--out", str(tmp_path / "mine"), *options)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["accuracy"] == 1.0
    assert "make serve CHECKPOINT=" in run.stderr
    assert "warning: low has 5 recordings" in run.stderr
    run = run_cli("check", str(tmp_path / "mine"), "--threads", "1")
    assert "3 classes (softmax)" in run.stdout
    (copy / "low" / "0.wav").write_bytes(b"no sound")
    run = run_cli("teach", str(copy), "--out", str(tmp_path / "mine"), *options)
    assert run.returncode == 2
    assert "error: 1 files that cannot be used" in run.stderr


def test_a_taught_model_goes_into_the_store(taught: tuple[Path, Teaching], tmp_path: Path) -> None:
    (tmp_path / "audiocnn-maps.onnx").write_text("of another model")
    assert prebuilt.main(["--checkpoint", str(taught[0]), "--store", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["files"]["audiocnn.onnx"]["passes"]
    assert not (tmp_path / "audiocnn-maps.onnx").exists()
    ours, theirs = Classifier.load(tmp_path), Classifier.load(taught[0])
    np.testing.assert_allclose(
        ours.predict(synthetic.wav("siren")).probs, theirs.predict(synthetic.wav("siren")).probs, atol=1e-5
    )
    reference = json.loads((taught[0] / "reference.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(taught[0], changed)
    logits = (np.array(reference["logits"]) * 1.5).tolist()
    (changed / "reference.json").write_text(json.dumps({"logits": logits}))
    assert prebuilt.main(["--checkpoint", str(changed), "--store", str(tmp_path)]) == 2


def test_int8_that_differs_is_not_served() -> None:
    assert is_acceptable({"agreement": 1.0, "largest_difference": 0.05})
    assert not is_acceptable({"agreement": 0.99, "largest_difference": 0.01})
    assert not is_acceptable({"agreement": 1.0, "largest_difference": 0.06})


# --- datasets ---


def test_a_folder_per_class_has_folds_by_recording(tmp_path: Path) -> None:
    for recording in range(4):
        for part in range(3):
            path = tmp_path / "door" / f"r{recording}" / f"{part}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    write_class(tmp_path, "bell", 800.0)
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("bell", "door")
    assert len({clip.source for clip in dataset.clips if clip.label == "door"}) == 4
    for source in {clip.source for clip in dataset.clips}:
        assert len({clip.fold for clip in dataset.clips if clip.source == source}) == 1
    assert len({clip.fold for clip in dataset.clips if clip.label == "bell"}) == RECORDINGS


def test_a_table_without_folds_gets_them(tmp_path: Path) -> None:
    rows = [f"{n}.wav,{'ab'[n % 2]},{n // 2}" for n in range(20)]
    (tmp_path / "mine.csv").write_text("filename,label,source\n" + "\n".join(rows) + "\n")
    dataset = read_dataset(tmp_path)
    assert {clip.fold for clip in dataset.clips} == {1, 2, 3, 4, 5}
    assert {clip.source for clip in dataset.clips} == {str(n) for n in range(10)}


def test_labels_that_differ_by_case_are_named() -> None:
    check_labels(["door", "doors"])
    with pytest.raises(DatasetError, match="' door', 'DOOR', 'Door'"):
        check_labels(["Door", "DOOR", " door", "bell"])
    with pytest.raises(DatasetError, match="not UTF-8"):
        check_labels(["bell", "\udcff"])


# --- report ---


def test_the_interval_is_wilsons() -> None:
    # R: binom::binom.wilson(9, 10) gives 0.5958 to 0.9821
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(0.7225, abs=1e-4)
    assert high == pytest.approx(1.0)


def test_names_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"recordings": 3, "clips": 3, "correct": 0.5}
    print_report(
        {
            "interval": [0.5, 1.0],
            "accuracy": 0.9,
            "num_clips": 6,
            "known_refused": 0.0,
            "unknown_threshold": 0.5,
            "classes": {"[red]fox": row, "[/b]": row},
            "confusions": [["[red]fox", "[/b]", 2]],
        },
        Console(),
    )
    assert capsys.readouterr().out.count("[red]fox") == 3


def test_advice_names_the_worst_class_and_its_rival() -> None:
    classes = {
        "a": {"recordings": 9, "clips": 9, "correct": 1.0},
        "b": {"recordings": 9, "clips": 9, "correct": 0.5},
    }
    assert "Worst class: b (50%)" in advice({"classes": classes, "confusions": [["b", "a", 4]]})
    classes["b"]["correct"] = 1.0
    assert "No class was mistaken" in advice({"classes": classes, "confusions": []})


@pytest.mark.parametrize(("num_clips", "num_views"), [(30, 4), (200, 2), (700, 1)])
def test_more_clips_have_fewer_views(num_clips: int, num_views: int) -> None:
    views = views_for(num_clips, 56)
    assert len(views) == num_views
    assert views[0] == "clean"
    assert num_clips * len(views) + 56 <= 600 or num_views == 1
