"""The response header `Server-Timing`."""

from __future__ import annotations

import asyncio
import re
import time

from audiocnn.gateway import server_timing
from audiocnn.gateway.server_timing import ServerTiming


def durations(header: str | None) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"([\w-]+);dur=([\d.]+)", header or "")}


def test_nothing_measured_is_no_header() -> None:
    assert ServerTiming().header() is None


def test_entries_come_in_order_and_those_of_the_server_before_the_total() -> None:
    timing = ServerTiming()
    with timing.measured("receive"):
        time.sleep(0.01)
    with timing.measured("backend"):
        timing.add_backend("decode;dur=1.0, inference;dur=2.0")
    found = durations(timing.header())
    assert list(found) == ["receive", "backend", "decode", "inference", "total"]
    assert found["total"] >= found["receive"] >= 10.0


def test_several_replies_last_from_the_first_to_the_last_and_have_no_entries_of_the_server() -> None:
    timing = ServerTiming()
    for _ in range(2):
        with timing.measured("backend"):
            timing.add_backend("decode;dur=1.0")
            time.sleep(0.01)
    found = durations(timing.header())
    assert list(found) == ["backend", "total"]
    assert found["backend"] >= 20.0


def test_an_endless_header_of_the_server_is_dropped() -> None:
    timing = ServerTiming()
    with timing.measured("backend"):
        timing.add_backend("a" * 10_000)
    assert len(timing.header() or "") < 100


def test_tasks_of_a_request_share_its_times_and_requests_do_not() -> None:
    async def file() -> None:
        with server_timing.current().measured("backend"):
            await asyncio.sleep(0)

    async def request() -> str | None:
        timing = server_timing.begin()
        await asyncio.gather(file(), file())
        return timing.header()

    async def two() -> tuple[str | None, str | None]:
        async def idle() -> str | None:
            return server_timing.begin().header()

        first, second = await asyncio.gather(request(), idle())
        return first, second

    asked, idle = asyncio.run(two())
    assert "backend" in durations(asked)
    assert idle is None
