"""Loads the fixtures, which import PyTorch and more."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out tests to others (pytest-xdist) starts without them."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.helpers.fixtures")
