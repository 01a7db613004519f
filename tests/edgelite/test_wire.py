"""Runs on CPython under pytest and, unmodified, in the MicroPython VM."""

from edgelite import wire
from edgelite.wire import Decoder, WireError


def raises(call, *args):
    try:
        call(*args)
    except WireError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def test_a_frame_is_an_eight_byte_header_and_its_body():
    data = wire.frame(wire.PING, b"abc", 0x0102, 1)
    assert data == b"\x09\x01\x01\x02\x00\x00\x00\x03abc".replace(b"\x09", bytes([wire.PING]))
    assert wire.HEADER_BYTES == 8


def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut():
    data = (
        wire.frame(wire.PING)
        + wire.frame(wire.SET, b"body", 7)
        + wire.message(wire.DATA, b"0123456789", 9, 3)
    )
    want = [(wire.PING, 0, b""), (wire.SET, 7, b"body"), (wire.DATA, 9, b"0123456789")]
    assert Decoder().feed(data) == want
    for cut in range(len(data)):
        decoder = Decoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == want
    decoder = Decoder()
    out = []
    for at in range(len(data)):
        out += decoder.feed(data[at : at + 1])
    assert out == want


def test_a_long_message_travels_as_frames_of_bounded_length():
    data = wire.message(wire.SET, b"x" * 25, 0, 10)
    assert len(data) == 25 + 3 * 8
    assert Decoder(10, 25).feed(data) == [(wire.SET, 0, b"x" * 25)]


def test_a_message_that_just_fits_a_frame_is_one_frame():
    assert wire.message(wire.SET, b"x" * 10, 0, 10) == wire.frame(wire.SET, b"x" * 10)


def test_a_frame_of_100_mb_is_refused_from_its_header_alone():
    header = wire.frame(wire.SET, b"")[:4] + (100 << 20).to_bytes(4, "big")
    assert "104857600 bytes announced" in raises(Decoder().feed, header)


def test_a_message_above_the_bound_is_refused_although_every_frame_is_small():
    assert "longer than 25" in raises(Decoder(10, 25).feed, wire.message(wire.SET, b"x" * 26, 0, 10))


def test_another_type_may_not_interrupt_a_message_of_its_stream_but_other_streams_may():
    part = wire.frame(wire.SET, b"x", 3, wire.MORE)
    assert "interrupted" in raises(Decoder().feed, part + wire.frame(wire.PING, b"", 3))
    decoder = Decoder()
    assert decoder.feed(part + wire.frame(wire.PING)) == [(wire.PING, 0, b"")]
    assert decoder.feed(wire.frame(wire.SET, b"y", 3)) == [(wire.SET, 3, b"xy")]


def test_unfinished_messages_are_bounded_in_number():
    decoder = Decoder()
    for stream in range(4):
        decoder.feed(wire.frame(wire.DATA, b"x", stream, wire.MORE))
    assert "more than 4" in raises(decoder.feed, wire.frame(wire.DATA, b"x", 9, wire.MORE))


def test_a_set_body_carries_its_header_and_the_documents_bytes_untouched():
    body = wire.set_body(b'{"k":1}', b"\x00\xffdoc")
    assert wire.split_set_body(body) == (b'{"k":1}', b"\x00\xffdoc")
    raises(wire.split_set_body, b"")
    raises(wire.split_set_body, b"\x00\x09short")


def test_every_type_has_a_name():
    constants = [
        n for n in dir(wire) if n.isupper() and isinstance(getattr(wire, n), int) and n in wire.NAMES.values()
    ]
    assert len(constants) == len(wire.NAMES)
    for name in constants:
        assert wire.NAMES[getattr(wire, name)] == name


def test_a_frame_that_comes_byte_by_byte_is_not_copied_for_each_of_them():
    """Else a peer could make a megabyte be copied for every byte that it sends."""
    body = bytes(3000)
    data = wire.frame(wire.REPORT, body)
    decoder = Decoder()
    assert decoder.feed(data[:10]) == []
    held = decoder._buffer
    for at in range(10, len(data) - 1):
        assert decoder.feed(data[at : at + 1]) == []
        assert decoder._buffer is held
    assert decoder.held_bytes() == len(data) - 1
    assert decoder.feed(data[-1:] + wire.frame(wire.PING)[:3]) == [(wire.REPORT, 0, body)]
    assert decoder.held_bytes() == 3
    assert decoder.feed(wire.frame(wire.PING)[3:]) == [(wire.PING, 0, b"")]
    assert decoder.held_bytes() == 0
