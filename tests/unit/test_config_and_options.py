"""Labels, configuration, datasets, options and error codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from audiocnn.config import Config, ModelConfig
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import AudioError, BadOptionError, DatasetError, ModelFileError
from audiocnn.labels import ESC50, URBANSOUND8K, describe
from audiocnn.options import HEADERS, OPTION_NAMES, Options, options_in_headers

CONFIG = Config(class_names=("dog", "cat", "rain"))


# --- labels ---


def test_labels_are_in_the_order_of_the_dataset(esc50: Dataset) -> None:
    assert tuple(label.name for label in ESC50) == esc50.class_names


def test_every_class_has_an_emoji_of_its_own_and_a_group() -> None:
    assert len({label.emoji for label in ESC50}) == 50
    assert len({label.emoji for label in URBANSOUND8K}) == 10
    groups = [label.group for label in ESC50]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(groups, 10)
    assert len(set(groups)) == 5


def test_a_users_own_class_gets_a_speaker() -> None:
    assert describe("my_doorbell").emoji == "🔊"
    assert describe("dog").emoji == "🐕"


# --- config ---


def test_config_survives_json() -> None:
    config = replace(CONFIG, model=ModelConfig(width=8), temperature=1.3, provenance={"folds": [1, 2]})
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a model configuration"),
        ("nonsense", "not a model configuration"),
        (CONFIG.to_json().replace('"format_version": 2', '"format_version": 99'), "upgrade AudioCNN Serve"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"frontend": []}), "lacks or mistypes"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"has_background": 1}), "must be true or false"),
        (CONFIG.to_json().replace('"n_mels"', '"mels"'), "unknown keys for FrontendConfig: mels"),
        (CONFIG.to_json().replace('"f_max": 22050.0', '"f_max": 44100.0'), "sample_rate / 2"),
    ],
)
def test_a_config_that_is_not_ours_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Config.from_json(text)


# --- datasets ---


def test_esc50_is_read(esc50: Dataset) -> None:
    assert len(esc50.class_names) == 50
    dogs = [clip for clip in esc50.folds([1]) if clip.label == "dog"]
    assert len(dogs) == 8
    assert all(clip.path.is_file() for clip in dogs)


def test_urbansound8k_is_read(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "7061-6-0-0.wav,7061,0,1,1,5,6,gun_shot\n100032-3-0-0.wav,100032,0,1,1,10,3,dog_bark\n"
    )
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("dog_bark", "gun_shot")
    assert dataset.clips[0].path == tmp_path / "audio" / "fold5" / "7061-6-0-0.wav"
    assert dataset.clips[1].source == "100032"


@pytest.mark.parametrize("column", ["filename", "file_path"])
def test_a_users_own_csv_is_read(tmp_path: Path, column: str) -> None:
    (tmp_path / "sounds.csv").write_text(f"{column},fold,label\na/1.wav,1,door\na/2.wav,2,bell\n")
    dataset = read_dataset(tmp_path)
    assert dataset == read_dataset(tmp_path / "sounds.csv")
    assert dataset.class_names == ("bell", "door")
    assert dataset.clips[0].path == tmp_path / "a" / "1.wav"


def test_a_folder_that_is_no_dataset_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no dataset: expected"):
        read_dataset(tmp_path)
    (tmp_path / "sounds.csv").write_text("name,fold,label\nx.wav,1,door\n")
    with pytest.raises(DatasetError, match="filename"):
        read_dataset(tmp_path)


def test_a_missing_fold_is_named(tmp_path: Path) -> None:
    (tmp_path / "sounds.csv").write_text("filename,fold,label\nx.wav,1,door\n")
    with pytest.raises(DatasetError, match=r"no fold \[3\]; it has \[1\]"):
        read_dataset(tmp_path).folds([1, 3])


# --- options ---


def test_defaults_ask_for_logits_only() -> None:
    assert Options.parse({}, CONFIG).map_outputs(CONFIG) == ()


def test_options_are_read_from_text_bytes_and_json() -> None:
    options = Options.parse(
        {"top_k": b"10", "min_confidence": "0.5", "classes": "dog, rain", "evidence": True, "class": "cat"},
        CONFIG,
    )
    assert (options.top_k, options.min_confidence, options.classes) == (10, 0.5, ("dog", "rain"))
    assert (options.evidence, options.class_name) == (True, "cat")
    assert options.map_outputs(CONFIG) == ("evidence",)
    assert Options.parse({"feature_maps": "png", "layers": ["conv1"]}, CONFIG).map_outputs(CONFIG) == (
        "conv1",
    )


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("1", True), ("PNG", "png"), ("off", False)])
def test_the_spectrogram_comes_as_numbers_or_as_a_picture(value: object, expected: object) -> None:
    assert Options.parse({"spectrogram": value}, CONFIG).spectrogram == expected


def test_a_name_that_is_repeated_counts_once() -> None:
    options = Options.parse({"layers": "conv1," * 20_000, "classes": ["dog"] * 20_000}, CONFIG)
    assert (options.layers, options.classes) == (("conv1",), ("dog",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("topk", "3"),
        ("top_k", "0"),
        ("top_k", "-1"),
        ("top_k", "9" * 400),
        ("top_k", "²"),
        ("top_k", None),
        ("min_confidence", "nan"),
        ("min_confidence", "1.5"),
        ("classes", "unicorn"),
        ("classes", ""),
        ("class", "dog,cat"),
        ("layers", "layer9"),
        ("feature_maps", "gif"),
        ("evidence", "maybe"),
        ("spectrogram", "gif"),
        ("../../etc/passwd", "1"),
    ],
)
def test_a_bad_option_is_named(name: str, value: object) -> None:
    with pytest.raises(BadOptionError) as caught:
        Options.parse({name: value}, CONFIG)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Knock, door", ("Knock, door",)),
        ('"Knock, door", dog', ("Knock, door", "dog")),
        (["Knock, door", "dog"], ("Knock, door", "dog")),
        (' dog ,"dog"', ("dog",)),
        ('say "hi"', ('say "hi"',)),
    ],
)
def test_a_class_with_a_comma_in_its_name(value: object, expected: tuple[str, ...]) -> None:
    config = Config(class_names=("Knock, door", "dog", 'say "hi"'))
    assert Options.parse({"classes": value}, config).classes == expected


@pytest.mark.parametrize("value", ["x" * 200_000, '"' * 200_001, "dog,\ncat,x\0"])
def test_classes_that_are_no_list(value: str) -> None:
    with pytest.raises(BadOptionError, match="classes"):
        Options.parse({"classes": value}, CONFIG)


def test_an_option_header_that_is_sent_twice_is_refused() -> None:
    with pytest.raises(BadOptionError, match="X-Top-K"):
        options_in_headers([("X-Top-K", "1"), ("x-top-k", "2")])


def test_every_option_has_a_header() -> None:
    assert HEADERS["x-top-k"] == "top_k"
    assert len(HEADERS) == len(OPTION_NAMES)


# --- errors ---


def test_every_error_code_is_in_the_table() -> None:
    table = {cls.code: cls.status for cls in AudioError.__subclasses__()}
    assert table == {
        "empty_audio": 400,
        "undecodable_audio": 400,
        "not_finite_audio": 400,
        "bad_option": 400,
        "bad_base64": 400,
        "audio_too_long": 413,
        "too_many_channels": 413,
        "sample_rate_out_of_range": 413,
        "unsupported_format": 415,
        "busy": 503,
    }
