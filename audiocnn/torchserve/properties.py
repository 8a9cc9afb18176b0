"""`config.properties` as TorchServe reads it. Standard library only, so that probes start fast."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class ConfigError(ValueError):
    """The configuration cannot be used."""


def read_properties(path: Path) -> dict[str, str]:
    """The `key=value` lines of a TorchServe configuration; `ConfigError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def key_file(properties: Mapping[str, str]) -> Path | None:
    """The file of TorchServe's tokens, in its working directory; None if token authorization is disabled."""
    return None if properties.get("disable_token_authorization") == "true" else Path("key_file.json")


def ca_file(properties: Mapping[str, str]) -> Path | None:
    """The server's TLS certificate; None for plain HTTP."""
    is_tls = properties.get("inference_address", "").startswith("https:")
    return Path(properties["certificate_file"]) if is_tls and "certificate_file" in properties else None


def response_timeout_seconds(properties: Mapping[str, str]) -> float | None:
    """The shortest `responseTimeout` of the configured models; None if there is none.

    Raises `ConfigError` if `models` is not valid JSON.
    """
    try:
        models = json.loads(properties.get("models", "{}"))
        versions = [version for model in models.values() for version in model.values()]
        return min(
            (float(each["responseTimeout"]) for each in versions if "responseTimeout" in each), default=None
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the setting `models` is not the JSON that TorchServe expects: {error}") from error


def locate(path: Path, key: str) -> str:
    """`FILE:LINE` of a setting; the file alone if it has no such line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return str(path)
    numbers = (n for n, line in enumerate(lines, 1) if line.partition("=")[0].strip() == key)
    number = next(numbers, None)
    return f"{path}:{number}" if number else str(path)
