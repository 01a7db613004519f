"""Which complaints of the event loop are errors in the log of a hub."""

import asyncio
import logging

import pytest

from hub import loopfaults

CLOSED = RuntimeError(
    "unable to perform operation on <TCPTransport closed=True reading=False 0x1>; the handler is closed"
)


async def test_a_connection_that_was_cut_while_it_was_read_is_a_note_and_all_else_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    loop = asyncio.get_running_loop()
    loopfaults.handle(loop, {"message": "Fatal error on SSL protocol", "exception": CLOSED})
    assert [(r.name, r.levelname) for r in caplog.records] == [("hub.loopfaults", "INFO")]
    caplog.clear()
    for context in (
        {"message": "Fatal error on SSL protocol", "exception": RuntimeError("another")},
        {"message": "Fatal error on SSL protocol", "exception": OSError("the handler is closed")},
        {"message": "Task exception was never retrieved", "exception": CLOSED},
    ):
        loopfaults.handle(loop, context)
    assert [(r.name, r.levelname) for r in caplog.records] == [("asyncio", "ERROR")] * 3
