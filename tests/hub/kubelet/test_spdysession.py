"""A SPDY connection's server end: what a client may do, and what happens to one that does anything else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hub.kubelet import spdy
from hub.kubelet.spdysession import STREAMS_MAX, UNREAD_BYTES_MAX, SpdySession, SpdyStream
from tests.hub.hub_fixture import until


class Client:
    """A client's end in the same process: `hub.kubelet.tunnels.Tunnel` for the session."""

    def __init__(self) -> None:
        self.codec = spdy.Codec()
        self.up: asyncio.Queue[bytes] = asyncio.Queue()
        self.frames: list[spdy.Frame] = []
        self.streams: list[SpdyStream] = []
        self.refusal: str | None = None
        self.session = SpdySession(self, self._on_stream)
        self.task: asyncio.Task[None]

    def _on_stream(self, stream: SpdyStream) -> str | None:
        if self.refusal is None:
            self.streams.append(stream)
        return self.refusal

    def say(self, *frames: spdy.Frame) -> None:
        self.up.put_nowait(b"".join(map(self.codec.encode, frames)))

    async def receive(self) -> bytes:
        return await self.up.get()

    async def send(self, data: bytes) -> None:
        self.frames += self.codec.feed(data)

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    client = Client()
    client.task = asyncio.create_task(client.session.run())
    try:
        yield client
    finally:
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)


async def test_a_stream_is_replied_to_before_anything_is_said_on_it() -> None:
    async with connected() as client:
        client.say(spdy.SynStream(1, {"streamtype": "stdout"}))
        await until(lambda: client.streams)
        await client.streams[0].write(b"text")
        await client.streams[0].end()
        await client.streams[0].end()
        assert client.frames == [spdy.SynReply(1, {}), spdy.Data(1, b"text"), spdy.Data(1, b"", True)]


async def test_bytes_of_a_stream_come_in_order_until_its_end() -> None:
    async with connected() as client:
        client.say(spdy.SynStream(1, {}), spdy.Data(1, b"a"), spdy.SynStream(3, {}), spdy.Data(3, b"other"))
        client.say(spdy.Data(1, b"b"), spdy.Data(1, b"", True))
        await until(lambda: len(client.streams) == 2)
        first, second = client.streams
        assert [await first.read() for _ in range(3)] == [b"a", b"b", b""]
        assert await second.read() == b"other"
        client.say(spdy.Reset(3, spdy.CANCEL))
        assert await second.read() == b""


async def test_a_stream_that_nobody_reads_stops_the_reading_of_the_connection() -> None:
    async with connected() as client:
        client.say(spdy.SynStream(1, {}))
        for _ in range(64):
            client.say(spdy.Data(1, b"x" * 8192))
        await until(lambda: client.streams and client.up.qsize() < 64)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (64 - client.up.qsize()) * 8192 <= UNREAD_BYTES_MAX + 2 * 8192
        stream, got = client.streams[0], 0
        while got < 64 * 8192:
            got += len(await stream.read())


async def test_a_stream_that_is_refused_is_reset_and_others_go_on() -> None:
    async with connected() as client:
        client.refusal = "no"
        client.say(spdy.SynStream(1, {}), spdy.Data(1, b"lost"))
        client.say(spdy.Ping(1), spdy.Ping(2), spdy.WindowUpdate(1, 5), spdy.Settings(()))
        await until(lambda: len(client.frames) == 2)
        assert client.frames == [spdy.Reset(1, spdy.REFUSED_STREAM), spdy.Ping(1)]
        client.refusal = None
        client.say(spdy.SynStream(3, {}))
        await until(lambda: client.streams)


async def test_streams_at_a_time_are_bounded() -> None:
    async with connected() as client:
        for i in range(STREAMS_MAX + 1):
            client.say(spdy.SynStream(2 * i + 1, {}))
        await until(lambda: len(client.frames) == STREAMS_MAX + 1)
        assert client.frames[-1] == spdy.Reset(2 * STREAMS_MAX + 1, spdy.REFUSED_STREAM)
        client.say(spdy.Reset(1, spdy.CANCEL), spdy.SynStream(2 * STREAMS_MAX + 3, {}))
        await until(lambda: isinstance(client.frames[-1], spdy.SynReply))


async def test_what_breaks_the_protocol_ends_the_connection_and_its_streams() -> None:
    for wrong in (
        spdy.SynStream(2, {}),
        spdy.SynStream(1, {}),
    ):
        async with connected() as client:
            client.say(spdy.SynStream(1, {}))
            await until(lambda c=client: c.streams)  # type: ignore[misc]
            client.say(wrong)
            assert await asyncio.wait_for(client.streams[0].read(), 10) == b""
            await asyncio.wait_for(client.task, 10)
            assert client.session.gone


async def test_a_goodbye_waits_for_the_client_to_go() -> None:
    async with connected() as client:
        client.say(spdy.SynStream(1, {}))
        await until(lambda: client.streams)
        parting = asyncio.create_task(client.session.part(client.task))
        await until(lambda: client.frames[-1] == spdy.Goaway(1))
        await asyncio.sleep(0)
        assert not parting.done()
        client.up.put_nowait(b"")
        await asyncio.wait_for(parting, 10)
