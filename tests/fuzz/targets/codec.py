"""The frames of the channel, how the hub splits them, and SPDY with its compressed headers.

However the bytes are cut, the same messages come out, they are written back to what was read, and no decoder ever holds
more than its bound.
"""

import zlib
from typing import Any

from edgelite import wire
from hub.framing import Framing
from hub.kubelet import spdy
from security.policy import NODE, STRANGER, message_bytes_max
from tests.fuzz.source import Source

INSTRUMENTED = ("edgelite.wire", "hub.framing", "hub.kubelet.spdy")

FRAME_BYTES_MAX, MESSAGE_BYTES_MAX = 256, 1000
"""Small, so that small inputs reach them."""
HELD_BYTES_MAX = FRAME_BYTES_MAX + wire.HEADER_BYTES + 4 * (wire.HEADER_BYTES + MESSAGE_BYTES_MAX)


def check(data: bytes) -> None:
    source = Source(data)
    (_frames, _framing, _set, _spdy)[source.byte() % 4](source)


def _cut(source: Source) -> list[bytes]:
    size = 1 + source.byte() % 64
    data = source.rest()
    return [data[at : at + size] for at in range(0, len(data), size)]


def _frames(source: Source) -> None:
    chunks = _cut(source)
    whole = wire.Decoder(FRAME_BYTES_MAX, MESSAGE_BYTES_MAX)
    expected: list[tuple[int, int, bytes]] | None
    try:
        expected = whole.feed(b"".join(chunks))
        assert whole.held_bytes() <= HELD_BYTES_MAX
    except wire.WireError:
        expected = None
    pieces = wire.Decoder(FRAME_BYTES_MAX, MESSAGE_BYTES_MAX)
    got: list[tuple[int, int, bytes]] = []
    try:
        for chunk in chunks:
            got += pieces.feed(chunk)
            assert pieces.held_bytes() <= HELD_BYTES_MAX
    except wire.WireError:
        assert expected is None, "refused in pieces, taken at once"
        return
    assert got == expected, "the cuts changed what arrived"
    again = wire.Decoder(FRAME_BYTES_MAX, MESSAGE_BYTES_MAX)
    for kind, stream, body in got:
        assert again.feed(wire.message(kind, body, stream, FRAME_BYTES_MAX)) == [(kind, stream, body)]


class _Peer:
    """As much of a Peer as framing sees."""

    def __init__(self, kind: str) -> None:
        self.session = None if kind == STRANGER else object()
        self.decoder: wire.Decoder | None = None
        self.identity = None
        self.conn = object()


def _framing(source: Source) -> None:
    """Two peers that share a decoder, against a decoder for each."""
    kind = source.of((NODE, STRANGER))
    longest = message_bytes_max(kind)
    bound = 1 << 12
    framing: Any = Framing(bound)
    peers = [_Peer(kind), _Peer(kind)]
    twins = [wire.Decoder(min(wire.FRAME_BYTES_MAX, longest), longest) for _ in peers]
    while source.left:
        who = source.byte() % 2
        chunk = source.take(1 + source.byte() % 48)
        if not chunk:
            return
        held = sum(twin.held_bytes() for twin in twins)
        try:
            expected = twins[who].feed(chunk)
        except wire.WireError:
            expected = None
        try:
            got = framing.decode(peers[who], chunk)
        except wire.WireError:
            assert expected is None or held + len(chunk) > bound - 64, "refused what its own decoder takes"
            return
        assert got == expected
        assert framing.held_bytes == sum(twin.held_bytes() for twin in twins)


def _set(source: Source) -> None:
    body = source.rest()
    try:
        header, document = wire.split_set_body(body)
    except wire.WireError:
        return
    assert wire.set_body(header, document) == body


def _spdy(source: Source) -> None:
    """Frames as they come, or with header blocks that do inflate: what they inflate to is the input's."""
    codec = spdy.Codec()
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    try:
        while source.left:
            if source.byte() % 2:
                frames = codec.feed(source.take(1 + source.byte()))
            else:
                kind, repeat = source.byte() % 12, 1 + source.word()
                raw = (source.take(source.byte()) * repeat)[: 1 << 20]
                block = deflate.compress(raw) + deflate.flush(zlib.Z_SYNC_FLUSH)
                body = source.take(source.of((4, 10))) + block
                frames = codec.feed(spdy._frame(kind, body, source.byte()))
            for frame in frames:
                if not isinstance(frame, spdy.Data):
                    spdy.Codec().encode(frame)
                headers = getattr(frame, "headers", {})
                size = sum(len(k) + len(v) for k, v in headers.items())
                assert size <= spdy.HEADER_BYTES_MAX and len(headers) <= spdy.HEADERS_MAX
    except spdy.SpdyError:
        return
