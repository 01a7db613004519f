"""What the event loop complains of when nobody awaits it, and which of that is no fault.

uvloop reads on after a peer has cut a TLS connection while the rest of a read was being decrypted, finds its own handle
closed, and calls that fatal ("the handler is closed"). The connection is gone either way, and whoever used it is told by
its own error; so that one is a note and everything else goes to the loop's own handler, which logs an error.
"""

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)

_MESSAGE = "Fatal error on SSL protocol"
_REASON = "the handler is closed"


def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`."""
    fault = context.get("exception")
    if (
        context.get("message") == _MESSAGE
        and isinstance(fault, RuntimeError)
        and str(fault).endswith(_REASON)
    ):
        log.info("a TLS connection was cut while it was read")
        return
    loop.default_exception_handler(context)
