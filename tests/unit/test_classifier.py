"""The classifier on real clips: results, options, windows and errors."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.config import feature_map_names
from audiocnn.datasets import LabelledClip
from audiocnn.errors import AudioError, BadOptionError
from audiocnn.model.spectrogram import clip_spectrogram
from audiocnn.options import Options
from audiocnn.results import Result
from tests.helpers.command_line import run
from tests.helpers.paths import STORE
from tests.helpers.sounds import SAMPLE_RATE, sound_file, tone


def one(classifier: Classifier, data: bytes, **options: object) -> Result:
    (result,) = classifier.predict_batch([data], [Options.parse(options, classifier.config)])
    assert isinstance(result, Result)
    return result


def answer(classifier: Classifier, data: bytes, **options: object) -> dict:
    return json.loads(json.dumps(one(classifier, data, **options).to_dict()))


def test_most_unseen_clips_are_named_rightly(classifier: Classifier, fold4: list[LabelledClip]) -> None:
    clips = fold4[::10]
    results = classifier.predict_batch([clip.path.read_bytes() for clip in clips])
    right = [r.label == clip.label for r, clip in zip(results, clips, strict=True)]
    assert np.mean(right) > 0.6


def test_a_clip_alone_and_beside_any_neighbour(classifier: Classifier, fold4: list[LabelledClip]) -> None:
    clips = [clip.path.read_bytes() for clip in fold4[:5]] + [b"broken", b"", sound_file(tone(12.0))]
    together = classifier.predict_batch(clips)
    for data, result in zip(clips, together, strict=True):
        (alone,) = classifier.predict_batch([data])
        if isinstance(result, AudioError):
            assert isinstance(alone, AudioError)
            assert alone.code == result.code
        else:
            np.testing.assert_allclose(alone.probs, result.probs, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "num_windows"), [(1 / SAMPLE_RATE, 1), (0.05, 1), (1.0, 1), (5.02, 1), (7.0, 2), (60.0, 23)]
)
def test_any_length_is_answered(classifier: Classifier, seconds: float, num_windows: int) -> None:
    reply = answer(classifier, sound_file(tone(seconds)))
    assert reply["duration"] == pytest.approx(seconds, abs=0.002)
    assert len(reply.get("windows", [1])) == num_windows
    assert sum(row["confidence"] for row in reply["predictions"]) <= 1.000001


def test_a_long_clip_is_the_mean_of_its_windows(classifier: Classifier) -> None:
    rain, siren = synthetic.SOUNDS["rain"](), synthetic.SOUNDS["siren"]()
    both = one(classifier, sound_file(np.concatenate([rain, siren])))
    assert [span[0] for span in both.spans] == [0.0, 2.5, 5.0]
    np.testing.assert_allclose(both.probs, both.window_probs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(both.window_probs[0], one(classifier, sound_file(rain)).probs, atol=1e-5)
    np.testing.assert_allclose(both.window_probs[2], one(classifier, sound_file(siren)).probs, atol=1e-5)


def test_confidences_are_a_ranked_distribution(classifier: Classifier) -> None:
    rows = answer(classifier, synthetic.wav("rain"), top_k=50)["predictions"]
    confidences = [row["confidence"] for row in rows]
    assert sum(confidences) == pytest.approx(1.0, abs=1e-4)
    assert confidences == sorted(confidences, reverse=True)
    assert {row["class"] for row in rows} == set(classifier.config.class_names)


def test_options_select_what_is_reported(classifier: Classifier) -> None:
    data = synthetic.wav("rain")
    everything = answer(classifier, data, top_k=50)["predictions"]
    assert answer(classifier, data, top_k=3)["predictions"] == everything[:3]
    assert answer(classifier, data, top_k=999)["predictions"] == everything
    floor = everything[4]["confidence"] - 1e-6  # confidences are sent with six decimals
    assert answer(classifier, data, top_k=50, min_confidence=floor)["predictions"] == everything[:5]
    wanted = {"dog", "cat"}
    only = answer(classifier, data, classes="dog,cat")["predictions"]
    assert only == [row for row in everything if row["class"] in wanted]


def test_nothing_extra_unless_asked_for(classifier: Classifier) -> None:
    expected = {"predictions", "is_unknown", "is_silent", "warnings", "duration", "model"}
    assert set(answer(classifier, synthetic.wav("rain"))) == expected
    full = answer(
        classifier,
        synthetic.wav("rain"),
        evidence=1,
        spectrogram=1,
        waveform=1,
        windows=1,
        feature_maps="json",
    )
    pictures = {"visualization", "evidence", "input_spectrogram", "waveform", "representative_window"}
    assert set(full) == expected | {"windows", "precision"} | pictures
    assert full["precision"] == {"predictions": "int8", "pictures": "float32"}
    assert set(answer(classifier, synthetic.wav("rain"), evidence=1, reduce_payload=1)) == {"predictions"}


def test_feature_maps_as_json_and_png_show_the_same(classifier: Classifier) -> None:
    as_json = answer(classifier, synthetic.wav("siren"), feature_maps="json")["visualization"]
    as_png = answer(classifier, synthetic.wav("siren"), feature_maps="png")["visualization"]
    assert list(as_json) == list(as_png) == feature_map_names(classifier.config.model)
    for name, entry in as_json.items():
        values = np.array(entry["values"])
        assert list(values.shape) == entry["shape"] == as_png[name]["shape"]
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(as_png[name]["png"]))))
        low, high = as_png[name]["range"]
        np.testing.assert_allclose(low + grey / 255 * (high - low), values, atol=(high - low) / 255 + 1e-4)
    assert set(
        answer(classifier, synthetic.wav("siren"), feature_maps="json", layers="conv1,layer4")[
            "visualization"
        ]
    ) == {
        "conv1",
        "layer4",
    }


def test_evidence_explains_the_logit() -> None:
    float32 = Classifier.load(STORE / "audiocnn.onnx")  # evidence is computed in float32
    biases = []
    for name in ("siren", "rain"):
        result = one(float32, synthetic.wav(name), evidence=True)
        logits = np.log(result.probs) * float32.config.temperature  # up to the same number for all classes
        bias = logits - result.shown.outputs["evidence"].mean(axis=(1, 2))
        biases.append(bias - bias.mean())
    np.testing.assert_allclose(*biases, atol=1e-3)


def test_an_explanation_has_the_evidence_of_all_that_is_predicted(classifier: Classifier) -> None:
    wish = replace(Options.parse({"top_k": 3}, classifier.config), explain=True)
    (result,) = classifier.predict_batch([synthetic.wav("siren")], [wish])
    assert isinstance(result, Result)
    reply = result.to_dict()
    rows = reply["explanations"]
    assert [(row["class"], row["confidence"]) for row in rows] == [
        (row["class"], row["confidence"]) for row in reply["predictions"]
    ]
    for row in rows:
        values = np.array(row["values"])
        assert list(values.shape) == row["shape"] == [len(row["hz"]), len(row["seconds"])]
        assert row["hz"] == sorted(row["hz"])
        assert row["start"] == row["seconds"][0] < row["seconds"][-1] < row["end"]
    wish = replace(Options.parse({"class": "rain"}, classifier.config), explain=True)
    (result,) = classifier.predict_batch([synthetic.wav("siren")], [wish])
    assert isinstance(result, Result)
    assert [row["class"] for row in result.to_dict()["explanations"]] == ["rain"]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.5])
def test_evidence_lies_where_the_sound_is(classifier: Classifier, seconds: float) -> None:
    waveform = np.zeros(5 * SAMPLE_RATE, np.float32)
    bell = synthetic.church_bells()[: SAMPLE_RATE // 2]
    first = round(seconds * SAMPLE_RATE)
    waveform[first : first + len(bell)] = bell
    evidence = answer(classifier, sound_file(waveform), evidence=True)["evidence"]
    strongest = int(np.array(evidence["values"]).sum(axis=0).argmax())
    # A cell is 0.64 s wide: one beside the sound's half second may still see it.
    assert seconds - 0.64 <= evidence["seconds"][strongest] <= seconds + 0.5 + 0.64


def test_a_map_knows_its_hz_and_seconds(classifier: Classifier) -> None:
    spectrogram = answer(classifier, sound_file(tone(5.0, hz=1000.0)), spectrogram=True)["input_spectrogram"]
    loudest = int(np.array(spectrogram["values"]).mean(axis=1).argmax())
    assert spectrogram["hz"][loudest] == pytest.approx(1000, rel=0.05)
    assert spectrogram["seconds"][:2] == [0, 0.02]
    assert len(spectrogram["seconds"]) == spectrogram["shape"][1]


def test_evidence_of_a_class_that_is_named(classifier: Classifier) -> None:
    reply = answer(classifier, synthetic.wav("siren"), evidence=True, **{"class": "rain"})
    assert reply["evidence"]["class"] == "rain"
    assert reply["evidence"]["shape"] == [4, 8]
    assert (reply["evidence"]["start"], reply["evidence"]["end"]) == (0.0, 5.0)


def test_the_waveform_for_pictures_keeps_the_peaks(classifier: Classifier) -> None:
    waveform = np.zeros(5 * SAMPLE_RATE, np.float32)
    waveform[123_457] = 0.9  # a click that every n-th sample would miss
    shown = answer(classifier, sound_file(waveform), waveform=True)["waveform"]
    assert len(shown["values"]) == 8000
    assert max(shown["values"]) == pytest.approx(0.9, abs=1e-3)
    assert (shown["sample_rate"], shown["duration"]) == (SAMPLE_RATE, 5.0)
    assert len(answer(classifier, sound_file(tone(0.1)), waveform=True)["waveform"]["values"]) == 4410


def test_the_spectrogram_is_what_the_network_saw(classifier: Classifier) -> None:
    shown = answer(classifier, sound_file(tone(5.0)), spectrogram=True)["input_spectrogram"]
    config = classifier.config.frontend
    assert shown["shape"] == [config.n_mels, config.num_frames]


def test_the_spectrogram_of_a_whole_clip(classifier: Classifier) -> None:
    """A tone that rises after 40 of 60 s, at its place in time and frequency, with its level."""
    low, high = tone(40.0, hz=500.0), tone(20.0, hz=4000.0)
    reply = answer(classifier, sound_file(np.concatenate([low, high])), clip_spectrogram=True)
    shown = reply["clip_spectrogram"]
    values = np.array(shown["values"])
    assert list(values.shape) == shown["shape"] == [len(shown["hz"]), len(shown["seconds"])]
    assert values.shape[1] <= 2000
    for seconds, hz in ((10.0, 500.0), (39.0, 500.0), (41.0, 4000.0), (59.0, 4000.0)):
        column = int(np.searchsorted(shown["seconds"], seconds))
        assert shown["hz"][int(values[:, column].argmax())] == pytest.approx(hz, rel=0.05)
    amplitude = float(np.abs(tone(1.0)).max())
    assert values.max() == pytest.approx(20 * np.log10(amplitude) - 6, abs=1.5)


def test_the_spectrogram_of_a_whole_clip_has_no_seams(classifier: Classifier) -> None:
    """Computed in blocks, it is what one computation gives."""
    noise = np.random.default_rng(0).normal(0, 0.1, 38 * SAMPLE_RATE).astype(np.float32)
    log_mel = classifier.engine.log_mel
    whole = 10 * np.log10(log_mel.power_mel(noise))
    np.testing.assert_allclose(clip_spectrogram(noise, log_mel).decibels, whole, atol=0.01)


def test_the_spectrogram_as_a_picture_is_the_same(classifier: Classifier) -> None:
    sound = sound_file(tone(5.0))
    numbers = answer(classifier, sound, spectrogram=True)["input_spectrogram"]
    picture = answer(classifier, sound, spectrogram="png")["input_spectrogram"]
    low, high = picture["range"]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["png"]))), np.float64)
    restored = low + grey / 255 * (high - low)
    assert np.abs(restored - np.array(numbers["values"])).max() <= (high - low) / 510 + 1e-3
    assert [picture[axis] for axis in ("hz", "seconds")] == [numbers[axis] for axis in ("hz", "seconds")]


def test_silence_is_called_silent(classifier: Classifier) -> None:
    assert answer(classifier, sound_file(np.zeros(SAMPLE_RATE, np.float32)))["is_silent"]
    assert answer(classifier, sound_file(tone(1.0) * 1e-4))["is_silent"]
    assert not answer(classifier, sound_file(tone(1.0) * 1e-2))["is_silent"]


def test_an_error_among_the_options_is_that_clips_answer(classifier: Classifier) -> None:
    good = Options.parse({}, classifier.config)
    results = classifier.predict_batch([synthetic.wav("rain")] * 2, [BadOptionError("no"), good])
    assert isinstance(results[0], BadOptionError)
    assert isinstance(results[1], Result)


def test_the_command_line_prints_json_and_goes_on_after_a_bad_file(tmp_path: Path, narrow: Path) -> None:
    good, bad = tmp_path / "rain.wav", tmp_path / "text.wav"
    good.write_bytes(synthetic.wav("rain"))
    bad.write_text("this is no sound")
    options = ("--model", narrow, "--json", "--top-k", "2")
    done = run("classify", bad, tmp_path / "none.wav", good, *options)
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("error", {}).get("code") for row in rows] == [
        "unsupported_format",
        "unreadable_file",
        None,
    ]
    assert len(rows[2]["predictions"]) == 2


def test_the_embedding_is_the_mean_over_windows(classifier: Classifier) -> None:
    rain, siren = synthetic.SOUNDS["rain"](), synthetic.SOUNDS["siren"]()
    reply = answer(classifier, sound_file(rain), embedding=True)
    assert len(reply["embedding"]) == classifier.config.num_features
    two = one(classifier, sound_file(np.concatenate([rain, rain])))
    other = one(classifier, sound_file(siren)).embedding
    assert two.embedding is not None
    assert other is not None
    assert _cosine(two.embedding, np.array(reply["embedding"])) > 0.99 > _cosine(two.embedding, other) + 0.1


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
