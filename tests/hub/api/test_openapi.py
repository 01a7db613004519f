from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from hub.api import openapi, schema
from hub.api.kinds import kinds
from hub.errors import NotAcceptable, NotFound

Fields = dict[int, list[Any]]


def fields(message: bytes) -> Fields:
    """A protobuf message as number → values, by the wire format's rules alone."""
    out: Fields = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        assert tag & 7 in (0, 2)
        if tag & 7 == 0:
            out.setdefault(tag >> 3, []).append(varint())
        else:
            size = varint()
            assert at + size <= len(message)
            out.setdefault(tag >> 3, []).append(message[at : at + size])
            at += size
    return out


def named(messages: list[bytes]) -> dict[str, Fields]:
    pairs = [fields(m) for m in messages]
    return {p[1][0].decode(): fields(p[2][0]) for p in pairs}


def same_schema(tree: dict[str, Any], message: Fields) -> None:
    """Compares a JSON schema with gnostic's Schema message, both ways."""
    simple = {"$ref": 1, "format": 2, "description": 4}
    for key, number in simple.items():
        assert tree.get(key) == (message[number][0].decode() if number in message else None)
    assert tree.get("required", []) == [v.decode() for v in message.get(19, [])]
    assert tree.get("type") == (fields(message[22][0])[1][0].decode() if 22 in message else None)
    assert ("items" in tree, "additionalProperties" in tree) == (23 in message, 21 in message)
    if "items" in tree:
        same_schema(tree["items"], fields(fields(message[23][0])[1][0]))
    if "additionalProperties" in tree:
        same_schema(tree["additionalProperties"], fields(fields(message[21][0])[1][0]))
    properties = named(fields(message[25][0])[1]) if 25 in message and message[25][0] else {}
    assert list(tree.get("properties", {})) == list(properties)
    for name, inner in properties.items():
        same_schema(tree["properties"][name], inner)
    extensions = {k: orjson.loads(v[2][0]) for k, v in named(message.get(31, [])).items()}
    assert extensions == {k: v for k, v in tree.items() if k.startswith("x-")}


def test_protobuf_says_of_every_definition_what_json_says() -> None:
    document = fields(openapi.v2_protobuf())
    tree = orjson.loads(openapi.v2_json())
    definitions = named(fields(document[9][0])[1])
    assert list(definitions) == list(tree["definitions"])
    for name, message in definitions.items():
        same_schema(tree["definitions"][name], message)


def test_protobuf_has_every_operation_with_its_kind_and_parameters() -> None:
    document = fields(openapi.v2_protobuf())
    tree = orjson.loads(openapi.v2_json())
    paths = named(fields(document[8][0])[2])
    assert list(paths) == list(tree["paths"])
    methods = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}
    for path, item in tree["paths"].items():
        assert {methods[m] for m in item} == paths[path].keys()
        for method, operation in item.items():
            message = fields(paths[path][methods[method]][0])
            gvk = named(message[13])["x-kubernetes-group-version-kind"][2][0]
            assert orjson.loads(gvk) == operation["x-kubernetes-group-version-kind"]
            assert len(message.get(8, [])) == len(operation["parameters"])


def test_negotiation_offers_json_and_protobuf() -> None:
    assert openapi.v2("application/json")[1] == "application/json"
    assert openapi.v2("")[1] == openapi.v2("*/*")[1] == "application/json"
    for accept in (
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf;q=0.9, application/json",
    ):
        # Go's mime parser refuses the @ in the answer's Content-Type.
        assert openapi.v2(accept) == (openapi.v2_protobuf(), openapi.V2_PROTOBUF)
    with pytest.raises(NotAcceptable):
        openapi.v2("text/html")


def refs(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "$ref":
                yield value
            else:
                yield from refs(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from refs(value)


def documents() -> dict[str, Any]:
    index = orjson.loads(openapi.v3_index())["paths"]
    return {path: orjson.loads(openapi.v3_document(path)) for path in index}


def test_the_v3_index_names_each_group_with_the_hash_of_its_document() -> None:
    index = orjson.loads(openapi.v3_index())["paths"]
    served = [*(kind.schema for kind in kinds().values()), *schema.REVIEWS]
    wanted = {f"apis/{r.api_version}" if r.group else "api/v1" for r in served}
    assert index.keys() == wanted
    for path, entry in index.items():
        url = f"/openapi/v3/{path}?hash={openapi.v3_hash(path)}"
        assert entry == {"serverRelativeURL": url}
    with pytest.raises(NotFound):
        openapi.v3_document("apis/nope/v1")


def test_every_reference_resolves_inside_its_document() -> None:
    v2 = orjson.loads(openapi.v2_json())
    assert {r.rpartition("/")[2] for r in refs(v2)} <= v2["definitions"].keys()
    for document in documents().values():
        known = document["components"]["schemas"].keys()
        assert {r.rpartition("/")[2] for r in refs(document)} <= known


def test_every_kind_can_be_patched_with_dry_run_and_field_validation() -> None:
    docs = documents()
    for r in (kind.schema for kind in kinds().values()):
        document = docs[f"apis/{r.api_version}" if r.group else "api/v1"]
        gvk = {"group": r.group, "version": r.version, "kind": r.kind}
        patches = [
            item["patch"]
            for item in document["paths"].values()
            if "patch" in item and item["patch"]["x-kubernetes-group-version-kind"] == gvk
        ]
        assert patches
        for operation in patches:
            names = {p["name"] for p in operation["parameters"] if p["in"] == "query"}
            assert {"dryRun", "fieldValidation", "fieldManager"} <= names
        shape = document["components"]["schemas"][r.definition]
        assert gvk in shape["x-kubernetes-group-version-kind"]
        # Kubernetes publishes no words for this one.
        assert shape["properties"]["metadata"].get("description") or r.kind == "CertificateSigningRequest"


def test_operation_ids_are_unique() -> None:
    v2 = orjson.loads(openapi.v2_json())
    ids = [o["operationId"] for item in v2["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids))
