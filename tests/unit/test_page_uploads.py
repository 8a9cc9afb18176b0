"""Uploads of the page: charged, bounded in bytes and time, and never more on disk than allowed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import yaml
from starlette.requests import Request

from audiocnn.gateway.multipart import Budget
from audiocnn.gateway.page import Page
from audiocnn.gateway.page_uploads import make_room
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.words import friendly
from tests.helpers.paths import ROOT


def test_files_under_way_stay_and_dead_ones_go(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    for name, age in (("dead", 100), ("coming", 5), ("done/old.wav", 50), ("done/new.wav", 1)):
        (tmp_path / name).write_bytes(bytes(100_000))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert make_room(tmp_path, 300_000, 60) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["coming", "done", "new.wav", "old.wav"]
    assert make_room(tmp_path, 250_000, 60) == 50_000
    assert not (tmp_path / "done/old.wav").exists()
    assert make_room(tmp_path, 0, 60) == -100_000
    assert (tmp_path / "coming").exists()


def shown(path: Path, budget: Budget) -> str:
    """What the page says about a file."""

    async def ask(audio: bytes, request_id: str, options: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("it must not be asked")

    async def analyse() -> str:
        scope = {"type": "http", "headers": [], "client": ("127.0.0.1", 1)}
        page = Page(ask, lambda _: None, budget)
        return str([each async for each in page.analyse(str(path), gr.Request(Request(scope)))][-1][0])

    return asyncio.run(analyse())


def test_answering_holds_the_budget(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(bytes(1000))
    budget = Budget(999)
    assert friendly("busy")[0] in shown(tmp_path / "clip.wav", budget)
    assert budget.held == 0


def test_a_deleted_sound_is_asked_for_again(tmp_path: Path) -> None:
    assert friendly("sound_gone")[0] in shown(tmp_path / "gone.wav", Budget(1000))


def test_the_containers_have_room_for_them() -> None:
    """What fills its `/tmp` is evicted, or can write no more."""
    needed = 1.25 * Settings().max_stored_mb
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["gateway"]
    assert compose["tmpfs"] == ["/tmp:size=256m,mode=1777"]
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())
    volumes = {each["name"]: each["emptyDir"] for each in manifest["spec"]["template"]["spec"]["volumes"]}
    assert volumes["gateway-tmp"] == {"sizeLimit": "256Mi"}
    assert needed <= 256
    assert compose["environment"]["MAX_BUFFERED_MB"] == "256"  # Java has 1 GiB there
    pod = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MAX_BUFFERED_MB", "value": "256"} in pod
