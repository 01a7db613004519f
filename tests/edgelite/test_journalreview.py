"""Journals whose checksums are right and whose contents are not."""

import json

import pytest

from edgelite.desired import encode_document, version_of
from edgelite.journalreview import faults, summary
from edgelite.runtimes.process_container import Container, parse
from edgelite.upstream import Upstream
from tests.edgelite.test_reconcile import Bench, container, document

CLAIM = {"store": "s", "gen": 1, "slot": 5, "epoch": 7, "id": "ab"}
INCARNATION = {"inc": "0" * 32, "fingerprint": "f" * 64, "boot": 3}
CONDITION = {"status": "False", "reason": "R", "message": "m", "since": 1.5}


def pod_record() -> bytes:
    """Of a pod with a container that has ended once and runs again."""
    bench = Bench(document([container(), container("side")], inits=[container("first")]))
    bench.runs("first")
    bench.ends("first")
    bench.runs("app")
    bench.ends("app", code=1)
    return bytes(bench.saved())


def launch_record(ended: bool) -> bytes:
    c = Container("u1", "app", 0, "launch", "/data", "boot")
    c.shim = (12, 345)
    if ended:
        c.status = c.exited(1, "Error", "", 5.0)
    return c.record()


def written() -> "dict[str, bytes]":
    """What an agent writes, by the functions that it writes with."""
    body = json.dumps(document()).encode()
    version = version_of(body)
    upstream = Upstream()
    reports = dict(upstream.add("event", "node", {"reason": "R"}))
    return {
        "doc/pod/shop/till/u1": encode_document(version, body),
        "doc/pod/shop/new/u2": encode_document("1" * 32, b"", ("Invalid", "no"), "mark"),
        "doc/pod/shop/changed/u3": encode_document("1" * 32, body, ("Invalid", "no"), "mark"),
        "doc/configmap/shop/c": encode_document(version_of(b"{}"), b"{}"),
        "doc/secret/shop/sealed": b"\x01\x02\x03",
        "doc/secret/shop/clear": encode_document(version_of(b"{}"), b"{}"),
        **{name: value for name, value in reports.items() if value is not None},
        "meta/claim": json.dumps(CLAIM).encode(),
        "meta/rev": b"17",
        "meta/incarnation": json.dumps(INCARNATION).encode(),
        "meta/conditions": json.dumps({"DiskPressure": CONDITION}).encode(),
        "meta/address": b"10.0.0.7",
        "meta/node": b"0" * 64,
        "run/workloads/pod/u1": pod_record(),
        "run/workloads/doc/u9": json.dumps(document()).encode(),
        "run/workloads/vault": b'["00ff"]',
        "run/workloads/token/u1/x": b"\x00\xff",
        "run/runtime/u1/app/0": launch_record(False),
        "run/runtime/u1/app/1": launch_record(True),
        "run/static/static/default/x": b"",
    }


FREE = ("meta/node", "run/workloads/token/u1/x", "run/static/static/default/x", "doc/secret/shop/sealed")
"""What nobody parses, or whoever opens its seal."""


def test_nothing_that_an_agent_writes_is_at_fault() -> None:
    assert faults(list(written().items())) == []
    parse("u1/app/1", launch_record(True))  # its reader agrees


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"[]", b"null", b'"x"', b"-1", b"\xff\xfe", b"[" * 100_000, b'{"v":5}\nx']
)
def test_another_value_in_any_entry_is_found(value: bytes) -> None:
    allowed = {"meta/conditions": (b"{}",), "run/workloads/vault": (b"[]", b"{}")}
    for name in written():
        if name in FREE or value in allowed.get(name, ()) or (name == "meta/address" and value.isascii()):
            continue
        if name.startswith("doc/secret/") and value[:1] != b"{":
            continue  # counts as sealed
        assert [found for found, _ in faults([(name, value)])] == [name], value[:20]


@pytest.mark.parametrize(
    "name", [name for name in written() if name.startswith(("meta/", "run/", "up/")) and name not in FREE]
)
def test_a_missing_field_or_one_of_another_type_is_found(name: str) -> None:
    value = written()[name]
    try:
        fields = json.loads(value)
    except ValueError:
        return  # the address
    if not isinstance(fields, dict):
        return
    needed = [f for f in fields if f not in ("exit", "labels", "annotations")]
    for field in needed:
        fewer = {k: v for k, v in fields.items() if k != field}
        if fewer or name != "meta/conditions":
            assert faults([(name, json.dumps(fewer).encode())]), field
        assert faults([(name, json.dumps({**fields, field: [[]]}).encode())]), field


def test_a_document_with_other_bytes_is_found_and_one_that_was_refused_is_not() -> None:
    body = b'{"kind":"Pod"}'
    good = encode_document(version_of(body), body)
    assert faults([("doc/pod/a/b/c", good)]) == []
    assert faults([("doc/pod/a/b/c", good + b" ")]) == [
        ("doc/pod/a/b/c", "its bytes are not those of its version")
    ]
    assert faults([("doc/pod/a b/c", good)]), "a key that no hub sends"


def test_the_summary_is_bounded() -> None:
    text = summary([(f"doc/{n}", "x" * 500) for n in range(1000)])
    assert text.startswith("1000 entries") and "and 995 more" in text and len(text) < 1024
