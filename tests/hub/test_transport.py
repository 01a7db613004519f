"""The edge port's sockets against real TLS clients on the loopback."""

import asyncio
import contextlib
import select
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from hub.handshakes import ADMIT_EVERY_S, READY_MAX, REFUSE_EVERY_S, STUCK_S
from hub.lobby import LobbyLimits
from hub.transport import Connection, EdgePort, TransportLimits
from tests.e2e.hostile import client_hello
from tests.hub.edge_pki import Pki

HUB_NAME = "hub.cloudhub.local"


class Echo:
    """Answers with what comes, in upper case; notes what happens."""

    def __init__(self) -> None:
        self.open: list[Connection] = []
        self.ended: list[str] = []
        self.got = b""
        self.silent = False
        self.admits = True
        self.fenced = False
        self.faults: list[str] = []
        self.ended_before: dict[bytes, int] = {}
        """How many had ended when something came."""

    def admitting(self) -> bool:
        return self.admits

    def unverified(self, conn: Connection, why: str) -> None:
        self.faults.append(why)

    def connected(self, conn: Connection) -> bool:
        self.open.append(conn)
        return conn.peercert() is not None

    def received(self, conn: Connection, data: bytes) -> None:
        self.got += data
        self.ended_before[data] = len(self.ended)
        if not self.silent:
            conn.send(data.upper())

    def closed(self, conn: Connection, reason: str) -> None:
        self.open.remove(conn)
        self.ended.append(reason)

    def may_write(self, conn: Connection) -> bool:
        return not self.fenced


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
        assert on.echo.faults == ["self-signed certificate in certificate chain"]


