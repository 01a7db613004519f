"""The streams of the nodes that are connected here: logs, exec, attach and port-forward.

Only the owner of a node's slot opens one, and passes bytes down one, after the inline check (`Gateway.check`). A stream
ends with its connection.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from hub import errors
from hub.duplex import CHUNK_BYTES, FEATURES, DuplexStream, Sink, check_body
from hub.duplex import CREDIT_BYTES as DUPLEX_CREDIT_BYTES
from hub.logstreams import CREDIT_BYTES, LogStream, open_body
from hub.messages import StreamClosed, StreamCredit, StreamData
from hub.mirrorpods import edge_uid
from hub.peers import Peer

if TYPE_CHECKING:
    from hub.gateway import Gateway

_NOUNS: Final = {"log": "its logs can be read", "exec": "commands can be run there"}
_FEATURES: Final = {**FEATURES, "usage": "usage"}
USAGE_BYTES_MAX: Final = 1 << 20
"""Some thousand containers."""


class NodeStream:
    """One open stream of a node: `hub.duplex.Line`."""

    __slots__ = ("_streams", "number", "peer")

    def __init__(self, streams: "NodeStreams", peer: Peer, number: int) -> None:
        self._streams = streams
        self.peer = peer
        self.number = number

    @property
    def chunk_bytes(self) -> int:
        session = self.peer.session
        return min(CHUNK_BYTES, session.chunk_bytes) if session is not None else CHUNK_BYTES

    @property
    def held(self) -> bool:
        """This hub may not act for the slot."""
        return self._streams.held(self.peer)

    def put(self, data: bytes) -> None:
        self._streams.put(self, data)

    def grant(self, count: int) -> None:
        self._streams.grant(self, count)

    def close(self) -> None:
        self._streams.close(self)


class NodeStreams:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    # -- for readers and clients --------------------------------------------------------------------------------------

    async def open_log(self, node: str, options: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """A container's log from its node, chunk by chunk. `options`: pod (UID), container, follow, previous, tail,
        since_s, timestamps, limit (ARCHITECTURE.md, OPEN). Close the iterator to end the stream. Raises BadRequest,
        ServiceUnavailable (the node is not connected), TooManyRequests, and what the node answers."""
        body = open_body(options)
        line: NodeStream
        stream = LogStream(lambda credit: line.grant(credit), lambda: line.close(), bool(body["follow"]))
        line = self.open(node, body, CREDIT_BYTES, stream)
        async with contextlib.aclosing(stream.read()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def usage(self, node: str) -> bytes:
        """What a node and its containers use at this moment, as its agent tells (ARCHITECTURE.md, "Usage"). Raises as `open_log`
        does, and BadRequest where the agent does not tell it."""
        line: NodeStream
        stream = LogStream(lambda credit: line.grant(credit), lambda: line.close(), False)
        line = self.open(node, {"kind": "usage"}, CREDIT_BYTES, stream)
        told = bytearray()
        async with contextlib.aclosing(stream.read()) as chunks:
            async for chunk in chunks:
                told += chunk
                if len(told) > USAGE_BYTES_MAX:
                    raise errors.InternalError(
                        f"node {node} tells more than {USAGE_BYTES_MAX} bytes of its usage"
                    )
        return bytes(told)

    async def open_stream(self, node: str, body: Mapping[str, Any]) -> DuplexStream:
        """A stream of kind exec, attach or portforward; `body`: of OPEN (ARCHITECTURE.md), without credit. Await its
        `started`, and close it. Raises as `open_log` does, and BadRequest where the agent has no such streams."""
        stream = DuplexStream(node)
        stream.attach(self.open(node, check_body(body), DUPLEX_CREDIT_BYTES, stream))
        return stream

    def open(self, node: str, body: Mapping[str, Any], credit: int, sink: Sink) -> NodeStream:
        """Opens a stream whose answers go to `sink`. Raises as `open_log` does."""
        gateway, kind = self._gateway, body["kind"]
        peer = gateway.peers.get(node)
        if peer is None or peer.session is None:
            raise errors.ServiceUnavailable(
                f'node "{node}" is not connected; {_NOUNS.get(kind, "try again")} when it is back'
            )
        gateway.check(peer)
        if peer.session.state == "paused":
            raise errors.ServiceUnavailable("this hub may not act for the node at present; try again")
        if peer.session.state != "live":
            raise errors.ServiceUnavailable(f'node "{node}" is on hold; see the conditions of its Node')
        feature = _FEATURES.get(kind)
        if feature is not None and feature not in peer.session.speaks:
            raise errors.BadRequest(f'the agent of node "{node}" does not know {kind}; update edgelite there')
        asked = {**body, "pod": self._edge_uid(node, body["pod"])} if "pod" in body else body
        opened = peer.session.open_stream(asked, credit)
        if opened is None:
            raise errors.TooManyRequests(
                f'node "{node}" serves {gateway.config.streams_max} streams already; close one first'
            )
        number, actions = opened
        if peer.streams is None:
            peer.streams = {}
        peer.streams[number] = sink
        gateway.perform(peer, actions)
        return NodeStream(self, peer, number)

    def _edge_uid(self, node: str, uid: str) -> str:
        """The UID that the node knows the pod by: of a mirror pod, the static pod's."""
        pods = self._gateway.share.pods.cache.find("node", node)
        return next((edge_uid(entry) for entry in pods if entry.meta.uid == uid), uid)

    # -- from the gateway ---------------------------------------------------------------------------------------------

    def heard(self, peer: Peer, action: StreamData | StreamCredit | StreamClosed) -> None:
        """The node said something on a stream."""
        streams = peer.streams or {}
        sink = streams.get(action.stream)
        if sink is None:
            return
        match action:
            case StreamData(_, data):
                sink.data(data)
            case StreamCredit(_, count):
                sink.granted(count)
            case StreamClosed(number, error):
                del streams[number]
                sink.end(error)

    def resumed(self, peer: Peer) -> None:
        """What was held may leave now."""
        for sink in list((peer.streams or {}).values()):
            if isinstance(sink, DuplexStream):
                sink.woken()

    def end_all(self, peer: Peer) -> None:
        """Nothing more comes on the peer's streams."""
        streams, peer.streams = peer.streams, None
        if streams:
            assert peer.identity is not None
            for sink in streams.values():
                sink.lost(peer.identity.node)

    # -- from a stream ------------------------------------------------------------------------------------------------

    def held(self, peer: Peer) -> bool:
        self._gateway.check(peer)
        return peer.session is not None and peer.session.state != "live"

    def put(self, line: NodeStream, data: bytes) -> None:
        peer = line.peer
        if peer.session is not None and peer.conn.owner is not None:
            self._gateway.check(peer)
            self._gateway.perform(peer, peer.session.put(line.number, data))

    def grant(self, line: NodeStream, count: int) -> None:
        peer = line.peer
        if peer.session is not None and peer.conn.owner is not None:
            self._gateway.perform(peer, peer.session.grant(line.number, count))

    def close(self, line: NodeStream) -> None:
        peer = line.peer
        if peer.streams is not None:
            peer.streams.pop(line.number, None)
        if peer.session is not None and peer.conn.owner is not None:
            self._gateway.perform(peer, peer.session.close_stream(line.number))
