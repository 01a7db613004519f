"""SPDY frames: what one end encodes the other decodes, in any pieces, and no bytes do harm."""

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.kubelet import spdy

STREAMS = st.integers(1, 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
NAMES = st.text(st.characters(codec="ascii", categories=("Ll", "Nd")), min_size=1, max_size=20)
HEADERS = st.dictionaries(NAMES, st.text(max_size=40), max_size=8)
FRAMES: Any = st.one_of(
    st.builds(spdy.SynStream, STREAMS, HEADERS, st.booleans(), st.booleans(), STREAMS, st.integers(0, 7)),
    st.builds(spdy.SynReply, STREAMS, HEADERS, st.booleans()),
    st.builds(spdy.MoreHeaders, STREAMS, HEADERS, st.booleans()),
    st.builds(spdy.Data, STREAMS, st.binary(max_size=300), st.booleans()),
    st.builds(spdy.Reset, STREAMS, U32),
    st.builds(
        spdy.Settings,
        st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**24 - 1), U32), max_size=4).map(tuple),
        st.booleans(),
    ),
    st.builds(spdy.Ping, U32),
    st.builds(spdy.Goaway, STREAMS, U32),
    st.builds(spdy.WindowUpdate, STREAMS, st.integers(0, 2**31 - 1)),
)


def joined(frames: list[spdy.Frame]) -> list[spdy.Frame]:
    """Pieces of one DATA frame as one."""
    whole: list[spdy.Frame] = []
    for frame in frames:
        last = whole[-1] if whole else None
        if (
            isinstance(frame, spdy.Data)
            and isinstance(last, spdy.Data)
            and last.stream == frame.stream
            and not last.fin
        ):
            whole[-1] = spdy.Data(frame.stream, last.data + frame.data, frame.fin)
        else:
            whole.append(frame)
    return whole


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_what_is_encoded_comes_out_again_however_it_is_cut(frames: list[Any], cuts: list[int]) -> None:
    sender, receiver = spdy.Codec(), spdy.Codec()
    data = b"".join(map(sender.encode, frames))
    got: list[spdy.Frame] = []
    for i, size in enumerate([*cuts * (1 + len(data) // sum(cuts)), len(data)]):
        piece, data = data[:size], data[size:]
        got += receiver.feed(piece)
        assert i < 10_000
    assert joined(got) == joined(frames)


@given(st.binary(max_size=600))
def test_no_bytes_raise_anything_but_spdy_errors(data: bytes) -> None:
    try:
        spdy.Codec().feed(data)
    except spdy.SpdyError:
        pass


@given(st.binary(max_size=200), st.integers(1, 12))
def test_no_body_of_a_control_frame_raises_anything_but_spdy_errors(body: bytes, kind: int) -> None:
    try:
        spdy.Codec().feed(struct.pack(">HHI", 0x8003, kind, len(body)) + body)
    except spdy.SpdyError:
        pass


def syn_stream(raw: bytes) -> bytes:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = deflate.compress(raw) + deflate.flush(zlib.Z_SYNC_FLUSH)
    body = struct.pack(">IIBB", 1, 0, 0, 0) + block
    return struct.pack(">HHI", 0x8003, spdy.SYN_STREAM, len(body)) + body


def test_a_bomb_of_headers_is_refused_before_it_is_unpacked() -> None:
    bomb = syn_stream(struct.pack(">III", 1, 1, 10 << 20) + b"a" * (10 << 20))
    assert len(bomb) < spdy.CONTROL_BYTES_MAX
    with pytest.raises(spdy.SpdyError, match="headers of more than"):
        spdy.Codec().feed(bomb)


def test_bounds_are_refused_from_the_head_alone() -> None:
    with pytest.raises(spdy.SpdyError, match="control frame of"):
        spdy.Codec().feed(struct.pack(">HHI", 0x8003, spdy.PING, spdy.CONTROL_BYTES_MAX + 1))
    with pytest.raises(spdy.SpdyError, match="headers, at most"):
        spdy.Codec().feed(syn_stream(struct.pack(">I", 1 << 30)))
    with pytest.raises(spdy.SpdyError, match="version 2"):
        spdy.Codec().feed(struct.pack(">HHI", 0x8002, spdy.PING, 4) + b"1234")


def test_a_data_frame_is_passed_on_in_pieces_and_nothing_of_it_is_kept() -> None:
    codec = spdy.Codec()
    assert codec.feed(struct.pack(">II", 1, spdy.FIN << 24 | 1 << 20)) == []
    for _ in range(15):
        assert codec.feed(b"x" * 65536) == [spdy.Data(1, b"x" * 65536)]
        assert codec._buffer == b""
    assert codec.feed(b"y" * 65536) == [spdy.Data(1, b"y" * 65536, True)]


def test_headers_are_compressed_with_what_went_before_them() -> None:
    sender, receiver = spdy.Codec(), spdy.Codec()
    first = sender.encode(spdy.SynStream(1, {"streamtype": "stdout", "requestid": "0"}))
    second = sender.encode(spdy.SynStream(3, {"streamtype": "stdout", "requestid": "1"}))
    assert len(second) < len(first)
    assert [f.stream for f in receiver.feed(first + second) if isinstance(f, spdy.SynStream)] == [1, 3]
    with pytest.raises(spdy.SpdyError, match="headers"):
        spdy.Codec().feed(second)