async def test_a_paused_peer_is_not_read_and_loses_nothing(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        await until(lambda: len(on.echo.open) == 1)
        conn = on.echo.open[0]
        conn.pause(0.2)
        on.clock.now += conn.idle_s + 1  # a peer that is not read is not idle
        writer.write(b"x" * 100_000)
        assert on.echo.got == b""
        assert await reader.readexactly(100_000) == b"X" * 100_000
        on.port.sweep()
        assert on.echo.open == [conn]
        await hang_up(writer)


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


@contextlib.asynccontextmanager
async def ticking(clock: Clock) -> AsyncIterator[None]:
    """The clock goes on, faster than the wall's."""

    async def tick() -> None:
        while True:
            clock.now += 0.5
            await asyncio.sleep(0.01)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()


async def test_peers_that_never_finish_the_handshake_keep_nobody_out(
    pki: Pki, client: ssl.SSLContext
) -> None:
    lobby = LobbyLimits(waiting_s=1000)
    async with serving(pki, handshakes_max=32, lobby=lobby) as on, contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            stack.enter_context(plain(on.address))
        async with ticking(on.clock):
            reader, writer = await on.dial(client)
            writer.write(b"in")
            assert await reader.readexactly(2) == b"IN"
        assert on.port.shaking <= 16, "half of the room is kept for known sources"
        assert on.port.counters.closed["handshake-crowded"] >= 184
        on.clock.now += 10.1
        on.port.sweep()
        assert on.port.shaking == 0 and on.port.counters.closed["handshake-timeout"] > 0
        await hang_up(writer)


async def test_handshakes_in_flight_hold_others_back_and_none_is_pushed_out_before_its_time(
    pki: Pki, client: ssl.SSLContext
) -> None:
    async with serving(pki, handshakes_max=8) as on, contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            stack.enter_context(plain(on.address))
        dialled = [asyncio.create_task(on.dial(client)) for _ in range(20)]
        await until(lambda: (on.port.shaking, on.port.waiting) == (4, 20))
        on.clock.now += STUCK_S - 0.1
        await asyncio.sleep(3 * ADMIT_EVERY_S)
        assert on.port.counters.closed == {} and on.echo.open == []
        on.clock.now += 0.2
        for _, writer in await asyncio.gather(*dialled):
            await hang_up(writer)
        # Those of peers that answer are not, and room was made for those that waited alone.
        assert on.port.counters.closed["handshake-crowded"] == 4 and on.port.counters.handshakes == 20


async def test_while_nobody_is_admitted_few_handshakes_are_made_and_all_when_it_is_over(
    pki: Pki, client: ssl.SSLContext
) -> None:
    async with serving(pki) as on:
        on.echo.admits = False
        dialled = [asyncio.create_task(on.dial(client)) for _ in range(20)]
        await until(lambda: on.port.counters.handshakes == 1 and on.port.waiting == 19)
        await asyncio.sleep(3 * ADMIT_EVERY_S)
        assert on.port.shaking == 0 and on.port.counters.handshakes == 1
        on.clock.now += REFUSE_EVERY_S
        await until(lambda: on.port.counters.handshakes == 2)
        await asyncio.sleep(3 * ADMIT_EVERY_S)
        assert on.port.waiting == 18
        on.echo.admits = True
        for _, writer in await asyncio.gather(*dialled):
            await hang_up(writer)
        assert on.port.counters.handshakes == 20


async def test_a_handshake_that_waits_for_the_hub_alone_is_not_pushed_out(
    pki: Pki, client: ssl.SSLContext
) -> None:
    """The loop stood still: what the peer has sent meanwhile is there."""
    async with serving(pki, handshakes_max=2) as on:
        with plain(on.address) as sock:
            await until(lambda: on.port.shaking == 1)
            dialled = asyncio.create_task(on.dial(client))
            await until(lambda: on.port.waiting == 1)
            sock.sendall(b"\x16\x03")  # the beginning of a record
            on.clock.now += STUCK_S + 1
            on.port._handshakes._admit()
            assert on.port.counters.closed == {}
            _, writer = await dialled  # it was read, and waits for the rest again
            assert on.port.counters.closed == {"handshake-crowded": 1}
            await hang_up(writer)


async def test_a_loop_that_does_not_keep_up_goes_on_with_what_it_has_begun(pki: Pki) -> None:
    """One step in a turn of the loop, and every turn takes long: others begin as some are answered."""
    async with serving(pki, handshakes_per_tick=1) as on, contextlib.AsyncExitStack() as stack:
        peers = [stack.enter_context(plain(on.address)) for _ in range(60)]
        for sock in peers:
            sock.sendall(client_hello())
        answered = most = 0
        while answered < len(peers):
            time.sleep(0.002)  # the fault
            most = max(most, on.port.shaking - answered)
            answered = len(select.select(peers, [], [], 0)[0])
            await asyncio.sleep(0)
        assert most <= READY_MAX + 2, "there would have been room for all"


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


async def test_peers_that_all_end_at_once_do_not_hold_up_one_that_stays(
    pki: Pki, client: ssl.SSLContext
) -> None:
    many = 150

    def dial(address: tuple[str, int]) -> ssl.SSLSocket:
        return client.wrap_socket(socket.create_connection(address, timeout=10), server_hostname=HUB_NAME)

    async with serving(pki) as on:
        leaving = [await asyncio.to_thread(dial, on.address) for _ in range(many)]
        stays = await asyncio.to_thread(dial, on.address)
        await until(lambda: len(on.echo.open) == many + 1)
        on.echo.silent = True
        for one in leaving:  # the loop does not run meanwhile: all have ended when it looks again
            one.sendall(b"last words")
            one.close()
        stays.sendall(b"still here")
        await until(lambda: b"still here" in on.echo.got)
        assert on.echo.ended_before[b"still here"] < many / 2
        await until(lambda: len(on.echo.ended) == many)
        assert on.echo.got.count(b"last words") == many
        stays.close()


@pytest.mark.parametrize("size", [1, 447, 448, 449, 16_383, 16_384, 16_385, 33_000])
async def test_a_record_of_any_length_is_received_whole(pki: Pki, client: ssl.SSLContext, size: int) -> None:
    async with serving(pki) as on:
        reader, writer = await on.dial(client)
        data = bytes(97 + i % 26 for i in range(size))
        writer.write(data)
        assert await reader.readexactly(size) == data.upper()
        await hang_up(writer)


def dial_from(source: str, address: tuple[str, int]) -> socket.socket:
    """A TCP connection from another address of the loopback network."""
    sock = socket.create_connection(address, timeout=10, source_address=(source, 0))
    sock.setblocking(False)
    return sock


async def test_a_node_whose_source_is_known_is_served_through_a_flood_of_half_open_connections(
    pki: Pki, client: ssl.SSLContext
) -> None:
    lobby = LobbyLimits(handshakes_s=50, waiting_max=200, per_source_max=200, waiting_s=1000)
    async with serving(pki, handshakes_max=20, lobby=lobby) as on:
        _, writer = await on.dial(client)  # from 127.0.0.1, which is known from here on
        await until(lambda: len(on.echo.open) == 1)
        flood = [dial_from("127.0.0.2", on.address) for _ in range(300)]
        try:
            await until(lambda: on.port.counters.refused > 0)
            assert on.port.waiting <= 200 and on.port.shaking <= 20

            async def tick() -> None:
                while True:
                    on.clock.now += 0.02  # as much as the lobby's timer
                    await asyncio.sleep(0.02)

            ticking = asyncio.create_task(tick())
            async with asyncio.timeout(30):
                reader, second = await on.dial(client)
                second.write(b"x")
                assert await reader.readexactly(1) == b"X"
            ticking.cancel()
            assert on.port.waiting > 0, "the flood still waits"
            await hang_up(second)
        finally:
            for sock in flood:
                sock.close()
        await hang_up(writer)


async def test_connections_beyond_the_rate_wait_and_are_all_served(pki: Pki, client: ssl.SSLContext) -> None:
    async with serving(pki, lobby=LobbyLimits(handshakes_s=5, waiting_s=1000)) as on:
        dialled = [asyncio.create_task(on.dial(client)) for _ in range(12)]
        await until(lambda: len(on.echo.open) == 5 and on.port.waiting == 7)
        on.clock.now += 1.0
        await until(lambda: len(on.echo.open) == 10)
        on.clock.now += 1.0
        for _, writer in await asyncio.gather(*dialled):
            await hang_up(writer)
        assert on.port.counters.refused == 0
