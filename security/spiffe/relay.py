"""Bytes between two streams, until either ends: how gRPC's sockets, which tell nothing of a peer and take no peer check
of ours, are put behind sockets that do."""

import asyncio
import contextlib
from typing import Final

CHUNK_BYTES: Final = 65536


async def pump(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Carries bytes both ways and closes both when either has ended. Each direction holds at most CHUNK_BYTES beside what
    its writer buffers."""
    tasks = [
        asyncio.create_task(_copy(one[0], other[1]), name="relay"),
        asyncio.create_task(_copy(other[0], one[1]), name="relay"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # Before anything is waited for: whoever ends this a second time ends the waiting.
        one[1].close()
        other[1].close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close(one[1])
        await close(other[1])


async def close(writer: asyncio.StreamWriter) -> None:
    """Closes it, whatever state it is in."""
    writer.close()
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # An OSError is the end of a connection, which closes the other one too; there is nobody else to tell.
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
