"""Benchmarks: what they measure and count, and the servers that they compare."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from aiohttp import web

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.model.engine import Engine
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve.ports import free_port
from audiocnn.torchserve.tune import Setting
from benchmarks import baselines, corpus, load, offline
from benchmarks.load import LoadResult, Sample, Target
from benchmarks.results import Results, summarise
from benchmarks.serving import grid, without_delay
from benchmarks.systems import HttpSystem
from tests.helpers.paths import STORE

SINGLE = Setting(workers=1, threads=1, batch=1, delay=0)
RAIN = synthetic.wav("rain")


def sample(*, latency: float = 0.01, clip: int = 0, status: int = 200, right: bool = True) -> Sample:
    return Sample(clip, 0.0, 0.0, latency, status, "rain", right)


# --- the load generator ---


async def stall(due: list[float], *, stall_after: int, stall_seconds: float) -> list[Sample]:
    """An open loop against a server that handles one request at a time, one of them slowly."""
    turn, answered = asyncio.Lock(), 0

    async def predict(request: web.Request) -> web.Response:
        nonlocal answered
        await request.read()
        async with turn:
            answered += 1
            await asyncio.sleep(stall_seconds if answered == stall_after else 0)
        return web.json_response({"predictions": [{"class": "rain"}]})

    app = web.Application()
    app.router.add_post("/", predict)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    measured = await load.open_loop_async(Target(f"http://127.0.0.1:{port}/", [b"x"], ["rain"]), due)
    await runner.cleanup()
    return measured.samples


def test_a_stall_delays_all_requests_that_are_due_meanwhile() -> None:
    due = [0.01 * number for number in range(100)]
    found = asyncio.run(stall(due, stall_after=30, stall_seconds=0.5))
    assert all(sample.is_right for sample in found)
    assert [sample.intended for sample in found] == due
    late = [sample for sample in found if sample.latency_ms > 100]
    assert len(late) >= 35  # a closed loop of one client would have seen one slow answer
    latencies = load.percentiles(found)
    assert latencies["p99_ms"] is not None
    assert latencies["p99_ms"] > 400


def test_percentiles_are_latencies_that_were_measured() -> None:
    found = load.percentiles([sample(latency=0.001 * ms) for ms in range(1, 101)])
    assert found == pytest.approx({"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p99_9_ms": 100})
    assert set(load.percentiles([sample(status=503, right=False)]).values()) == {None}


def test_latency_counts_from_the_intended_start() -> None:
    assert Sample(0, 1.0, 1.4, 1.5, 200, "rain", True).latency_ms == pytest.approx(500)


def test_no_server_is_a_failed_request_and_not_a_crash() -> None:
    target = Target(f"http://127.0.0.1:{free_port()}/", [b"x"], ["rain"])
    measured = load.open_loop(target, [0.0, 0.1])
    assert {(s.status, s.is_right) for s in measured.samples} == {(0, False)}
    assert measured.clips_per_second == 0


@pytest.mark.parametrize("poisson", [True, False])
def test_an_open_loop_has_its_rate(poisson: bool) -> None:
    due = load.due_times(rate=200, seconds=10, poisson=poisson)
    assert len(due) == 2000
    assert due[0] == 0
    assert due == sorted(due)
    assert due[-1] == pytest.approx(10, rel=0.1)


def test_the_top_class_is_read_from_our_answer(classifier: Classifier) -> None:
    (answer,) = baselines.replies(classifier, [RAIN])
    assert load.top_class(answer) == json.loads(answer)["predictions"][0]["class"]
    assert load.top_class(b'{"code": 503, "type": "ServiceUnavailableException"}') == ""


# --- results ---


def system(name: str) -> HttpSystem:
    return HttpSystem(name, SINGLE, server=None, target=None)


def test_ratios_are_of_one_round_each_at_its_best_concurrency() -> None:
    results = Results()
    # The machine was twice as slow in the second round, for both.
    for ours, theirs in ((100.0, 200.0), (50.0, 100.0), (90.0, 200.0)):
        results.add(system("a"), "closed 1", LoadResult(ours / 3, [sample()]))
        results.add(system("a"), "closed 8", LoadResult(ours, [sample()]))
        results.add(system("a"), "open 70%", LoadResult(1000.0, [sample()]))
        results.add(system("b"), "closed 8", LoadResult(theirs, [sample()]))
    assert results.ratio("a", "b") == 0.5
    assert results.ratio("a", "missing") is None


def test_wrong_and_failed_answers_have_no_latency() -> None:
    results = Results()
    bad = [sample(latency=9.0, right=False), sample(latency=9.0, status=503, right=False)]
    for name in ("torchserve", "gateway, raw", "bare", "torchserve, latency", "bare alone"):
        results.add(system(name), "closed 1", LoadResult(10.0, [sample(), *bad]))
    refused = sample(latency=9.0, status=503, right=False)  # an open loop asked for more than there is
    results.add(system("torchserve"), "open 70%", LoadResult(10.0, [sample(), refused]))
    summary = summarise(results, {"cores": 2})
    assert (summary["wrong"], summary["failed"]) == (5, 5)
    assert [row["refused"] for row in summary["rows"]] == [0, 0, 0, 0, 0, 1]
    assert all(row["p99_9_ms"] == pytest.approx(10) for row in summary["rows"])
    assert summary["served_over_bare"] == summary["gateway_raw_over_served"] == 1
    assert summary["gateway_form_over_served"] is None
    assert summary["gateway_raw_extra_ms"] == 0
    assert summary["alone_overhead_ms"] == pytest.approx(0)
    json.dumps(summary)


def test_cpu_time_is_the_median_over_the_rounds() -> None:
    results = Results()
    for java in (1.0, 5.0, 2.0):
        results.add(system("a"), "closed 1", LoadResult(10.0, [sample()]), {"java": java, "worker": 3.0})
    (row,) = (series.row() for series in results.series.values())
    assert row["cpu_ms"] == {"java": 2.0, "worker": 3.0}


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_everything_is_tuned_over_the_same_settings(cores: int, device: str) -> None:
    for quick in (True, False):
        settings = grid(cores, device, quick=quick)
        assert len(set(settings)) == len(settings) >= 2
        bare = without_delay(settings)
        key = {(s.workers, s.threads, s.batch) for s in settings}
        assert {(s.workers, s.threads, s.batch) for s in bare} == key
        assert len(bare) == len(key)


# --- the clips ---


def test_clips_on_which_the_engines_disagree_are_left_out() -> None:
    bodies = [b"a", b"b", b"c"]
    clips = corpus.agreed(bodies, "three", ["rain", "dog", "cat"], ["rain", "dog", "cow"])
    assert clips == corpus.Clips([b"a", b"b"], ["rain", "dog"], "three, 1 left out")
    with pytest.raises(ValueError, match="agree on no clip"):
        corpus.agreed(bodies, "three", ["rain"] * 3, ["dog"] * 3)


def test_the_top_class_of_each_clip(classifier: Classifier) -> None:
    assert corpus.top_classes(classifier, [RAIN, synthetic.wav("siren")]) == ["rain", "siren"]
    with pytest.raises(ValueError, match="cannot be classified"):
        corpus.top_classes(classifier, [b""])


def test_bodies_are_wav_as_in_the_release_of_esc50(esc50: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESC50_DIR", str(esc50.clips[0].path.parent.parent))
    bodies, origin = corpus.wav_files(5)
    assert len(set(bodies)) == 5
    assert "ESC-50" in origin
    for body in bodies:
        info = soundfile.info(io.BytesIO(body))
        assert (info.format, info.samplerate, info.channels) == ("WAV", 44_100, 1)
        assert info.duration <= 5.0


def test_without_esc50_the_synthetic_sounds_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESC50_DIR", str(tmp_path))
    bodies, origin = corpus.wav_files(9)
    assert len(bodies) == len(synthetic.SOUNDS)
    assert "synthetic" in origin


# --- the baselines ---


@pytest.fixture
def worker(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a worker with the narrow network; the folder for its ready file."""
    settings = baselines.BaselineSettings(str(narrow), "cpu", 1, 4, 50, str(tmp_path))
    monkeypatch.setenv(baselines.SETTINGS_VARIABLE, json.dumps(asdict(settings)))
    return tmp_path


