"""Build the TorchServe archive `model_store/audiocnn.mar` from the exported files.

It holds all that a worker needs: the handler, the core of the package `audiocnn`, the graphs (with weights,
configuration and front end inside) and the class names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from audiocnn import command, files
from audiocnn.config import Config
from audiocnn.errors import ModelFileError
from audiocnn.model.engine import CONFIG_KEY, Engine, open_graph
from audiocnn.model.loading import PARITY_REPORT, REFERENCE
from audiocnn.torchserve import integrity
from export import common
from export.common import NAME
from export.parity import read_report

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {"onnxruntime": ".onnx", "torchscript": ".pt"}
# Parts of `audiocnn` that a worker does not import.
_NOT_SERVED = (
    *("__pycache__", "batch", "client", "gateway", "torchserve", "released", "teach", "backbone"),
    *("__main__.py", "cli.py", "command.py", "bench.py", "check.py", "classify.py", "detect.py", "embed.py"),
    *("listen.py", "search.py", "calibration.py", "datasets.py", "detection_writers.py", "inputs.py"),
    *("embedding_table.py", "file_detector.py", "private_folder.py", "recording_time.py"),
    *("tables.py", "npz.py", "printing.py", "card.py", "onnx_file.py", "quantisation.py"),
)
_MODEL_LINE = "model: audiocnn.onnx"
_SMOKE_TEST = """
import pathlib, types
import audio_handler
from audiocnn.audio import synthetic

here = pathlib.Path.cwd()
assert pathlib.Path(synthetic.__file__).is_relative_to(here), "audiocnn/ is not in the archive"
context = types.SimpleNamespace(system_properties={"model_dir": ".", "gpu_id": None})
handler = audio_handler.AudioHandler()
handler.initialize(context)
(result,) = handler.classifier.predict_batch([synthetic.wav("rain")])
print("archive answers:", result.predictions[0])
"""


def stage(store: Path, engine_name: str, folder: Path) -> Engine:
    """Copy the contents of the archive into `folder`; returns the engine over the copied model.

    Raises `ModelFileError` if a file is missing, or the parity report is missing, outdated or failed.
    """
    served = read_report(store)["serves"] if engine_name == "auto" else NAME + SUFFIXES[engine_name]
    suffix = Path(served).suffix
    shutil.copytree(ROOT / "audiocnn", folder / "audiocnn", ignore=shutil.ignore_patterns(*_NOT_SERVED))
    (folder / "handler").mkdir()
    for name in ("__init__.py", "metrics.py"):
        shutil.copy(ROOT / "handler" / name, folder / "handler" / name)
    # Beside int8 goes float32: for processors where int8 is wrong, for GPUs and for feature maps.
    is_ours = Config.from_json(open_graph(store / served).metadata[CONFIG_KEY]).model is not None
    required = {served, PARITY_REPORT, *((NAME + suffix, f"{NAME}-maps{suffix}") if is_ours else ())}
    for name in sorted({*required, NAME + suffix, *(() if is_ours else (REFERENCE,))}):
        if not (store / name).is_file() and name not in required:
            continue
        if not (store / name).is_file():
            raise ModelFileError(f"{store / name} is missing: run `make -B export`")
        shutil.copy(store / name, folder / name)
    engine = Engine(folder / served)
    _write_settings(engine, served, folder)
    return engine


def _write_settings(engine: Engine, served: str, folder: Path) -> None:
    """Write `config.json`, `model-config.yaml` and `index_to_name.json`."""
    settings = (ROOT / "handler" / "model-config.yaml").read_text(encoding="utf-8")
    assert _MODEL_LINE in settings
    names = {str(number): name for number, name in enumerate(engine.config.class_names)}
    texts = {
        "config.json": engine.config.to_json(),
        "model-config.yaml": settings.replace(_MODEL_LINE, f"model: {served}"),
        "index_to_name.json": json.dumps(names, indent=1),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def build(store: Path, engine_name: str, version: str | None) -> Path:
    """Stage, archive, and predict with the unpacked archive; only then does the file get its name."""
    with tempfile.TemporaryDirectory() as temporary:
        staged, built = Path(temporary, "mar"), Path(temporary, "built")
        built.mkdir()
        engine = stage(store, engine_name, staged)
        _archive(staged, built, version or engine.config.version)
        smoke_test(built / f"{NAME}.mar", Path(temporary, "unpacked"))
        part = store / f"{NAME}.mar.part"  # not *.mar: TorchServe would load it
        shutil.copy(built / f"{NAME}.mar", part)
        # Recorded first: after a kill in between the checksum does not match, and `make` builds again.
        integrity.record(store / f"{NAME}.mar", files.sha256(part))
        os.replace(part, store / f"{NAME}.mar")
    return store / f"{NAME}.mar"


def _archive(staged: Path, out: Path, version: str) -> None:
    archiver = Path(sys.executable).with_name("torch-model-archiver")
    command = [str(archiver), "--model-name", NAME, "--version", version, "--export-path", str(out)]
    command += ["--handler", str(ROOT / "handler" / "audio_handler.py"), "--extra-files", str(staged)]
    if code := subprocess.run(command, check=False).returncode:
        raise ModelFileError(f"torch-model-archiver failed with exit code {code}, see above")


def smoke_test(archive: Path, folder: Path) -> None:
    """Predict with the handler of the unpacked archive, in a process without this checkout."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", _SMOKE_TEST], cwd=folder, env=environment, check=False)
    if run.returncode:
        raise ModelFileError("the archive does not load in a clean process, see above: not written")


def parse_version(text: str) -> str:
    """A number, since TorchServe compares versions as numbers; for argparse."""
    float(text)
    return text


def _options(parser: argparse.ArgumentParser) -> None:
    common.add_folders(parser, "store")
    engine_help = "engine of the worker (auto: the file that the parity report names)"
    parser.add_argument("--engine", choices=["auto", *SUFFIXES], default="auto", help=engine_help)
    parser.add_argument(
        "--version", type=parse_version, metavar="NUMBER", help="TorchServe's version (the checkpoint's)"
    )


@command.entry_point(_options, "--store model_store --version 1.1")
def main(args: argparse.Namespace) -> None:
    """Build the archive of the command line."""
    print(common.described(build(args.store, args.engine, args.version)))


if __name__ == "__main__":
    sys.exit(main())
