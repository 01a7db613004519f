"""The edge port's sockets against real TLS clients on the loopback."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from hub.transport import Connection, EdgePort, TransportLimits
from tests.hub.edge_pki import Pki

HUB_NAME = "hub.cloudhub.local"


class Echo:
    """Answers with what comes, in upper case; notes what happens."""

    def __init__(self) -> None:
        self.open: list[Connection] = []
        self.ended: list[str] = []
        self.got = b""
        self.silent = False

    def connected(self, conn: Connection) -> None:
        self.open.append(conn)

    def received(self, conn: Connection, data: bytes) -> None:
        self.got += data
        if not self.silent:
            conn.send(data.upper())

    def closed(self, conn: Connection, reason: str) -> None:
        self.open.remove(conn)
        self.ended.append(reason)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


@pytest.fixture(scope="module")
def client(pki: Pki) -> ssl.SSLContext:
    return pki.client("edge-1")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fixture:
    def __init__(self, port: EdgePort, echo: Echo, address: tuple[str, int], clock: Clock) -> None:
        self.port, self.echo, self.address, self.clock = port, echo, address, clock

    async def dial(self, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address, ssl=context, server_hostname=HUB_NAME)


@contextlib.asynccontextmanager
async def serving(pki: Pki, **limits: Any) -> AsyncIterator[Fixture]:
    echo, clock = Echo(), Clock()
    port = EdgePort(pki.server(), echo, TransportLimits(**limits), clock)
    address = port.open("127.0.0.1", 0)
    try:
        yield Fixture(port, echo, address, clock)
    finally:
        port.close()
        assert len(port) == 0 and port.backlog_bytes == 0 and port.shaking == 0


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def plain(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=5) as sock:
        yield sock


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_bytes_go_both_ways_and_the_certificate_is_known(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        cert = on.echo.open[0].peercert()
        assert cert is not None
        assert ("URI", "spiffe://cloudhub.local/node/default/edge-1/edge-1") in cert["subjectAltName"]
        await hang_up(writer)
        await until(lambda: on.echo.ended == ["eof"])


async def test_a_peer_without_certificate_is_let_in_and_known_as_such(pki: Pki) -> None:
    async with serving(pki) as on:
        _, writer = await on.dial(pki.client(None))
        await until(lambda: len(on.echo.open) == 1)
        assert on.echo.open[0].peercert() is None
        await hang_up(writer)


async def test_a_certificate_of_another_authority_is_refused(pki: Pki, tmp_path: Any) -> None:
    stranger = Pki(str(tmp_path))
    context = stranger.client("edge-1")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with serving(pki) as on:
        with contextlib.suppress(OSError):
            reader, writer = await on.dial(context)
            assert await reader.read() == b""
            await hang_up(writer)
        await until(lambda: on.port.counters.closed.get("handshake-failed") == 1)
        assert on.echo.open == [] and on.port.counters.handshakes == 0


async def test_the_alert_about_a_certificate_reaches_a_peer_that_is_writing(pki: Pki, tmp_path: Any) -> None:
    stranger = Pki(str(tmp_path))
    context = stranger.client("edge-1")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def dial(address: tuple[str, int]) -> str:
        with socket.create_connection(address, timeout=10) as raw:
            with context.wrap_socket(raw, server_hostname=HUB_NAME) as sock:
                sock.sendall(b"x" * 5000)  # a close with this unread would be a reset
                try:
                    return repr(sock.recv(100))
                except OSError as failure:
                    return str(failure)

    async with serving(pki) as on:
        for _ in range(5):
            assert "UNKNOWN_CA" in await asyncio.to_thread(dial, on.address)
        await until(lambda: len(on.port) == 0)
        assert on.port.shaking == 0 and on.port.counters.closed == {"handshake-failed": 5}


async def test_megabytes_arrive_whole_in_both_directions(pki: Pki, client: ssl.SSLContext) -> None:
    data = bytes(range(97, 123)) * 100_000
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data.upper()
        await hang_up(writer)


async def test_what_is_sent_before_close_arrives(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        on.echo.silent = True
        reader, writer = await on.dial(client)
        writer.write(b"x" * 50_000)  # unread input must not reset the farewell away
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        conn.send(b"farewell " * 10_000)
        conn.close("test")
        conn.send(b"never")
        assert on.echo.ended == ["test"]
        assert await reader.read(90_000) != b""
        got = await reader.read()
        assert got == b"" or got.endswith(b"farewell ")
        await hang_up(writer)
        await until(lambda: len(on.port) == 0)


async def test_garbage_instead_of_tls_is_closed_and_counted(pki: Pki) -> None:
    async with serving(pki) as on:
        with plain(on.address) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            await until(lambda: on.port.counters.closed.get("handshake-failed") == 1)
        assert len(on.port) == 0


async def test_peers_that_never_finish_the_handshake_keep_nobody_out(
    pki: Pki, client: ssl.SSLContext
) -> None:
    async with serving(pki, handshakes_max=32) as on, contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            stack.enter_context(plain(on.address))
        reader, writer = await on.dial(client)
        writer.write(b"in")
        assert await reader.readexactly(2) == b"IN"
        assert on.port.shaking <= 32
        assert on.port.counters.closed["handshake-crowded"] >= 168
        on.clock.now += 10.1
        on.port.sweep()
        assert on.port.shaking == 0 and on.port.counters.closed["handshake-timeout"] > 0
        await hang_up(writer)


async def test_a_silent_peer_is_closed_as_half_open(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        on.echo.open[0].set_idle(90.0)
        on.clock.now += 89.0
        on.port.sweep()
        writer.write(b"a")
        await reader.readexactly(1)
        on.clock.now += 89.0
        on.port.sweep()
        assert on.echo.ended == []
        on.clock.now += 2.0
        on.port.sweep()
        assert on.echo.ended == ["idle"]
        await hang_up(writer)


async def test_a_slow_reader_is_closed_at_its_bound(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki, backlog_bytes_max=1 << 20) as on:
        _, writer = await on.dial(client)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        for _ in range(300):
            conn.send(b"x" * 65536)
            await asyncio.sleep(0)
            if on.echo.ended:
                break
        assert on.echo.ended == ["slow"]
        writer.transport.abort()


async def test_a_backlog_that_stands_still_is_closed(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki, stall_s=30.0) as on:
        _, writer = await on.dial(client)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        conn.set_idle(10_000.0)
        for _ in range(110):
            conn.send(b"x" * 65536)
        await until(lambda: conn.backlog_bytes > 0 and not conn._writing)
        on.clock.now += 31.0
        on.port.sweep()
        assert on.echo.ended == ["slow"]
        writer.transport.abort()


async def test_connections_above_the_limit_are_refused(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki, connections_max=1) as on:
        _, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        with pytest.raises(OSError):
            await on.dial(client)
        assert on.port.counters.refused == 1
        await hang_up(writer)


async def test_new_connections_use_a_swapped_context(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        _, first = await on.dial(client)
        before = first.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        pki.hub_cert, pki.hub_key = pki.ca.issue_hub(
            "hub-0", "cloudhub.local", [], ["127.0.0.1"], time.time()
        )
        on.port.context = pki.server()
        _, second = await on.dial(client)
        assert second.get_extra_info("ssl_object").getpeercert()["serialNumber"] != before
        await hang_up(first)
        await hang_up(second)


async def test_frames_of_one_turn_leave_in_one_write(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        writes: list[int] = []
        real = conn.sock

        class Spy:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def write(self, data: bytes) -> int:
                writes.append(len(data))
                return real.write(data)

        conn.sock = Spy()  # type: ignore[assignment]
        for _ in range(10):
            conn.send(b"frame")
        assert await reader.readexactly(50) == b"frame" * 10
        assert writes == [50]
        conn.sock = real
        await hang_up(writer)


async def test_an_answer_overtakes_nothing_that_was_sent_before(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        conn.answer(b"at once ")
        assert on.port.counters.bytes_out == 8 and conn.backlog_bytes == 0
        conn.send(b"queued ")
        conn.answer(b"behind it ")
        long = b"y" * 40_000
        conn.answer(long)
        wanted = b"at once queued behind it " + long
        assert await reader.readexactly(len(wanted)) == wanted
        await hang_up(writer)


async def test_answers_to_a_peer_that_does_not_read_wait_in_order(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        wanted = b""
        while not conn.backlog_bytes:  # until the kernel takes no more
            piece = b"%08d" % len(wanted) * 2000
            conn.answer(piece)
            wanted += piece
        assert on.port.backlog_bytes == conn.backlog_bytes == 16_000
        conn.answer(b"last")
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await reader.readexactly(len(wanted) + 4) == wanted + b"last"
        assert conn.backlog_bytes == 0
        await hang_up(writer)


async def test_an_answer_to_a_peer_that_is_gone_ends_the_connection_once(
    pki: Pki, client: ssl.SSLContext
) -> None:
    async with serving(pki) as on:
        _, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        conn.sock.shutdown(socket.SHUT_RDWR)
        conn.answer(b"x")
        conn.answer(b"y")
        assert on.echo.ended == ["broken"] and len(on.port) == 0
        await hang_up(writer)


@pytest.mark.parametrize("size", [1, 447, 448, 449, 16_383, 16_384, 16_385, 33_000])
async def test_a_record_of_any_length_is_received_whole(pki: Pki, client: ssl.SSLContext, size: int) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        data = bytes(97 + i % 26 for i in range(size))
        writer.write(data)
        assert await reader.readexactly(size) == data.upper()
        await hang_up(writer)
