"""The engine's HTTP: parsing in any pieces, bounds, multiplexed streams, image names."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelite.runtimes.container_record import parse_time
from edgelite.runtimes.engine_http import (
    HEAD_BYTES_MAX,
    Answer,
    BadAnswer,
    Frames,
    lines_of,
    quote,
    request,
)
from edgelite.runtimes.engine_images import auth_header, login_for, parse_reference

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n3\r\nefg\r\n0\r\nTrailer: 1\r\n\r\n"
SIZED = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\nabcdefg"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED


@given(st.sampled_from([CHUNKED, SIZED, INTERIM]), st.lists(st.integers(1, 9)))
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(data: bytes, sizes: list[int]) -> None:
    answer, body = Answer(), b""
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        body += answer.feed(piece)
    assert (body, answer.done) == (b"abcdefg", True)
    answer.end()


def test_a_body_without_a_length_lasts_until_the_connection_ends() -> None:
    answer = Answer()
    assert answer.feed(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nab") == b"ab"
    assert answer.feed(b"cd") == b"cd" and not answer.done
    answer.end()
    assert answer.done


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_is_done_with_its_head(status: int) -> None:
    answer = Answer()
    answer.feed(b"HTTP/1.1 %d X\r\n\r\n" % status)
    assert answer.done and answer.status == status


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"H" * (HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_no_answer_or_over_a_bound_is_told(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(data)


@pytest.mark.parametrize("data", [CHUNKED[:-2], SIZED[:-1], b"", b"HTTP/1.1 200"])
def test_an_answer_that_breaks_off_is_told(data: bytes) -> None:
    answer = Answer()
    answer.feed(data)
    with pytest.raises(BadAnswer):
        answer.end()


def test_a_request_cannot_be_split_by_what_it_carries() -> None:
    data = request("GET", "/a", [("x", "a&b=c d/\r\n")], [], b"")
    assert data.startswith(b"GET /a?x=a%26b%3Dc%20d%2F%0D%0A HTTP/1.1\r\n")
    with pytest.raises(ValueError, match="line break"):
        request("GET", "/a", [], [("X-A", "b\r\nX-C: d")], b"")
    assert quote("a:b@c/\u00e9") == "a%3Ab%40c/%C3%A9"


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40))), st.lists(st.integers(1, 11)))
def test_frames_are_taken_apart_in_whatever_pieces_they_come(
    frames: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    data = b"".join(bytes([n, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for n, p in frames)
    demux, found = Frames(), b""
    for size in [*sizes, len(data)]:
        found += demux.feed(data[:size])
        data = data[size:]
    assert found == b"".join(p for _, p in frames)


def test_a_stream_that_is_not_multiplexed_is_told_unless_it_is_raw() -> None:
    with pytest.raises(BadAnswer):
        Frames().feed(b"plain text")
    assert Frames(raw=True).feed(b"plain text") == b"plain text"


def test_lines_are_bounded() -> None:
    rest = bytearray()
    assert lines_of(rest, b'{"a":1}\r\n\n{"b', 10) == [b'{"a":1}\r']
    assert lines_of(rest, b'":2}\n', 10) == [b'{"b":2}']
    with pytest.raises(BadAnswer):
        lines_of(rest, b"x" * 11, 10)


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("image", "full", "policy"),
    [
        ("nginx", "docker.io/library/nginx:latest", "Always"),
        ("nginx:1.2", "docker.io/library/nginx:1.2", "IfNotPresent"),
        ("me/app", "docker.io/me/app:latest", "Always"),
        ("docker.io/nginx", "docker.io/library/nginx:latest", "Always"),
        ("localhost/bb:1", "localhost/bb:1", "IfNotPresent"),
        ("reg.example.com:5000/a/b__c-d.e", "reg.example.com:5000/a/b__c-d.e:latest", "Always"),
        ("a/b@" + DIGEST, "docker.io/a/b@" + DIGEST, "IfNotPresent"),
        ("a/b:1@" + DIGEST, "docker.io/a/b@" + DIGEST, "IfNotPresent"),
    ],
)
def test_image_names_are_completed_as_everywhere(image: str, full: str, policy: str) -> None:
    found = parse_reference(image)
    assert (found.full, found.default_policy) == (full, policy)


WRONG = [
    "",
    "Nginx",
    "a b",
    "a:",
    "a//b",
    "-a",
    "a-",
    "a..b",
    "a___b",
    "a-_b",
    "a:b:c",
    "a@sha256:12",
    "a.b:x/c",
    "http://a/b",
]


@pytest.mark.parametrize("image", [*WRONG, "a:" + "x" * 129, "a" * 256, "a@" + DIGEST + "0", "\u00e9"])
def test_wrong_image_names_are_told(image: str) -> None:
    with pytest.raises(ValueError):
        parse_reference(image)


def test_the_login_that_fits_best_is_used() -> None:
    logins = {
        "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
        "reg.example.com": {"username": "all", "password": "p"},
        "reg.example.com/team": {"username": "team", "password": "p/\u00ff?"},
    }

    def who(image: str) -> str | None:
        found = login_for(parse_reference(image), logins)
        return found and found["username"]

    assert who("nginx") == "hub"
    assert who("reg.example.com/x") == "all"
    assert who("reg.example.com/team/x") == "team"
    assert who("reg.example.com/teams/x") == "all"
    assert who("reg.example.com.evil.org/x") is None
    reference = parse_reference("reg.example.com/team/x")
    header = auth_header(reference, logins["reg.example.com/team"])
    value = json.loads(base64.urlsafe_b64decode(header))
    assert value == {"username": "team", "password": "p/\u00ff?", "serveraddress": "reg.example.com"}


def test_times_of_engines_are_read() -> None:
    assert parse_time("1970-01-01T00:00:01Z") == 1.0
    assert parse_time("2026-11-21T02:23:18.5Z") == parse_time("2026-11-21T04:23:18.500000000+02:00")
    assert parse_time("2024-02-29T23:59:59Z") == 1709251199.0
    assert parse_time("0001-01-01T00:00:00Z") == parse_time("") == 0.0
    for wrong in ("yesterday", "2026-11-21T02:23:18"):
        with pytest.raises(ValueError):
            parse_time(wrong)
