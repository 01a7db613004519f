"""The gRPC call on HTTP/2 that carries etcd's watches, against a server that does what etcd does not do on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from shards.etcd import stream
from shards.etcd.stream import Stream, StreamEnded, open_stream

DEADLINE_S = 20.0
OK = [(":status", "200"), ("content-type", "application/grpc")]


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


class Peer(asyncio.Protocol):
    """One connection of a server. `begun`: what it does when it is asked; everything that is said to it is in `heard`."""

    def __init__(self, begun: "Callable[[Peer], None]", window: int = 65535) -> None:
        self._begun = begun
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.heard = bytearray()
        self.asked: dict[str, str] = {}
        self.lost = asyncio.Event()
        self.acknowledges = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.asked = {str(k): str(v) for k, v in event.headers}
                self._begun(self)
            elif isinstance(event, h2.events.DataReceived):
                self.heard += event.data
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
        self.flush()

    def answer(self, data: bytes) -> None:
        self.h2.send_headers(1, OK)
        self.data(data)

    def data(self, data: bytes) -> None:
        for at in range(0, len(data), 16384):
            self.h2.send_data(1, data[at : at + 16384])
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())  # type: ignore[attr-defined]


@asynccontextmanager
async def called(
    begun: Callable[[Peer], None],
    received: Callable[[bytes], None] = lambda _: None,
    window: int = 65535,
) -> AsyncIterator[tuple[Stream, Peer]]:
    peers: list[Peer] = []

    def made() -> Peer:
        peers.append(Peer(begun, window))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    call = await open_stream(endpoint, "/some/Call", [("hasleader", "true")], received, None, DEADLINE_S)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not peers or not peers[0].asked:
                await asyncio.sleep(0.001)
        yield call, peers[0]
    finally:
        call.close()
        server.close()


async def over(call: Stream) -> str:
    async with asyncio.timeout(DEADLINE_S):
        return await call.ended


async def test_messages_arrive_whole_and_in_order_however_they_are_cut() -> None:
    messages = [b"", b"one", b"x" * 100_000, b"last"]
    wire = b"".join(map(framed, messages))
    got: list[bytes] = []
    everything = asyncio.Event()

    def received(message: bytes) -> None:
        got.append(message)
        if message == b"last":
            everything.set()

    async with called(lambda peer: peer.answer(wire[:3]), received) as (_, peer):
        peer.data(wire[3:9])
        assert peer.asked[":path"] == "/some/Call" and peer.asked["hasleader"] == "true"
        assert peer.asked["content-type"] == "application/grpc" and peer.asked["te"] == "trailers"
        peer.data(wire[9:])
        async with asyncio.timeout(DEADLINE_S):
            await everything.wait()
    assert got == messages


async def test_what_is_sent_waits_for_the_room_that_the_peer_gives() -> None:
    messages = [bytes([i]) * 1000 for i in range(50)]
    async with called(lambda peer: peer.answer(b""), window=1500) as (call, peer):
        peer.acknowledges = False
        for message in messages:
            call.send(message)
        async with asyncio.timeout(DEADLINE_S):
            while len(peer.heard) < 1500:
                await asyncio.sleep(0.001)
        assert len(peer.heard) == 1500
        peer.acknowledges = True
        peer.h2.acknowledge_received_data(1500, 1)
        peer.flush()
        async with asyncio.timeout(DEADLINE_S):
            while len(peer.heard) < 50 * 1005:
                await asyncio.sleep(0.001)
    assert bytes(peer.heard) == b"".join(map(framed, messages))


async def test_a_peer_may_send_more_than_one_window() -> None:
    count = 3 * stream.WINDOW // (1 << 20)
    got = 0
    done = asyncio.Event()

    def received(message: bytes) -> None:
        nonlocal got
        got += 1
        if got == count:
            done.set()

    async with called(lambda peer: peer.answer(b""), received) as (_, peer):
        left = framed(bytes(1 << 20)) * count
        async with asyncio.timeout(DEADLINE_S):
            while left:
                room = min(peer.h2.local_flow_control_window(1), 1 << 20)
                peer.data(left[:room])
                left = left[room:]
                await asyncio.sleep(0.001)
            await done.wait()


def overlong(peer: Peer) -> None:
    """A frame larger than was allowed."""
    size = 20_000
    peer.transport.write(size.to_bytes(3, "big") + b"\0\0\0\0\0\1" + bytes(size))  # type: ignore[attr-defined]


def trailers(peer: Peer) -> None:
    peer.answer(b"")
    peer.h2.send_headers(1, [("grpc-status", "14"), ("grpc-message", "no%20leader")], end_stream=True)


def refusal(peer: Peer) -> None:
    peer.h2.send_headers(1, [*OK, ("grpc-status", "16")], end_stream=True)


def not_found(peer: Peer) -> None:
    peer.h2.send_headers(1, [(":status", "404")], end_stream=True)


@pytest.mark.parametrize(
    ("begun", "why"),
    [
        (trailers, "no leader"),
        (refusal, "gRPC status 16"),
        (not_found, "HTTP status 404"),
        (lambda peer: peer.answer(framed(b"", flag=1)), "compressed"),
        (lambda peer: peer.answer(b"\0\xff\xff\xff\xff"), "4294967295 bytes"),
        (lambda peer: peer.h2.reset_stream(1, h2.errors.ErrorCodes.CANCEL), "CANCEL"),
        (lambda peer: peer.h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM), "ENHANCE_YOUR_CALM"),
        (lambda peer: peer.transport.abort(), "connection"),  # type: ignore[attr-defined]
        (overlong, "HTTP/2"),
    ],
)
async def test_whatever_ends_the_call_is_told_and_its_connection_is_closed(
    begun: Callable[[Peer], None], why: str
) -> None:
    async with called(begun) as (call, peer):
        assert why in await over(call)
        call.send(b"nobody reads this")
        async with asyncio.timeout(DEADLINE_S):
            await peer.lost.wait()


async def test_what_the_consumer_raises_ends_the_call() -> None:
    def received(message: bytes) -> None:
        raise KeyError(message)

    async with called(lambda peer: peer.answer(framed(b"a") + framed(b"b")), received) as (call, _):
        with pytest.raises(KeyError, match="a"):
            await over(call)


async def test_where_nobody_listens_there_is_no_call() -> None:
    for endpoint in ("127.0.0.1:1", "nowhere", "host:port"):
        with pytest.raises(StreamEnded, match=endpoint):
            await open_stream(endpoint, "/", (), lambda _: None, None, DEADLINE_S)
