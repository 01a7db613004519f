"""A duplex stream whose node is served here and whose client is at another replica: `hub.duplex.Sink` into a relay's link.

Nothing is kept here: what the node says goes on as it comes, as far as the client has granted, and the other way round.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from edgelite import wire
from hub import errors
from hub.duplex import CREDIT_BYTES, GRANTED_MAX, check_body
from hub.nodestreams import NodeStream, NodeStreams
from security.frames import decode_credit
from shards.relay import Closing, Link, OpenStream, RelayError

if TYPE_CHECKING:
    from hub.farend import FarEnd

FRAME_BYTES_MAX: Final = 64 << 10
"""Of what a client sends: it is cut to what the node takes, at most `hub.duplex.CHUNK_BYTES`."""


class FarStream:
    """See the module."""

    __slots__ = ("_decoder", "_far", "_line", "_room", "key", "link", "node")

    def __init__(self, far: "FarEnd", key: tuple[str, int], link: Link) -> None:
        self._far = far
        self.key = key
        self.link = link
        self.node = ""
        self._line: NodeStream | None = None
        self._decoder = wire.Decoder(FRAME_BYTES_MAX, FRAME_BYTES_MAX)
        self._room = 0
        """What the node has granted and the client has not used."""

    def open(self, streams: NodeStreams, opening: OpenStream) -> None:
        """Opens it at the node; the client hears why it cannot be."""
        self.node = opening.node
        try:
            body = check_body(opening.body)
            self._line = streams.open(opening.node, body, min(opening.credit, CREDIT_BYTES), self)
        except errors.ApiError as failure:
            self._far.ended(self, _failed(failure))
            return
        self._send(wire.OPEN, b'{"chunk":%d}' % self._line.chunk_bytes)

    def received(self, data: bytes) -> None:
        """Bytes of the client. Raises RelayError."""
        try:
            for kind, _, body in self._decoder.feed(data):
                self._frame(kind, body)
        except (wire.WireError, msgspec.MsgspecError) as failure:
            raise RelayError(f"a stream: {failure}") from failure
        if self._far.knows(self):
            self._far.publish(self, self.link.passed_on(len(data)))

    def _frame(self, kind: int, body: bytes) -> None:
        if self._line is None:
            return
        if kind == wire.DATA:
            if len(body) > min(self._room, self._line.chunk_bytes):
                raise RelayError(f"{len(body)} bytes where the node takes {self._room}")
            if self._line.held:
                raise RelayError("this hub may not act for the node at present")
            self._room -= len(body)
            self._line.put(body)
        elif kind == wire.CREDIT:
            self._line.grant(decode_credit(body).c)
        else:
            raise RelayError(f"a frame of type {kind} in a stream")

    def close(self) -> None:
        """The client is gone."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    # -- hub.duplex.Sink ----------------------------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        self._send(wire.DATA, chunk)

    def granted(self, count: int) -> None:
        # As the client counts it (`DuplexStream.granted`).
        self._room = min(self._room + count, GRANTED_MAX)
        self._send(wire.CREDIT, b'{"c":%d}' % count)

    def end(self, error: Mapping[str, Any] | None) -> None:
        self._line = None
        if error is not None:
            shown = {key: str(error.get(key, ""))[:1024] for key in ("code", "message")}
            self._send(wire.CLOSE, orjson.dumps({"error": shown}))
        self._far.ended(self, Closing("ended"))

    def lost(self, node: str) -> None:
        self._line = None
        self._far.ended(self, _failed(errors.ServiceUnavailable(f'the connection to node "{node}" was lost')))

    def _send(self, kind: int, body: bytes) -> None:
        if not self._far.knows(self):
            return
        try:
            self._far.publish(self, self.link.send(wire.frame(kind, body)))
        except RelayError as failure:
            self._far.drop(self, "slow", Closing("relay-slow", message=str(failure)))


def _failed(failure: errors.ApiError) -> Closing:
    return Closing("failed", failure.code, failure.reason, failure.message[:2048])
