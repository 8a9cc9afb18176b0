"""What the images are made from."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from audiocnn.torchserve.server import MALLOC
from tests.helpers.command_line import parse
from tests.helpers.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_allocator_is_set_as_by_audiocnn_serve() -> None:
    assert all(f"{name}={value}" in DOCKERFILE for name, value in MALLOC.items())


def test_the_constraints_are_those_of_pyproject() -> None:
    """Else `make constraints`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    direct = {re.split(r"[\[>=;]", line)[0].strip().lower() for line in lines} - {"audiocnn-serve"}
    pins = {line.split("==")[0] for line in (ROOT / "deploy" / "constraints.txt").read_text().splitlines()}
    assert {name.replace("_", "-") for name in direct} <= pins, "run: make constraints"


def test_what_is_copied_is_let_in() -> None:
    """.dockerignore names everything that the Dockerfile takes from the folder, and it exists."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()[:-1] if not source.startswith("$")}
    assert sources | {"checkpoints"} == let_in
    assert all((ROOT / source).exists() for source in let_in)


def test_nothing_else_gets_into_the_build() -> None:
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert "ADD " not in DOCKERFILE


@pytest.mark.parametrize("target", ["cpu", "gpu", "gateway"])
def test_every_image_is_a_target(target: str) -> None:
    assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)


def test_the_servers_command_offers_predictions_and_metrics_alone() -> None:
    """What compose starts; Kubernetes gives arguments of its own."""
    (command,) = re.findall(r"^CMD (\[.*serve.*(?:\\\n.*)*\])$", DOCKERFILE, re.MULTILINE)
    python, _, module, name, *flags = json.loads(command.replace("\\\n", ""))
    assert (python, module, name) == ("python", "audiocnn", "serve")
    arguments = parse("serve", flags)
    assert arguments["restart"] is False
    assert dict(pair.split("=", 1) for pair in arguments["changes"]) == {
        "inference_address": "http://0.0.0.0:8080",
        "metrics_address": "http://0.0.0.0:8082",
    }
