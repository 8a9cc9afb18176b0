"""Exported files -> `model_store/audiocnn.mar`, ready for TorchServe: `python -m export.archive`.

The archive holds all that a worker needs: the handler, the core package `audiocnn/`, the graphs with
weights, configuration and front end inside, and the class names.
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

from audiocnn import files
from audiocnn.errors import ModelFileError
from audiocnn.model.engine import Engine
from audiocnn.model.loading import CERTIFICATE
from audiocnn.torchserve import integrity
from export.common import NAME
from export.parity import read_certificate

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {"onnxruntime": ".onnx", "torchscript": ".pt"}
# What a worker does not need: the commands, and what is in front of it.
_NOT_SERVED = ("__pycache__", "batch", "client", "gateway", "torchserve", "released", "cli.py", "classify.py")
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
    """Copy what goes into the archive, as it will lie there; returns the engine over the staged files.

    Raises `ModelFileError` if a file is missing, or the store's certificate is missing, stale or failed.
    """
    served = read_certificate(store)["serves"] if engine_name == "auto" else NAME + SUFFIXES[engine_name]
    suffix = Path(served).suffix
    shutil.copytree(ROOT / "audiocnn", folder / "audiocnn", ignore=shutil.ignore_patterns(*_NOT_SERVED))
    # Beside int8 lies float32, for processors on which int8 cannot be trusted, for GPUs and for pictures.
    for name in dict.fromkeys((served, NAME + suffix, f"{NAME}-maps{suffix}", CERTIFICATE)):
        if not (store / name).is_file():
            raise ModelFileError(f"{store / name} is missing: run `make -B export`")
        shutil.copy(store / name, folder / name)
    engine = Engine(folder / served)
    (folder / "config.json").write_text(engine.config.to_json(), encoding="utf-8")
    settings = (ROOT / "handler" / "model-config.yaml").read_text(encoding="utf-8")
    assert _MODEL_LINE in settings
    chosen = settings.replace(_MODEL_LINE, f"model: {served}")
    (folder / "model-config.yaml").write_text(chosen, encoding="utf-8")
    names = {str(number): name for number, name in enumerate(engine.config.class_names)}
    (folder / "index_to_name.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
    return engine


def build(store: Path, engine_name: str, version: str | None) -> Path:
    """Stage, archive, unpack elsewhere and predict with it; only then does the file get its name."""
    with tempfile.TemporaryDirectory() as temporary:
        staged, built = Path(temporary, "mar"), Path(temporary, "built")
        built.mkdir()
        engine = stage(store, engine_name, staged)
        archiver = Path(sys.executable).with_name("torch-model-archiver")
        command = [str(archiver), "--model-name", NAME, "--version", version or engine.config.version]
        command += ["--handler", str(ROOT / "handler" / "audio_handler.py"), "--extra-files", str(staged)]
        command += ["--export-path", str(built)]
        subprocess.run(command, check=True)
        smoke_test(built / f"{NAME}.mar", Path(temporary, "unpacked"))
        part = store / f"{NAME}.mar.part"
        shutil.copy(built / f"{NAME}.mar", part)
        # Recorded first: who is killed in between has an old archive, and `make` builds it again.
        integrity.record(store / f"{NAME}.mar", files.sha256(part))
        os.replace(part, store / f"{NAME}.mar")
    return store / f"{NAME}.mar"


def smoke_test(archive: Path, folder: Path) -> None:
    """Load the handler from the unpacked archive in a process of its own, and predict with it."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", _SMOKE_TEST], cwd=folder, env=environment, check=False)
    if run.returncode:
        raise ModelFileError("the archive does not load in a clean process, see above: not written")


def _version(text: str) -> str:
    """TorchServe compares versions as numbers."""
    float(text)
    return text


def main() -> int:
    """Build the archive."""
    parser = argparse.ArgumentParser(prog="python -m export.archive", description=__doc__.split("\n\n")[0])
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument(
        "--engine", choices=["auto", *SUFFIXES], default="auto", help="(auto: what the certificate says)"
    )
    parser.add_argument(
        "--version", type=_version, help="a number: what TorchServe calls it (the checkpoint's own)"
    )
    args = parser.parse_args()
    try:
        archive = build(args.store, args.engine, args.version)
    except (ModelFileError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{archive}  {archive.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
