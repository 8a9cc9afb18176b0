"""The rate limit and the settings of the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from audiocnn.gateway.auth import TokenBucket
from audiocnn.gateway.errors import RateLimitedError
from audiocnn.gateway.settings import Settings


def test_the_rate_comes_back_with_time() -> None:
    now = 0.0
    rate = TokenBucket(60, clock=lambda: now)
    for _ in range(10):
        rate.acquire("a")
    with pytest.raises(RateLimitedError):
        rate.acquire("a")
    rate.acquire("b")
    rate.debit("a", 3)
    now = 3.5
    with pytest.raises(RateLimitedError) as caught:
        rate.acquire("a")
    assert caught.value.retry_after_seconds == pytest.approx(0.5)
    now = 4.1
    rate.acquire("a")


def test_the_gateways_own_page_may_ask_on_every_address_of_loopback() -> None:
    hosts = ("127.0.0.1", "localhost", "[::1]")
    assert set(Settings(gateway_port=9000).origins) == {f"http://{host}:9000" for host in hosts}


def test_a_key_beside_a_user_name_is_refused(tmp_path: Path) -> None:
    url = "http://operator:secret@10.0.0.1:8080"
    assert Settings(torchserve_url=url).torchserve_url == url
    with pytest.raises(ValidationError, match="TORCHSERVE_URL has a user name"):
        Settings(torchserve_url=url, torchserve_key_file=tmp_path / "key_file.json")
