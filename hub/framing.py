"""Bytes to messages for all connections of a port, with bounds on what is unfinished: on its bytes, and on how long it stays so.

Most reads hold whole frames, so all peers of a kind share one decoder; a peer whose message is cut keeps the decoder
that has its beginning until it is whole. So an idle connection has none.
"""

import struct
import time
from collections.abc import Callable
from typing import Final

from edgelite import wire
from edgelite.wire import HEADER_BYTES, MORE
from hub.peers import Peer
from hub.transport import Connection
from security.policy import NODE, STRANGER, message_bytes_max

NODE_BYTES_MAX: Final = 8 << 20
"""Unfinished messages of one node, over all its connections: more than one connection may hold, so that no node uses up
what is there for all."""
_header: Final = struct.Struct(wire.HEADER).unpack_from


class Framing:
    """`partial_bytes_max`: unfinished messages of all peers together; whoever exceeds it is refused."""

    def __init__(self, partial_bytes_max: int, now: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = partial_bytes_max
        self._now = now
        self._scratch = {kind: _new_decoder(kind) for kind in (NODE, STRANGER)}
        self._frame_bytes_max = min(_frame_bytes_max(kind) for kind in self._scratch)
        self._held: dict[Connection, int] = {}
        self._by_node: dict[str, int] = {}
        self._since: dict[Connection, float] = {}
        """When the unfinished message of a connection began."""
        self.held_bytes = 0

    def decode(self, peer: Peer, data: bytes) -> list[tuple[int, int, bytes]]:
        """The messages (kind, stream, body) that `data` completes. Raises wire.WireError: close the connection."""
        decoder = peer.decoder
        if decoder is not None:
            messages = decoder.feed(data)
            self._note(peer, decoder, bool(messages))
            return messages
        # Most often one whole frame, and the decoder would find nothing else: no MORE, and no longer than what it takes.
        if len(data) >= HEADER_BYTES:
            message, flags, stream, length = _header(data)
            if length == len(data) - HEADER_BYTES and length <= self._frame_bytes_max and not flags & MORE:
                return [(message, stream, data[HEADER_BYTES:])]
        kind = STRANGER if peer.session is None else NODE
        decoder = self._scratch[kind]
        try:
            messages = decoder.feed(data)
        except wire.WireError:
            self._scratch[kind] = _new_decoder(kind)
            raise
        if decoder.held_bytes():
            peer.decoder = decoder
            self._scratch[kind] = _new_decoder(kind)
            self._note(peer, decoder, True)
        return messages

    def overdue(self, message_s: float) -> list[Connection]:
        """Whoever has been sending one message for longer than that: a byte now and then would hold it for ever."""
        before = self._now() - message_s
        return [conn for conn, since in self._since.items() if since < before]

    def forget(self, peer: Peer) -> None:
        """The connection has ended."""
        self._hold(peer, 0)
        self._since.pop(peer.conn, None)

    def _note(self, peer: Peer, decoder: wire.Decoder, is_new: bool) -> None:
        """`is_new`: what is unfinished now began with these bytes."""
        held = decoder.held_bytes()
        of_node = self._hold(peer, held)
        if not held:
            peer.decoder = None
            self._since.pop(peer.conn, None)
            return
        if is_new:
            self._since[peer.conn] = self._now()
        if of_node > NODE_BYTES_MAX:
            raise wire.WireError("too many unfinished messages of this node")
        if self.held_bytes > self._bytes_max:
            raise wire.WireError("too many unfinished messages at this hub; try again later")

    def _hold(self, peer: Peer, held: int) -> int:
        """Notes what a connection holds now; what all of its node's hold."""
        more = held - self._held.pop(peer.conn, 0)
        self.held_bytes += more
        if held:
            self._held[peer.conn] = held
        if peer.identity is None:
            return held
        name = peer.identity.node
        of_node = self._by_node.pop(name, 0) + more
        if of_node:
            self._by_node[name] = of_node
        return of_node


def _new_decoder(kind: str) -> wire.Decoder:
    return wire.Decoder(_frame_bytes_max(kind), message_bytes_max(kind))


def _frame_bytes_max(kind: str) -> int:
    return min(wire.FRAME_BYTES_MAX, message_bytes_max(kind))
