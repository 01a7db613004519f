"""/metrics on a port of its own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from hub.config import ConfigError, load
from hub.metricsport import MetricsPort
from observability.metrics import Metrics


@contextlib.asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[tuple[str, int]]:
    metrics = Metrics()
    metrics.figures("cloudhub.edge", lambda: {"nodes": 3.0})
    port = MetricsPort(metrics, ("127.0.0.1", 0), **bounds)
    try:
        yield await port.start()
    finally:
        await port.stop()


async def test_a_scraper_without_a_certificate_reads_metrics_and_nothing_else() -> None:
    async with serving() as (host, number), aiohttp.ClientSession() as http:
        url = f"http://{host}:{number}"
        async with http.get(url + "/metrics") as answer:
            assert answer.status == 200
            assert "cloudhub_edge_nodes 3\n" in await answer.text()
        for method, path, code in (
            ("GET", "/", 404),
            ("GET", "/api/v1/nodes", 404),
            ("POST", "/metrics", 405),
        ):
            async with http.request(method, url + path) as answer:
                assert answer.status == code, path


async def test_a_connection_over_the_bound_is_closed_and_the_others_are_served() -> None:
    async with serving(connections_max=1) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).endswith(b"200 OK\r\n")
        late_reader, late_writer = await asyncio.open_connection(*address)
        assert await asyncio.wait_for(late_reader.read(), 10) == b""
        late_writer.close()
        writer.close()


async def test_who_connects_and_says_nothing_keeps_no_scraper_out() -> None:
    async with serving(connections_max=1, first_request_s=0.05) as address:
        silent, writer = await asyncio.open_connection(*address)
        assert await asyncio.wait_for(silent.read(), 30) == b""
        writer.close()
        deadline = time.monotonic() + 30
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"http://{address[0]}:{address[1]}/metrics") as answer:
                        assert answer.status == 200
                    break
                except aiohttp.ClientError:  # this machine took longer over it than a scraper may
                    assert time.monotonic() < deadline


async def test_who_says_nothing_does_not_hold_up_the_end() -> None:
    port = MetricsPort(Metrics(), ("127.0.0.1", 0), first_request_s=1000.0)
    address = await port.start()
    silent, first = await asyncio.open_connection(*address)
    idle, second = await asyncio.open_connection(*address)
    second.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await idle.readline()).endswith(b"200 OK\r\n")
    await asyncio.wait_for(port.stop(), 30)
    assert await asyncio.wait_for(silent.read(), 30) == b""
    first.close()
    second.close()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics_address"):
        load(None, {"metrics_address": "9090"})
