"""`config.properties` as TorchServe reads it. Imports nothing heavy: probes start in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class ConfigError(ValueError):
    """The configuration cannot be used."""


def read_properties(path: Path) -> dict[str, str]:
    """The `key=value` lines of a TorchServe configuration."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def key_file(properties: Mapping[str, str]) -> Path | None:
    """Where this server's TorchServe writes its tokens; None if it asks for none.

    It does unless it is told otherwise, and writes them into the folder that it is started from.
    """
    return None if properties.get("disable_token_authorization") == "true" else Path("key_file.json")


def ca_file(properties: Mapping[str, str]) -> Path | None:
    """The certificate that this server shows; None if it speaks plain HTTP."""
    is_tls = properties.get("inference_address", "").startswith("https:")
    return Path(properties["certificate_file"]) if is_tls and "certificate_file" in properties else None


def locate(path: Path, key: str) -> str:
    """`FILE:LINE` of a setting, or the file alone if it does not have it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return str(path)
    numbers = (n for n, line in enumerate(lines, 1) if line.partition("=")[0].strip() == key)
    number = next(numbers, None)
    return f"{path}:{number}" if number else str(path)
