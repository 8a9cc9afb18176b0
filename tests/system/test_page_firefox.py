"""The page in Firefox, driven by WebDriver BiDi over its own WebSocket."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from tests.helpers.gateways import RunningGateway
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.waiting import wait_until

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
pytestmark = pytest.mark.skipif(not FIREFOX, reason="no Firefox: apt-get install firefox-esr")


class Firefox:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded"])
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=120))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.problems.append(message["params"]["text"])
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]

    def open(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        target = {"context": self.context}
        reply = self.call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert reply["type"] == "success", reply
        return reply["result"].get("value", reply["result"])

    def give(self, file: Path) -> None:
        target = {"context": self.context}
        found = self.call(
            "script.evaluate", expression="document.querySelector('#file')", target=target, awaitPromise=False
        )
        element = {"sharedId": found["result"]["sharedId"]}
        self.call("input.setFiles", context=self.context, element=element, files=[str(file)])
        assert wait_until(lambda: self.state() in ("drawn", "failed"), 120)

    def state(self) -> Any:
        return self.evaluate("document.querySelector('#panel-sound').dataset.state")


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    (port,) = free_ports(1)
    command = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(tmp_path)]
    command += [f"--remote-debugging-port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"ws://127.0.0.1:{port}/session"

    def listens() -> bool:
        try:
            with connect(address, proxy=None):
                return True
        except (OSError, InvalidHandshake):
            return False

    try:
        assert wait_until(listens, 120)
        with connect(address, proxy=None, max_size=None) as connection:
            yield Firefox(connection)
    finally:
        process.terminate()
        process.wait(60)


def test_a_sound_is_answered_and_drawn(firefox: Firefox, gateway: RunningGateway) -> None:
    firefox.open(f"{gateway.url}/")
    assert wait_until(
        lambda: firefox.evaluate("document.querySelectorAll('#examples button').length") == 5, 60
    )
    firefox.give(ROOT / "samples" / "siren.wav")
    assert firefox.evaluate("document.querySelector('#answer h2').textContent") == "siren"
    colours = """(selector => {
        const canvas = document.querySelector(selector), pen = canvas.getContext("2d");
        const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    })"""
    for selector in ("#mel .tile", "#mel .overlay", "[data-layer=layer2] canvas", "#wave canvas"):
        assert firefox.evaluate(f"{colours}('{selector}')") > 1, selector
    # The stream: what `connect-src 'self'` means for WebSockets differed between browsers.
    first = """new Promise(resolve => {
        const socket = new WebSocket(new URL("ws/predict", location).href.replace("http", "ws"));
        socket.onopen = () => socket.send(JSON.stringify({sample_rate: 44100}));
        socket.onmessage = ({data}) => resolve(JSON.parse(data).type);
        socket.onerror = () => resolve("refused");
    })"""
    assert firefox.evaluate(first) == "ready"
    assert firefox.problems == []
