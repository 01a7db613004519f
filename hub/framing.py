"""Bytes to messages for all connections of a port, with one bound on what is unfinished.

Most reads hold whole frames, so all peers of a kind share one decoder; a peer whose message is cut keeps the decoder
that has its beginning until it is whole. So an idle connection has none.
"""

import struct
from typing import Final

from edgelite import wire
from edgelite.wire import HEADER_BYTES, MORE
from hub.peers import Peer
from hub.transport import Connection
from security.policy import JOINING, NODE, message_bytes_max

_header: Final = struct.Struct(wire.HEADER).unpack_from


class Framing:
    """`partial_bytes_max`: unfinished messages of all peers together; whoever exceeds it is refused."""

    def __init__(self, partial_bytes_max: int) -> None:
        self._bytes_max = partial_bytes_max
        self._scratch = {kind: _new_decoder(kind) for kind in (NODE, JOINING)}
        self._frame_bytes_max = min(_frame_bytes_max(kind) for kind in self._scratch)
        self._held: dict[Connection, int] = {}
        self.held_bytes = 0

    def decode(self, peer: Peer, data: bytes) -> list[tuple[int, int, bytes]]:
        """The messages (kind, stream, body) that `data` completes. Raises wire.WireError: close the connection."""
        decoder = peer.decoder
        if decoder is not None:
            messages = decoder.feed(data)
            self._note(peer, decoder)
            return messages
        # Most often one whole frame, and the decoder would find nothing else: no MORE, and no longer than what it takes.
        if len(data) >= HEADER_BYTES:
            message, flags, stream, length = _header(data)
            if length == len(data) - HEADER_BYTES and length <= self._frame_bytes_max and not flags & MORE:
                return [(message, stream, data[HEADER_BYTES:])]
        kind = JOINING if peer.session is None else NODE
        decoder = self._scratch[kind]
        try:
            messages = decoder.feed(data)
        except wire.WireError:
            self._scratch[kind] = _new_decoder(kind)
            raise
        if decoder.held_bytes():
            peer.decoder = decoder
            self._scratch[kind] = _new_decoder(kind)
            self._note(peer, decoder)
        return messages

    def forget(self, conn: Connection) -> None:
        """The connection has ended."""
        self.held_bytes -= self._held.pop(conn, 0)

    def _note(self, peer: Peer, decoder: wire.Decoder) -> None:
        held = decoder.held_bytes()
        self.held_bytes += held - self._held.pop(peer.conn, 0)
        if not held:
            peer.decoder = None
            return
        self._held[peer.conn] = held
        if self.held_bytes > self._bytes_max:
            raise wire.WireError("too many unfinished messages at this hub; try again later")


def _new_decoder(kind: str) -> wire.Decoder:
    return wire.Decoder(_frame_bytes_max(kind), message_bytes_max(kind))


def _frame_bytes_max(kind: str) -> int:
    return min(wire.FRAME_BYTES_MAX, message_bytes_max(kind))
