"""The processor of this machine."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model; its architecture where the system does not tell."""
    return _fields().get("model name") or platform.machine()


def cpu_flags() -> list[str]:
    """The instruction sets of the processor, as Linux names them; empty where the system does not tell."""
    return _fields().get("flags", "").split()


def _fields() -> dict[str, str]:
    """The lines of `/proc/cpuinfo`, by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
