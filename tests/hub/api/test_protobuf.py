"""Protobuf bodies against what Go clients send: corpus lines hold an object in protobuf and as the same client's JSON."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.api import decode, own_types, protobuf, schema
from hub.api.decode import PROTOBUF
from hub.errors import ApiError, BadRequest, UnsupportedMediaType
from tests.hub.serving import CONFIGMAPS, DEPLOYMENTS, hub

CORPUS = [
    json.loads(line) for line in Path(__file__).with_name("protobuf_corpus.jsonl").read_text().splitlines()
]


def wire_of(line: Any) -> bytes:
    return base64.b64decode(line["protobuf"])


def plain(value: Any) -> Any:
    """Without nulls, which decoding drops."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v is not None}
    return [plain(v) for v in value] if isinstance(value, list) else value


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def chunk(field: int, data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def envelope(raw: bytes, api_version: str = "v1", kind: str = "ConfigMap") -> bytes:
    return protobuf.MAGIC + chunk(1, chunk(1, api_version) + chunk(2, kind)) + chunk(2, raw)


@pytest.mark.parametrize("line", CORPUS, ids=lambda line: line["kind"])
def test_a_go_clients_protobuf_says_what_its_json_says(line: Any) -> None:
    assert plain(protobuf.parse(wire_of(line))) == plain(line["json"])


def test_every_served_kind_of_kubernetes_has_a_table_and_is_in_the_corpus() -> None:
    seen = {(line["json"]["apiVersion"], line["kind"]) for line in CORPUS}
    for resource in schema.RESOURCES:
        if resource.group != own_types.GROUP:
            assert f"{resource.api_version} {resource.kind}" in protobuf.table().roots
            assert (resource.api_version, resource.kind) in seen


def test_the_table_has_every_field_of_the_published_schemas() -> None:
    """Both come from Kubernetes 1.34: a field in one alone would be lost, or reported as unknown."""
    messages = protobuf.table().messages

    def names(message: str) -> set[str]:
        out: set[str] = set()
        for field in messages[message].values():
            out |= names(field.type) if field.is_inline else {field.name}
        return out

    compared = 0
    for name in messages:
        package, version, kind = name.split(".")
        prefix = schema.META if package == "meta" else f"io.k8s.api.{package}.{version}."
        definition = schema.structs().get(prefix + kind)
        if definition is not None:
            envelope_has = {"apiVersion", "kind"}
            assert names(name) | envelope_has == set(definition.fields) | envelope_has, name
            compared += 1
    assert compared > 150


def test_an_unknown_field_is_reported_as_in_json() -> None:
    body = envelope(chunk(1, chunk(1, "a") + chunk(900, b"new")) + varint(77 << 3) + b"\x01")
    configmaps = schema.resource("", "v1", "configmaps")
    assert configmaps is not None
    decoded = decode.decode(configmaps, protobuf.parse(body))
    assert decoded.object["metadata"] == {"name": "a"}
    assert decoded.problems == [
        'unknown field "metadata.(protobuf field 900)"',
        'unknown field "(protobuf field 77)"',
    ]


META = chunk(1, chunk(1, "a"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "does not appear to be a protobuf message"),
        (b"{}", "does not appear to be a protobuf message"),
        (protobuf.MAGIC, "'Kind' or 'apiVersion' is missing"),
        (protobuf.MAGIC + chunk(1, chunk(2, "Pod")), "'Kind' or 'apiVersion' is missing"),
        (envelope(b"", "v1", "Service"), 'no kind "Service" is registered for version "v1"'),
        (envelope(META) + chunk(3, "gzip"), "must be plain protobuf"),
        (envelope(META) + chunk(4, "application/json"), "must be plain protobuf"),
        (envelope(META[:-1]), "unexpected EOF"),
        (envelope(b"\x0a\xff"), "unexpected EOF"),
        (envelope(b"\x0a" + b"\xff" * 9 + b"\x7f"), "integer overflow"),
        (envelope(b"\x0a" + b"\xff" * 11), "integer overflow"),
        (envelope(b"\x08\x01"), "wrong wireType = 0 for field metadata"),
        (envelope(b"\x0f"), "illegal wireType 7"),
        (envelope(b"\x0c"), "illegal wireType 4"),
        (envelope(b"\x02\x00"), "illegal tag 0 (wire type 2)"),
        (envelope(b"\xfb\x06" * 50), "unexpected EOF"),
        (envelope(META + META), "field metadata is given in parts"),
        (envelope(chunk(2, chunk(1, b"\xff"))), "invalid UTF-8"),
        (envelope(chunk(2, b"") * 110_000), "more than 200000 values"),
        (envelope(chunk(1, chunk(17, chunk(7, chunk(1, "{"))))), "json: "),
        (envelope(chunk(1, chunk(17, chunk(7, chunk(1, "[" * 5000))))), "json: "),
        (envelope(chunk(1, chunk(8, b"\x08" + varint(1 << 62)))), "is out of range"),
        (envelope(chunk(2, b"\x08" + varint(1 << 40)), "autoscaling/v1", "Scale"), "out of range for field replicas"),
    ],
)  # fmt: skip
def test_a_malformed_body_is_refused_with_what_is_wrong(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        protobuf.parse(body)
    assert message in caught.value.message


def test_a_kind_of_our_own_has_no_protobuf_form() -> None:
    with pytest.raises(UnsupportedMediaType):
        protobuf.parse(envelope(b"", "cloudhub.dev/v1alpha1", "JoinToken"))


def test_a_body_may_hold_as_many_values_as_it_can_in_practice() -> None:
    data = b"".join(chunk(2, chunk(1, f"k{i}") + chunk(2, "v")) for i in range(60_000))
    assert len(protobuf.parse(envelope(META + data))["data"]) == 60_000


def test_what_an_encoder_of_another_language_leaves_out_is_gos_zero_value() -> None:
    """Go writes every scalar; others leave defaults out, and Kubernetes reads both alike."""
    assert protobuf.parse(envelope(b"", "v1", "Event")) == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {},
        "involvedObject": {},
        "source": {},
        "reportingComponent": "",
        "reportingInstance": "",
    }


