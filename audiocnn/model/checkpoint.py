"""A checkpoint folder: `model.safetensors` (weights and front-end arrays) and `config.json`.

No pickle is read or written: loading an untrusted checkpoint runs no code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from audiocnn.config import WEIGHTS, Config
from audiocnn.errors import ModelFileError
from audiocnn.files import replacing, write_text
from audiocnn.model import mel
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN

CONFIG = "config.json"


def save(folder: Path, config: Config, log_mel: LogMel, model: AudioCNN, *, half: bool = False) -> Config:
    """Write a checkpoint; returns the config as written, with the front end's fingerprint.

    `half` stores the network's weights as float16 (half the file); the front end stays float32.
    Files are written to a temporary name and renamed, so a reader never sees a part of one.
    """
    config = replace(config, fingerprint=log_mel.fingerprint())
    tensors = {f"frontend.{name}": value for name, value in log_mel.state_dict().items()}
    for name, value in model.state_dict().items():
        is_weight = half and value.is_floating_point()
        tensors[f"model.{name}"] = value.half() if is_weight else value
    with replacing(folder / WEIGHTS) as part:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
        part.chmod(0o644)  # safetensors writes for its owner only; a server may run as another user
    write_text(folder / CONFIG, config.to_json())
    return config


def load(folder: Path) -> tuple[Config, LogMel, AudioCNN]:
    """Read a checkpoint: config, front end and network, float32, in eval mode.

    Raises `ModelFileError` if a file is missing, damaged, too new, or the stored front end is not the
    one whose fingerprint the config carries.
    """
    try:
        config = Config.from_json((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise ModelFileError(f"{folder} is not a complete checkpoint: {error}") from error
    log_mel = LogMel(config.frontend)
    model = AudioCNN(config.architecture, num_classes=len(config.class_names))
    _load_part(log_mel, tensors, "frontend.", folder)
    _load_part(model, tensors, "model.", folder)
    mel.check_fingerprint(log_mel.fingerprint(), config.fingerprint)
    return config, log_mel.eval(), model.eval()


def _load_part(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str, folder: Path) -> None:
    part = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    try:
        module.load_state_dict(part)  # casts float16 to the module's float32
    except RuntimeError as error:
        raise ModelFileError(f"{folder / WEIGHTS} does not fit its config.json: {error}") from error