def test_the_baseline_answers_with_maps(worker: Path) -> None:
    app = baselines.baseline_app()
    assert [path.name for path in worker.iterdir()] == [str(os.getpid())]  # the ready file
    body = {"audio_data": base64.b64encode(RAIN).decode()}

    async def ask(path: str) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://baseline"
        ) as client:
            return await client.post(path, json=body)

    drawn = asyncio.run(ask(baselines.PATHS["baseline"]))
    assert drawn.status_code == 200
    answer = drawn.json()
    assert len(answer["predictions"]) == 3
    maps = answer["visualization"]
    assert {"conv1", "layer1", "layer4", "layer4.block2.relu"} <= maps.keys()
    assert all(len(each["values"]) == each["shape"][0] for each in maps.values())
    assert answer["input_spectrogram"]["shape"] == [128, 251]
    assert answer["waveform"]["sample_rate"] == 44_100
    assert load.top_class(drawn.content) == answer["predictions"][0]["class"]
    assert len(drawn.content) > 200_000

    plain = asyncio.run(ask(baselines.WITHOUT_MAPS))
    assert plain.json()["predictions"] == answer["predictions"]
    assert "visualization" not in plain.json()


class CountingClassifier(Classifier):
    """Records the size of each batch."""

    sizes: list[int]

    def predict_batch(self, clips: Sequence[bytes], *args: Any) -> list[Any]:
        self.sizes.append(len(clips))
        return super().predict_batch(clips, *args)


