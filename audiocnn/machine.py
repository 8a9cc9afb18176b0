"""The processor of this machine."""

from __future__ import annotations

from pathlib import Path


def cpu_description() -> str:
    """The text of `/proc/cpuinfo`; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
