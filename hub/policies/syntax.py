"""The tree of a compiled CEL expression, read from what the library writes of it (`Expression.serialize`). [pure]

Source: cel-spec, proto/cel/expr/checked.proto and syntax.proto. Only what costs are reckoned by is read; an expression with
anything else is refused, never taken for cheap.
"""

from collections.abc import Iterator
from dataclasses import dataclass

DEPTH_MAX = 256
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class SyntaxUnknown(ValueError):
    """The tree has something that is not known here."""


@dataclass(frozen=True, slots=True)
class Const:
    """`size`: of a string or bytes, else 0. `text`: of a string."""

    size: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ident:
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    operand: "Node"
    field: str


@dataclass(frozen=True, slots=True)
class Call:
    """`args`: with the receiver first, where there is one."""

    function: str
    args: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Made:
    """A list, map or message: its parts."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Loop:
    """all, exists, map, ..: for each of `over`, `step` gives the next `accu`."""

    var: str
    var2: str
    over: "Node"
    accu: str
    start: "Node"
    condition: "Node"
    step: "Node"
    result: "Node"


Node = Const | Ident | Select | Call | Made | Loop


def parse(serialized: bytes) -> Node:
    """Of a cel.expr.CheckedExpr in a google.protobuf.Any. Raises SyntaxUnknown."""
    try:
        checked = _one(dict(_fields(serialized)), 2)
        return _expr(_one(dict(_fields(checked)), 4), 0)
    except (KeyError, IndexError, UnicodeDecodeError) as wrong:
        raise SyntaxUnknown(f"the expression cannot be read: {wrong!r}") from wrong


def _expr(data: bytes, depth: int) -> Node:
    if depth > DEPTH_MAX:
        raise SyntaxUnknown(f"the expression is nested deeper than {DEPTH_MAX}")
    kind, body = next(((number, value) for number, value in _fields(data) if number > 2), (0, b""))
    if not isinstance(body, bytes):
        raise SyntaxUnknown(f"an expression of kind {kind}")
    below = depth + 1
    if kind == 3:
        return _const(body)
    fields = list(_fields(body))
    one = dict(fields)
    if kind == 4:
        return Ident(_one(one, 1).decode())
    if kind == 5:
        return Select(_expr(_one(one, 1), below), _one(one, 2).decode())
    if kind == 6:
        target = [_one(one, 1)] if 1 in one else []
        args = [value for number, value in fields if number == 3 and isinstance(value, bytes)]
        return Call(_one(one, 2).decode(), tuple(_expr(arg, below) for arg in (*target, *args)))
    if kind == 7:
        return Made(
            tuple(_expr(value, below) for number, value in fields if number == 1 and isinstance(value, bytes))
        )
    if kind == 8:
        entries = [
            dict(_fields(value)) for number, value in fields if number == 2 and isinstance(value, bytes)
        ]
        return Made(tuple(_expr(_one(entry, n), below) for entry in entries for n in (3, 4) if n in entry))
    if kind == 9:
        second = _one(one, 8).decode() if 8 in one else ""
        parts = [_expr(_one(one, n), below) for n in (2, 4, 5, 6, 7)]
        over, start, condition, step, result = parts
        return Loop(
            _one(one, 1).decode(), second, over, _one(one, 3).decode(), start, condition, step, result
        )
    raise SyntaxUnknown(f"an expression of kind {kind}")


def _const(data: bytes) -> Const:
    for number, value in _fields(data):
        if number in (6, 7) and isinstance(value, bytes):
            return Const(len(value), value.decode() if number == 6 else "")
    return Const(0)


def _one(fields: dict[int, "bytes | int"], number: int) -> bytes:
    value = fields[number]
    if not isinstance(value, bytes):
        raise SyntaxUnknown(f"field {number} is a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, "bytes | int"]]:
    """(number, value) of a message of protobuf."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise SyntaxUnknown(f"wire type {wire}")
        if at + size > len(data):
            raise SyntaxUnknown("the expression is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise SyntaxUnknown("a number is too long")
