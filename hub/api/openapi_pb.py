"""OpenAPI v2 in the protobuf form that kubectl reads. [pure]

Job: `document` turns the JSON form into the bytes of the message openapi.v2.Document. kubectl decodes nothing else
(1.20 to 1.26 need it for validation and explain), and an encoder of the few message types that occur is smaller than
generated stubs of all. Raises KeyError for a construct that it does not know, rather than to drop it.

Source of the field numbers: gnostic's OpenAPIv2.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

_SCHEMA_STRINGS: Final = {"$ref": 1, "format": 2, "title": 3, "description": 4}
_METHODS: Final = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}
_QUERY: Final = {"in": 2, "description": 3, "name": 4, "type": 6}
_PATH: Final = {"in": 2, "description": 3, "name": 4, "type": 5}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _texts(field: int, values: Iterable[str]) -> bytes:
    return b"".join(_text(field, value) for value in values)


def _true(field: int) -> bytes:
    return _varint(field << 3) + b"\x01"


def _named(field: int, name: str, value: bytes) -> bytes:
    return _bytes(field, _text(1, name) + _bytes(2, value))


def _extensions(field: int, source: dict[str, Any]) -> bytes:
    """Every `x-…` member: a name and its value as YAML, of which JSON is a part."""
    return b"".join(
        _named(field, key, _text(2, json.dumps(value, separators=(",", ":")) + "\n"))
        for key, value in source.items()
        if key.startswith("x-")
    )


def _schema(source: dict[str, Any]) -> bytes:
    out = b""
    for key, value in source.items():
        if key in _SCHEMA_STRINGS:
            out += _text(_SCHEMA_STRINGS[key], value)
        elif key == "type":
            out += _bytes(22, _text(1, value))
        elif key == "properties":
            out += _bytes(25, b"".join(_named(1, name, _schema(s)) for name, s in value.items()))
        elif key == "items":
            out += _bytes(23, _bytes(1, _schema(value)))
        elif key == "additionalProperties":
            out += _bytes(21, _bytes(1, _schema(value)))
        elif key == "required":
            out += _texts(19, value)
        elif not key.startswith("x-"):
            raise KeyError(f"schema member {key!r} has no protobuf form here")
    return out + _extensions(31, source)


def _parameter(source: dict[str, Any]) -> bytes:
    if source["in"] == "body":
        body = _text(2, source["name"]) + _text(3, "body") + _true(4) + _bytes(5, _schema(source["schema"]))
        parameter = _bytes(1, body)
    else:
        fields, unique, oneof = (_QUERY, 20, 3) if source["in"] == "query" else (_PATH, 19, 4)
        value = _true(1) if source.get("required") else b""
        value += b"".join(_text(number, source[key]) for key, number in fields.items() if key in source)
        value += _true(unique) if source.get("uniqueItems") else b""
        parameter = _bytes(2, _bytes(oneof, value))
    return _bytes(1, parameter)  # ParametersItem.parameter


def _response(source: dict[str, Any]) -> bytes:
    out = _text(1, source["description"])
    if "schema" in source:
        out += _bytes(2, _bytes(1, _schema(source["schema"])))
    return _bytes(1, out)  # ResponseValue.response


def _operation(source: dict[str, Any]) -> bytes:
    out = _texts(1, source["tags"]) + _text(3, source["description"]) + _text(5, source["operationId"])
    out += _texts(6, source["produces"]) + _texts(7, source["consumes"])
    out += b"".join(_bytes(8, _parameter(p)) for p in source["parameters"])
    answers = (_named(1, code, _response(r)) for code, r in source["responses"].items())
    return out + _bytes(9, b"".join(answers)) + _extensions(13, source)


def _path_item(source: dict[str, Any]) -> bytes:
    return b"".join(_bytes(_METHODS[method], _operation(op)) for method, op in source.items())


def document(source: dict[str, Any]) -> bytes:
    """The message openapi.v2.Document of an OpenAPI v2 document as `openapi` builds it."""
    info = _text(1, source["info"]["title"]) + _text(2, source["info"]["version"])
    paths = b"".join(_named(2, path, _path_item(item)) for path, item in source["paths"].items())
    definitions = b"".join(_named(1, name, _schema(s)) for name, s in source["definitions"].items())
    return (
        _text(1, source["swagger"])
        + _bytes(2, info)
        + _texts(6, source.get("consumes", ()))
        + _texts(7, source.get("produces", ()))
        + _bytes(8, paths)
        + _bytes(9, definitions)
    )
