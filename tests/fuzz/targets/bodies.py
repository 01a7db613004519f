"""Bodies, queries and bearer tokens of the API: JSON, YAML, protobuf, selectors, quantities.

Whatever comes gives a value or one of the API's own errors; what was read is written and read again as the same.
"""

import json
import struct
from typing import Any

import orjson

from hub.api import decode, defaults, protobuf, quantity, schema, selectors, validation
from hub.errors import ApiError
from security import jwt
from tests.fuzz.source import Source

INSTRUMENTED = ("hub.api", "security.jwt")

KEYS = jwt.SigningKeys([jwt.SigningKey.make()])
CLAIMS = jwt.Claims(
    iss="us", sub="system:serviceaccount:a:b", aud=["hub"], exp=10, nbf=1, iat=1,
    kubernetes=jwt.Kubernetes("a", jwt.Named("b", "u")), jti="1",
)  # fmt: skip
GOOD = KEYS.sign(CLAIMS)
ROOTS = ("v1 Pod", "apps/v1 Deployment", "v1 ConfigMap", "v1 Secret", "v1 Node", "coordination.k8s.io/v1 Lease",
         "v1 Event", "v1 DeleteOptions")  # fmt: skip


def check(data: bytes) -> None:
    source = Source(data)
    try:
        (_text, _protobuf, _message, _selector, _quantity, _bearer)[source.byte() % 6](source)
    except ApiError as refused:
        orjson.dumps({"message": refused.message, "details": refused.details})


def _text(source: Source) -> None:
    yaml = bool(source.byte() % 2)
    resource = schema.RESOURCES[source.byte() % len(schema.RESOURCES)]
    value = decode.parse_body(decode.YAML if yaml else decode.JSON, source.rest())
    if not yaml:
        assert decode.parse_json(json.dumps(value).encode()) == value
    _object(resource, value)


def _object(resource: schema.Resource, value: Any) -> None:
    """What a create does with a value before it is stored."""
    obj = decode.decode(resource, value).object
    again = decode.decode(resource, obj)
    assert again.object == obj and not again.problems, "decoding is not done once"
    assert orjson.loads(orjson.dumps(obj)) == obj
    defaults.apply(resource, obj)
    validation.check_create(resource, obj)


def _protobuf(source: Source) -> None:
    """Bytes as they come, behind the magic."""
    _parsed(protobuf.MAGIC + source.rest())


def _parsed(data: bytes) -> None:
    value = protobuf.parse(data)
    # What is kept under a name that no kind has is null; all else is what a client would have sent as JSON.
    assert decode.parse_json(orjson.dumps(value)) == value
    resource = schema.resource_of(str(value["apiVersion"]), str(value["kind"]))
    if resource is not None:
        _object(resource, value)


def _message(source: Source) -> None:
    """A message along the table: known fields with values of their types, now and then of another."""
    root = source.of(ROOTS)
    version, _, kind = root.partition(" ")
    type_meta = _bytes(1, version.encode()) + _bytes(2, kind.encode())
    table = protobuf.table()
    name = table.roots.get(root) or table.roots[f"* {kind}"]
    _parsed(protobuf.MAGIC + _bytes(1, type_meta) + _bytes(2, _fields(source, table, name, 0)))


def _fields(source: Source, table: protobuf.Table, name: str, depth: int) -> bytes:
    known = table.messages[name]
    numbers = tuple(known)
    out = b""
    for _ in range(source.byte() % 8):
        if not numbers or not source.left or depth > 70:
            break
        number = source.of(numbers)
        field = known[number]
        odd = source.byte()
        if odd < 16:
            out += _varint(number << 3 | odd % 8) + source.take(source.byte() % 9)
        elif field.is_map:
            out += _bytes(
                number, _bytes(1, source.text().encode()) + _value(source, table, 2, field.type, depth)
            )
        else:
            out += _value(source, table, number, field.type, depth)
    return out


def _value(source: Source, table: protobuf.Table, number: int, kind: str, depth: int) -> bytes:
    if kind in ("bool", "int32", "int64"):
        value = (
            source.byte() if source.byte() % 4 else struct.unpack(">Q", source.take(8).ljust(8, b"\xff"))[0]
        )
        return _varint(number << 3) + _varint(value)
    if kind in table.messages:
        return _bytes(number, _fields(source, table, kind, depth + 1))
    if kind in ("string", "bytes"):
        return _bytes(number, source.text().encode())
    if kind in ("time", "microtime"):
        return _bytes(number, _varint(8) + _varint(source.word() << source.byte() % 48))
    if kind == "int-or-string":
        return _bytes(number, _varint(8) + _varint(source.byte() % 3) + _varint(16) + _varint(source.word()))
    if kind == "quantity":
        return _bytes(number, _bytes(1, source.of((b"1", b"1Gi", b"-1m", b"1e99", b""))))
    return _bytes(number, source.take(source.byte() % 16))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _bytes(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _selector(source: Source) -> None:
    words = (
        "a",
        "app.kubernetes.io/name",
        " in (",
        "notin",
        "(",
        ")",
        ",",
        "=",
        "==",
        "!=",
        "!",
        " ",
        "x",
        "exists",
    )
    text = "".join(source.of((source.of(words), source.text())) for _ in range(source.byte() % 12))
    resource = schema.RESOURCES[source.byte() % len(schema.RESOURCES)]
    labels = {"a": "x", "app.kubernetes.io/name": "", "exists": "1"}
    selectors.parse_labels(text).matches(labels)
    fields = ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "type", source.text())
    selectors.parse_fields(resource, source.of(fields) + source.of(("=", "!=", "==", "")) + text)


def _quantity(source: Source) -> None:
    text = source.rest().decode(errors="replace") if source.byte() % 2 else "".join(
        source.of(("1", "0", ".", "-", "+", "e", "E", "m", "k", "Ki", "Ei", "n", " ", "9" * 40)) for _ in range(source.byte() % 9)
    )  # fmt: skip
    try:
        canonical = quantity.canonical(text)
    except ValueError:
        return
    assert quantity.canonical(canonical) == canonical, "canonical twice is another"
    quantity.milli(canonical)
    quantity.whole(canonical)


def _bearer(source: Source) -> None:
    """A token whose parts are the input's, or those of a good one."""
    head, claims, signature = GOOD.split(".")
    own = jwt._encode(source.take(source.word() % 4096))
    token = ".".join((source.of((head, own)), source.of((claims, own)), source.of((signature, own))))
    try:
        jwt.check(KEYS.verify(token, 5.0), CLAIMS.iss, ["hub"], 5.0)
    except jwt.TokenError as refused:
        assert own not in str(refused) or len(own) < 8, "the refusal repeats the token"
        return
    assert token == GOOD, "a forged token passes"