def test_waiting_requests_are_answered_in_batches(narrow: Path) -> None:
    classifier = CountingClassifier(Engine(narrow))
    classifier.sizes = []
    batcher = baselines.Batcher(classifier, batch=4, delay_ms=50)

    async def ask() -> list[bytes]:
        running = asyncio.create_task(batcher.run())
        replies = await asyncio.gather(*(batcher.predict(RAIN) for _ in range(6)))
        running.cancel()
        return replies

    assert len(set(asyncio.run(ask()))) == 1
    assert sum(classifier.sizes) == 6
    assert max(classifier.sizes) == 4  # as many as the setting allows, though six waited


def test_fastapi_answers_as_the_classifier(worker: Path, narrow: Path) -> None:
    app = baselines.fastapi_app()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://fastapi") as client,
        ):
            return await client.post("/predict", content=RAIN)

    reply = asyncio.run(ask())
    (expected,) = Classifier(Engine(narrow)).predict_batch([RAIN])
    assert reply.json()["predictions"] == expected.to_dict()["predictions"]


# --- offline ---


def test_offline_counts_labels_and_real_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["filename,fold,label"]
    for name, label in (("rain", "rain"), ("church_bells", "church_bells"), ("siren", "not a class of ours")):
        (tmp_path / f"{name}.wav").write_bytes(synthetic.wav(name))
        rows.append(f"{name}.wav,1,{label}")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows.append("broken.wav,1,rain")
    (tmp_path / "sounds.csv").write_text("\n".join(rows) + "\n")
    model = str(STORE / "audiocnn.onnx")
    options = ["--providers", "cpu", "--batch", "3"]
    assert offline.main(["--model", model, "--data", str(tmp_path), *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["clips"], found["errors"], found["labelled"]) == (4, 1, 2)
    assert found["accuracy"] == 1.0
    assert found["unknown"] == 0.0
    assert found["device"] == "cpu"
    assert found["times_real_time"] * found["real_time_factor"] == pytest.approx(1)
    seconds = found["clips"] / found["clips_per_second"]
    assert found["real_time_factor"] == pytest.approx(seconds / 15, rel=0.01)  # three clips of 5 s


def test_offline_takes_a_folder_without_labels(
    tmp_path: Path, narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "rain.WAV").write_bytes(RAIN)
    assert offline.main(["--model", str(narrow), "--data", str(tmp_path), "--providers", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["clips"], found["accuracy"]) == (1, None)
    (tmp_path / "siren.wav").write_bytes(RAIN)  # beside folders that are no classes
    (tmp_path / "rain" / "night").mkdir(parents=True)
    (tmp_path / "rain" / "night" / "1.wav").write_bytes(RAIN)
    assert offline.main(["--model", str(narrow), "--data", str(tmp_path), "--providers", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["clips"], found["labelled"]) == (3, 1)


def test_offline_says_why_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline.main(["--model", str(served_model_path(STORE)), "--data", str(tmp_path)]) == 2
    (tmp_path / "rain.wav").write_bytes(RAIN)
    missing = ["--model", str(tmp_path / "no.onnx"), "--data", str(tmp_path), "--providers", "cpu"]
    assert offline.main(missing) == 2
    assert "no provider works" in capsys.readouterr().err