def test_numbers_may_come_packed() -> None:
    packed = chunk(4, varint(5) + varint(-1))
    pod = protobuf.parse(envelope(chunk(2, chunk(14, packed)), "v1", "Pod"))
    assert pod["spec"]["securityContext"] == {"supplementalGroups": [5, -1]}


def refused_or_a_value(body: bytes) -> None:
    try:
        value = protobuf.parse(body)
        found = schema.resource_of(value["apiVersion"], value["kind"])
        if found is not None:
            json.dumps(decode.decode(found, value).object)
    except ApiError as failure:
        assert failure.code in (400, 415)


@given(st.sampled_from(CORPUS), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_body_is_refused_or_a_value(line: Any, data: st.DataObject) -> None:
    body = bytearray(wire_of(line))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        how = data.draw(st.sampled_from(("set", "cut", "insert")))
        if how == "set":
            body[at] = data.draw(st.integers(0, 255))
        elif how == "cut" and at > 8:
            del body[at : at + data.draw(st.integers(1, 9))]
        else:
            body[at:at] = data.draw(st.binary(max_size=9))
    refused_or_a_value(bytes(body))


@given(st.sampled_from(sorted(protobuf.table().roots)), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_a_value(root: str, raw: bytes) -> None:
    api_version, kind = root.split()
    refused_or_a_value(envelope(raw, api_version.replace("*", "v1"), kind))


def corpus(kind: str) -> bytes:
    """The first object of the kind: one as people make it."""
    return wire_of(next(line for line in CORPUS if line["kind"] == kind))


async def test_objects_are_created_updated_and_deleted_by_protobuf() -> None:
    async with hub() as running:
        options: dict[str, Any] = {"content_type": PROTOBUF, "accept": f"{PROTOBUF},application/json"}
        made = await running.post(CONFIGMAPS, corpus("ConfigMap"), **options)
        assert made.status == 201, made.body
        assert made.headers["Content-Type"] == "application/json"
        assert made.json["data"] == {"a": "b", "empty": ""}
        assert made.json["binaryData"] == {"bin": "AP+A", "none": ""}
        body = envelope(chunk(1, chunk(1, "cm")) + chunk(2, chunk(1, "a") + chunk(2, "c")))
        changed = await running.call("PUT", CONFIGMAPS + "/cm", body, **options)
        assert changed.json["data"] == {"a": "c"}, changed.body
        made = await running.post(DEPLOYMENTS, corpus("Deployment"), **options)
        assert made.status == 201, made.body
        assert made.json["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": 0}
        wrong = envelope(b"\x5a\x05", "v1", "DeleteOptions")
        refused = await running.call("DELETE", CONFIGMAPS + "/cm", wrong, **options)
        assert (refused.status, refused.message) == (400, "protobuf: unexpected EOF")
        gone = await running.call(
            "DELETE", CONFIGMAPS + "/cm", envelope(b"", "v1", "DeleteOptions"), **options
        )
        assert gone.status == 200, gone.body


async def test_another_kind_than_the_paths_is_refused_and_strict_checks_hold() -> None:
    async with hub() as running:
        refused = await running.post(CONFIGMAPS, corpus("Secret"), content_type=PROTOBUF)
        assert refused.status == 400
        assert "does not match the expected kind (ConfigMap)" in refused.message
        body = envelope(META + chunk(99, b""))
        strict = await running.post(
            CONFIGMAPS, body, content_type=PROTOBUF, params={"fieldValidation": "Strict"}
        )
        assert strict.status == 400
        assert 'strict decoding error: unknown field "(protobuf field 99)"' in strict.message
        warned = await running.post(CONFIGMAPS, body, content_type=PROTOBUF)
        assert warned.status == 201
        assert 'unknown field \\"(protobuf field 99)\\"' in warned.warnings[0]


async def test_who_accepts_nothing_but_protobuf_is_told_that_it_is_not_written() -> None:
    async with hub() as running:
        assert (await running.get(CONFIGMAPS, accept=PROTOBUF)).status == 406
        assert (await running.get(CONFIGMAPS, accept=f"{PROTOBUF},*/*")).status == 200
