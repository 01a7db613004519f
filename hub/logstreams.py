"""Log streams: from a node's stream to one reader in the API, with credit, so that neither end keeps more than a window.

Invariant: at most CREDIT_BYTES of a stream are in flight or unread. A reader that goes away closes the stream.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from hub import errors

CREDIT_BYTES: Final = 256 << 10
GRANT_BYTES: Final = 64 << 10
"""Read bytes after which more are granted: a CREDIT for every chunk would be as many frames again."""
FIRST_BYTE_S: Final = 30.0
"""How long a node may take to begin or end a stream that does not follow."""

OPTIONS: Final[Mapping[str, Any]] = {
    "container": "",
    "follow": False,
    "previous": False,
    "tail": None,
    "since_s": None,
    "timestamps": False,
    "limit": None,
}
_ERRORS: Final[Mapping[str, type[errors.BadRequest] | type[errors.Gone]]] = {
    "NotFound": errors.BadRequest,
    "ContainerNotFound": errors.BadRequest,
    "BadRequest": errors.BadRequest,
    "Gone": errors.Gone,
}


def open_body(options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of OPEN (without credit) from `open_log`'s options. Raises BadRequest for an option unknown here."""
    unknown = set(options) - set(OPTIONS) - {"pod"}
    if unknown or not options.get("pod"):
        raise errors.BadRequest(f"log options: pod (a UID) is required, unknown are {sorted(unknown)}")
    return {"kind": "log", "pod": options["pod"], **{k: options.get(k, v) for k, v in OPTIONS.items()}}


class LogStream:
    """One open stream. `grant` and `close` send CREDIT and CLOSE."""

    def __init__(self, grant: Callable[[int], None], close: Callable[[], None], follow: bool) -> None:
        self._grant = grant
        self._close = close
        self._follow = follow
        self._chunks: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._failure: errors.ApiError | None = None

    def data(self, chunk: bytes) -> None:
        """From the node. The session has checked the credit."""
        self._chunks.append(chunk)
        self._wake.set()

    def granted(self, count: int) -> None:
        """Nothing goes down a log."""

    def end(self, error: Mapping[str, Any] | None) -> None:
        """The node closed the stream."""
        self._ended = True
        if error is not None:
            code, message = str(error.get("code", ""))[:64], str(error.get("message", ""))[:1024]
            kind = _ERRORS.get(code)
            self._failure = kind(message) if kind else errors.InternalError(f"the node: {code}: {message}")
        self._wake.set()

    def lost(self, node: str) -> None:
        """The connection is gone."""
        self.fail(errors.ServiceUnavailable(f'the connection to node "{node}" was lost while reading'))

    def fail(self, failure: errors.ApiError) -> None:
        """The stream ends with an error, after what has come already."""
        self._ended = True
        self._failure = failure
        self._wake.set()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """The bytes, in the chunks they came in. Raises the ApiError that ended the stream."""
        unread = 0
        try:
            while True:
                while self._chunks:
                    chunk = self._chunks.popleft()
                    unread += len(chunk)
                    yield chunk
                    if unread >= GRANT_BYTES and not self._ended:
                        self._grant(unread)
                        unread = 0
                if self._ended:
                    if self._failure is not None:
                        raise self._failure
                    return
                self._wake.clear()
                await self._woken()
        finally:
            if not self._ended:
                self._ended = True
                self._close()

    async def _woken(self) -> None:
        if self._follow:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(FIRST_BYTE_S):
                await self._wake.wait()
        except TimeoutError:
            raise errors.Timeout(f"the node sent nothing of the log for {FIRST_BYTE_S:.0f} s") from None
