"""A duplex stream whose client is here and whose node another replica serves: `hub.duplex.Line` over a relay's link.

The node's credit, and the client's, travel with the bytes, so the link's own window only has to hold what they allow.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from edgelite import wire
from hub.duplex import CREDIT_BYTES, DuplexStream
from security.frames import decode_close, decode_credit
from shards.ownership import Route
from shards.relay import Closing, Link, RelayError

if TYPE_CHECKING:
    from hub.nearend import NearEnd

FRAME_BYTES_MAX: Final = CREDIT_BYTES


class ChunkBody(msgspec.Struct):
    """OPEN of the far end: the longest DATA that the node takes."""

    chunk: int


_decode_chunk: Final = msgspec.json.Decoder(ChunkBody).decode


class NearStream:
    """See the module. `stream` is the client's end."""

    __slots__ = (
        "_decoder",
        "_near",
        "answered",
        "chunk_bytes",
        "heard",
        "link",
        "node",
        "route",
        "slot",
        "stream",
        "subject",
    )

    def __init__(
        self, near: "NearEnd", node: str, slot: int, route: Route, subject: str, link: Link, now: float
    ) -> None:
        self._near = near
        self._decoder = wire.Decoder(FRAME_BYTES_MAX, FRAME_BYTES_MAX)
        self.node = node
        self.slot = slot
        self.route = route
        self.subject = subject
        self.link = link
        self.answered = now
        self.heard = False
        self.chunk_bytes = 0
        self.stream = DuplexStream(node)
        self.stream.attach(self)

    def taken(self, data: bytes) -> None:
        """Bytes of the owner. Raises RelayError."""
        try:
            for kind, _, body in self._decoder.feed(data):
                self._frame(kind, body)
        except (wire.WireError, msgspec.MsgspecError, UnicodeError, RecursionError) as failure:
            raise RelayError(f"a stream: {failure}") from failure
        if self._near.knows(self):
            self._near.publish(self, self.link.passed_on(len(data)))

    def _frame(self, kind: int, body: bytes) -> None:
        if kind == wire.DATA:
            self.stream.data(body)
        elif kind == wire.CREDIT:
            self.stream.granted(decode_credit(body).c)
        elif kind == wire.CLOSE:
            self.stream.end(decode_close(body).error)
        elif kind == wire.OPEN:
            self.chunk_bytes = max(2, _decode_chunk(body).chunk)
            self.stream.woken()
        else:
            raise RelayError(f"a frame of type {kind} in a stream")

    # -- hub.duplex.Line ----------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Until it is known how much the node takes at a time."""
        return not self.chunk_bytes

    def put(self, data: bytes) -> None:
        self._send(wire.frame(wire.DATA, data))

    def grant(self, count: int) -> None:
        self._send(wire.frame(wire.CREDIT, b'{"c":%d}' % count))

    def close(self) -> None:
        self._near.end(self, Closing("client"))

    def _send(self, data: bytes) -> None:
        if not self._near.knows(self):
            return
        try:
            self._near.publish(self, self.link.send(data))
        except RelayError as failure:
            self._near.fail(self, str(failure))
