"""Where the milliseconds of one request go: `python -m benchmarks.parts`.

Every part of the way from bytes to JSON, one thread, without HTTP; for some parts also as it was before
it was made fast. All rows are measured in turn, round after round, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn import audio
from audiocnn.audio import synthetic, windows
from audiocnn.classifier import Classifier
from audiocnn.model.engine import Engine
from audiocnn.model.frontend import LogMel
from audiocnn.options import Options
from audiocnn.results import Result


class DenseLogMel(LogMel):
    """The front end as it was: one product with the whole bank, zeros and all."""

    def power_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """See `LogMel.power_mel`."""
        return self.bank @ self.power(waveform)


def parts(store: Path, clip: bytes) -> dict[str, Callable[[], object]]:
    """Name -> one execution of the part. Raises `ModelFileError` if a file of the store is missing."""
    precise = Engine(store / "audiocnn.onnx", threads=1)
    classifier = Classifier(Engine(store / "audiocnn-int8.onnx", threads=1))
    before = Classifier(precise)
    engine, config = classifier.engine, classifier.config.frontend
    dense = DenseLogMel(config).eval()
    dense.load_state_dict(engine.log_mel.state_dict())
    waveform = audio.decode(clip, sample_rate=config.sample_rate).waveform
    window = torch.from_numpy(windows.cut(waveform, config)[:1])
    log_mel = engine.log_mel(window).numpy()
    with_maps = Options.parse({"feature_maps": "json"}, classifier.config)
    with_tiles = Options.parse({"feature_maps": "png"}, classifier.config)
    answer, maps, tiles = (_answer(classifier, clip, o) for o in (None, with_maps, with_tiles))
    return {
        "decode": lambda: audio.decode(clip, sample_rate=config.sample_rate),
        "decode and resample to 48 kHz": lambda: audio.decode(clip, sample_rate=48_000),
        "windows": lambda: windows.cut(waveform, config),
        "log-mel, dense bank (before)": lambda: dense(window),
        "log-mel": lambda: engine.log_mel(window),
        "network, float32 (before)": lambda: precise.run(log_mel),
        "network, int8": lambda: engine.run(log_mel),
        "network, float32 with all maps": lambda: precise.run(log_mel, with_maps.map_outputs(engine.config)),
        "JSON, standard library (before)": lambda: json.dumps(answer.to_dict()).encode(),
        "JSON": lambda: orjson.dumps(answer.to_dict()),
        "JSON, all maps as numbers": lambda: orjson.dumps(maps.to_dict()),
        "JSON, all maps as PNG": lambda: orjson.dumps(tiles.to_dict()),
        "bytes to answer, float32": lambda: before.predict_batch([clip]),
        "bytes to answer, int8": lambda: classifier.predict_batch([clip]),
    }


def _answer(classifier: Classifier, clip: bytes, options: Options | None) -> Result:
    (result,) = classifier.predict_batch([clip], None if options is None else [options])
    assert isinstance(result, Result), result
    return result


@torch.inference_mode()
def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in track(range(rounds + 1), "measuring", console=Console(stderr=True)):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Entry point; the last line is JSON, in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--clip", type=Path, help="a sound file (5 s of synthetic rain as WAV)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip = args.clip.read_bytes() if args.clip else synthetic.wav("rain")
    result = measure(parts(args.store, clip), args.rounds)
    table = Table("part", "ms")
    for name, milliseconds in result.items():
        table.add_row(name, f"{milliseconds:.2f}")
    Console().print(table)
    print(json.dumps({name: round(milliseconds, 3) for name, milliseconds in result.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
