"""Write a model repository for Triton Inference Server, which OpenVINO Model Server reads too.

It serves the waveform graph: one window of mono samples in, probabilities and embedding out, with dynamic
batching and a warm-up. Class names and sample rate are in the parameters of the configuration, as they are in
`/v2/models/NAME/config` of the gateway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from audiocnn import command
from audiocnn.config import Config
from audiocnn.files import replacing, sha256
from audiocnn.model.engine import CONFIG_KEY, OnnxGraph, open_graph
from export import common, parity, waveform

MODEL = Path(waveform.FILE).stem
LABELS = "labels.txt"
MAX_BATCH = 8
QUEUE_MICROSECONDS = 5_000  # a request waits at most so long for others
_CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [{{ name: "waveform" data_type: TYPE_FP32 dims: [ {window} ] }}]
output [{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
model_warmup [{warmups}
]
{parameters}"""
_WARMUP = """
  {{
    name: "batch of {batch}"
    batch_size: {batch}
    inputs {{ key: "waveform" value {{ data_type: TYPE_FP32 dims: [ {window} ] zero_data: true }} }}
  }}"""
_OUTPUT = """
  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {size} ]{labels} }}"""
_PARAMETER = "parameters {{ key: {key} value {{ string_value: {value} }} }}\n"


def config_pbtxt(path: Path) -> str:
    """Triton's model configuration of a waveform file, in protobuf's text format."""
    graph = OnnxGraph(path, "cpu", None)
    config = Config.from_json(graph.metadata[CONFIG_KEY])
    window = config.frontend.window_samples
    return _CONFIG.format(
        name=MODEL,
        max_batch=MAX_BATCH,
        window=window,
        outputs=",".join(_output(name, graph.shapes[name][1]) for name in graph.output_names),
        delay=QUEUE_MICROSECONDS,
        warmups=",".join(_WARMUP.format(batch=batch, window=window) for batch in (1, MAX_BATCH)),
        parameters="".join(
            _PARAMETER.format(key=json.dumps(key), value=json.dumps(value))
            for key, value in _parameters(config, path).items()
        ),
    )


def _output(name: str, size: int | None) -> str:
    labels = f' label_filename: "{LABELS}"' if name == "probs" else ""
    return _OUTPUT.format(name=name, size=size, labels=labels)


def _parameters(config: Config, path: Path) -> dict[str, str]:
    return {
        "class_names": json.dumps(config.class_names, ensure_ascii=False),
        "sample_rate": str(config.frontend.sample_rate),
        "clip_seconds": f"{config.frontend.clip_seconds:g}",
        "version": config.version,
        "sha256": sha256(path)[:12],
    }


def export(store: Path, out: Path) -> Path:
    """Write `audiocnn-waveform/` into `out`; returns its path.

    Raises `ModelFileError` if a file is missing, or the parity report is missing, outdated or failed.
    """
    parity.read_report(store)
    source, folder = store / waveform.FILE, out / MODEL
    config = Config.from_json(open_graph(source).metadata[CONFIG_KEY])
    with replacing(folder / "1" / "model.onnx") as part:
        shutil.copy(source, part)
    (folder / LABELS).write_text("\n".join(config.class_names) + "\n", encoding="utf-8")
    (folder / "config.pbtxt").write_text(config_pbtxt(source), encoding="utf-8")
    return folder


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the model repository")
    common.add_folders(parser, "store")


@command.entry_point(_options, "build/triton --store model_store")
def main(args: argparse.Namespace) -> None:
    """Export the store of the command line."""
    print(export(args.store, args.out))


if __name__ == "__main__":
    sys.exit(main())
