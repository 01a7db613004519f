"""Bytes to messages: the shared decoders and the shortcut for whole frames, against one decoder for each connection."""

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgelite import wire
from hub.framing import Framing
from security.policy import NODE, STRANGER, message_bytes_max

KINDS = st.sampled_from([wire.PING, wire.ACK, wire.DATA, wire.JOIN, 99])
FRAMES = st.builds(
    lambda kind, flags, stream, body, lie: (
        struct.pack(wire.HEADER, kind, flags, stream, len(body) + lie) + body
    ),
    KINDS,
    st.sampled_from([0, 0, 0, wire.MORE, 2]),
    st.sampled_from([0, 0, 1, 3]),
    st.binary(max_size=40),
    st.sampled_from([0, 0, 0, 0, 0, 1, 17_000, 2 << 20]),
)


class FakePeer:
    """As much of a Peer as framing sees."""

    def __init__(self, kind: str) -> None:
        self.session = None if kind == STRANGER else object()
        self.decoder: wire.Decoder | None = None
        self.identity = None
        self.conn = object()


@given(
    st.sampled_from([NODE, STRANGER]),
    st.lists(st.tuples(st.integers(0, 1), FRAMES, st.integers(0, 60)), max_size=12),
)
@settings(deadline=None)
def test_two_peers_get_what_a_decoder_each_would_give(kind: str, sent: list[tuple[int, bytes, int]]) -> None:
    longest = message_bytes_max(kind)
    framing: Any = Framing(1 << 20)
    peers = [FakePeer(kind), FakePeer(kind)]
    twins = [wire.Decoder(min(wire.FRAME_BYTES_MAX, longest), longest) for _ in peers]
    broken = [False, False]
    for who, data, cut in sent:
        for chunk in (data[:cut], data[cut:]):
            if not chunk or broken[who]:
                continue
            try:
                expected: Any = twins[who].feed(chunk)
            except wire.WireError as error:
                expected = str(error)
            try:
                got: Any = framing.decode(peers[who], chunk)
            except wire.WireError as error:
                got = str(error)
            assert got == expected
            broken[who] = isinstance(expected, str)
            if broken[who]:
                framing.forget(peers[who])
