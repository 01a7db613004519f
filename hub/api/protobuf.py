"""Request bodies in Kubernetes' protobuf: what typed Go clients since 1.32 send, `kubectl create` among them. [pure]

Job: `parse` turns a body into the value that the same client would have sent as JSON, so that everything behind it
knows one form. A body is four magic bytes and a `runtime.Unknown`: apiVersion, kind, and the object's own message.
Invariant: any input gives a value or a BadRequest (UnsupportedMediaType for a kind without a protobuf form); work and
memory are bounded by VALUES_MAX. A field that the table lacks is kept under a name that no kind has, so that decoding
reports it as it reports an unknown JSON field.
Not guaranteed: that the object is valid (`decode`, `validation`), and the merging of a single message that comes in
several parts, which no encoder writes: it is refused.

The field table is data, made from the published Go types by tests/tools/protobuf (its head names versions and licence),
and read when the first such body comes.

Sources: the Kubernetes API concepts, "Kubernetes Protobuf encoding"; the protobuf encoding guide; for zero values, Go's
encoding/json with the tags of k8s.io/api.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from hub.api import decode, own_types
from hub.errors import BadRequest, UnsupportedMediaType

MAGIC: Final = b"k8s\x00"
VALUES_MAX: Final = 200_000
"""Fields of one body, over all messages; a ConfigMap of 60,000 keys has as many."""
DEPTH_MAX: Final = 64
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_NUMBERS: Final = frozenset(("bool", "int32", "int64"))
_ZERO: Final[dict[str, Any]] = {"bool": False, "int32": 0, "int64": 0, "string": "", "bytes": ""}
_NO_TIME: Final = -62135596800
"""Seconds of Go's zero time, which is null in JSON."""
_TABLE: Final = os.path.join(os.path.dirname(__file__), "protobuf_fields.json")


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table. `type` is a word (string, quantity, ...) or a message's name."""

    name: str
    type: str
    is_list: bool
    is_map: bool
    is_inline: bool
    is_pointer: bool
    omits_zero: bool

    @property
    def is_repeated(self) -> bool:
        return self.is_list or self.is_map


Message = dict[int, Field]


@dataclass(frozen=True, slots=True)
class Table:
    """`roots`: "<apiVersion> <kind>" to a message's name; `messages`: its fields by number."""

    roots: dict[str, str]
    messages: dict[str, Message]


@functools.cache
def table() -> Table:
    """The published field table."""
    with open(_TABLE, "rb") as file:
        raw = json.load(file)
    return Table(raw["roots"], {name: _message(rows) for name, rows in raw["messages"].items()})


def _message(rows: list[tuple[int, str, str, str]]) -> Message:
    return {
        number: Field(name, kind, "l" in flags, "m" in flags, "i" in flags, "p" in flags, "o" in flags)
        for number, name, kind, flags in rows
    }


def parse(data: bytes) -> dict[str, Any]:
    """The object in a request's body, as plain JSON. Raises BadRequest, UnsupportedMediaType."""
    if not data.startswith(MAGIC):
        raise BadRequest(
            f"provided data does not appear to be a protobuf message, expected prefix {list(MAGIC)}"
        )
    walk = _Walk(data)
    api_version = kind = ""
    raw = (len(data), len(data))
    for number, wire, low, high in walk.fields(len(MAGIC), len(data)):
        if number not in (1, 2, 3, 4):
            continue
        walk.expect(wire, _BYTES, ("typeMeta", "raw", "contentEncoding", "contentType")[number - 1])
        if number == 1:
            api_version, kind = walk.type_meta(low, high)
        elif number == 2:
            raw = (low, high)
        elif low != high and (number == 3 or data[low:high] != decode.PROTOBUF.encode()):
            _bad("the object inside must be plain protobuf, not compressed or of another form")
    return {"apiVersion": api_version, "kind": kind, **walk.message(_root(api_version, kind), *raw, 0)}


def _root(api_version: str, kind: str) -> str:
    if not kind or not api_version:
        raise BadRequest("protobuf: Object 'Kind' or 'apiVersion' is missing in the body's type")
    roots = table().roots
    found = roots.get(f"{api_version} {kind}") or roots.get(f"* {kind}")
    if found is None and api_version.startswith(own_types.GROUP + "/"):
        raise UnsupportedMediaType([decode.JSON, decode.YAML])
    if found is None:
        raise BadRequest(
            f'protobuf: no kind "{kind[:64]}" is registered for version "{api_version[:64]}": send it as JSON'
        )
    return found


def _bad(text: str) -> NoReturn:
    raise BadRequest(f"protobuf: {text}")


class _Walk:
    """One decoding. Spans (low, high) are offsets into `data`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = VALUES_MAX
        self.table = table()

    # -- the wire -----------------------------------------------------------------------------------------------

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """(unsigned 64-bit number, offset behind it)."""
        value = shift = 0
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value, at) if value < 1 << 64 else _bad("integer overflow")
            shift += 7
            if shift >= 70:
                _bad("integer overflow")
        _bad("unexpected EOF")

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, low, high) of each field: `low` is the value of a varint, else the span's begin."""
        while at < end:
            self.count()
            tag = self.data[at]
            at += 1
            if tag >= 0x80:
                tag, at = self.varint(at - 1, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                _bad(f"illegal tag {number} (wire type {wire})")
            if wire == _VARINT:
                value, at = self.varint(at, end)
                yield number, wire, value, 0
                continue
            low, at = self.skip(wire, at, end)
            yield number, wire, low, at

    def skip(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """The span of what is no varint."""
        low = at
        if wire == _BYTES:
            size, low = self.varint(at, end)
            at = low + size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _GROUP:
            at = self.skip_group(at, end)
        else:
            _bad(f"illegal wireType {wire}")
        return (low, at) if at <= end else _bad("unexpected EOF")

    def skip_group(self, at: int, end: int) -> int:
        """The offset behind the end of a group that began before `at`. Groups are obsolete: they are always unknown."""
        depth = 1
        while depth:
            self.count()
            tag, at = self.varint(at, end)
            wire = tag & 7
            if wire == _GROUP:
                depth += 1
            elif wire == _GROUP_END:
                depth -= 1
            elif wire == _VARINT:
                _, at = self.varint(at, end)
            else:
                _, at = self.skip(wire, at, end)
        return at

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            _bad(f"more than {VALUES_MAX} values: split the object")

    def expect(self, wire: int, wanted: int, name: str) -> None:
        if wire != wanted:
            _bad(f"wrong wireType = {wire} for field {name}")

    # -- values -------------------------------------------------------------------------------------------------

    def type_meta(self, low: int, high: int) -> tuple[str, str]:
        found = {1: "", 2: ""}
        for number, wire, begin, end in self.fields(low, high):
            if number in found:
                self.expect(wire, _BYTES, "typeMeta")
                found[number] = self.text(begin, end)
        return found[1], found[2]

    def message(self, name: str, low: int, high: int, depth: int) -> dict[str, Any]:
        """A message as a JSON object."""
        if depth > DEPTH_MAX:
            _bad(f"exceeded max depth of {DEPTH_MAX}")
        known = self.table.messages[name]
        out: dict[str, Any] = {}
        seen: set[int] = set()
        for number, wire, begin, end in self.fields(low, high):
            field = known.get(number)
            if field is None:
                out[f"(protobuf field {number})"] = None
            elif field.is_map:
                self.expect(wire, _BYTES, field.name)
                key, value = self.entry(field, begin, end, depth)
                out.setdefault(field.name, {})[key] = value
            elif field.is_list:
                self.element(out.setdefault(field.name, []), field, wire, begin, end, depth)
            else:
                if number in seen and field.type not in _ZERO:
                    _bad(f"field {field.name} is given in parts")
                seen.add(number)
                self.put(out, field, self.value(field, wire, begin, end, depth))
        for number, field in known.items():
            if number not in seen and not field.is_pointer and not field.is_repeated:
                # Go has no bytes there, which is null in JSON, and not empty ones.
                self.put(out, field, None if field.type == "bytes" else self.zero(field, depth))
        return out

    def put(self, out: dict[str, Any], field: Field, value: Any) -> None:
        """Sets the field as Go's JSON shows it."""
        if field.is_inline:
            out.update(value)
        elif value is None or (field.omits_zero and field.type in _ZERO and not value):
            out.pop(field.name, None)
        else:
            out[field.name] = value

    def zero(self, field: Field, depth: int) -> Any:
        """What Go has where a field is absent that is no pointer. None is null."""
        self.count()
        if field.type in _ZERO:
            return _ZERO[field.type]
        if field.type == "quantity":
            return "0"
        if field.type == "int-or-string":
            return 0
        if field.type in ("time", "microtime", "raw", "strings"):
            return None
        return self.message(field.type, 0, 0, depth + 1)

    def entry(self, field: Field, low: int, high: int, depth: int) -> tuple[str, Any]:
        """One (key, value) of a map."""
        key, value, has_value = "", None, False
        for number, wire, begin, end in self.fields(low, high):
            if number == 1:
                self.expect(wire, _BYTES, field.name)
                key = self.text(begin, end)
            elif number == 2:
                value, has_value = self.value(field, wire, begin, end, depth), True
        return key, value if has_value else self.zero(field, depth)

    def element(self, out: list[Any], field: Field, wire: int, low: int, high: int, depth: int) -> None:
        """Appends one element, or all of a packed field."""
        if field.type not in _NUMBERS or wire != _BYTES:
            out.append(self.value(field, wire, low, high, depth))
            return
        while low < high:
            self.count()
            number, low = self.varint(low, high)
            out.append(self.number(field, number))

    def value(self, field: Field, wire: int, low: int, high: int, depth: int) -> Any:
        """One value; None is null."""
        kind = field.type
        if kind in _NUMBERS:
            self.expect(wire, _VARINT, field.name)
            return self.number(field, low)
        self.expect(wire, _BYTES, field.name)
        if kind == "string":
            return self.text(low, high)
        if kind == "bytes":
            return base64.b64encode(self.data[low:high]).decode()
        if kind == "strings":
            return self.strings(field, low, high)
        if kind in ("time", "microtime"):
            return self.time(low, high, is_micro=kind == "microtime") if low != high else None
        if kind == "quantity":
            return self.single(field, low, high, "0")
        if kind == "int-or-string":
            return self.int_or_string(field, low, high)
        if kind == "raw":
            text = self.single(field, low, high, "")
            return decode.parse_json(text.encode()) if text else None
        return self.message(kind, low, high, depth + 1)

    def number(self, field: Field, value: int) -> int | bool:
        if field.type == "bool":
            return value != 0
        signed = value - (1 << 64) if value >= 1 << 63 else value
        if field.type == "int32" and not -(1 << 31) <= signed < 1 << 31:
            _bad(f"{signed} is out of range for field {field.name}")
        return signed

    def text(self, low: int, high: int) -> str:
        try:
            return self.data[low:high].decode()
        except UnicodeDecodeError as e:
            raise BadRequest(f"protobuf: invalid UTF-8 at byte {low + e.start}") from e

    def strings(self, field: Field, low: int, high: int) -> list[str]:
        """The list in a message whose one field is it."""
        out: list[str] = []
        for number, wire, begin, end in self.fields(low, high):
            if number == 1:
                self.expect(wire, _BYTES, field.name)
                out.append(self.text(begin, end))
        return out

    def single(self, field: Field, low: int, high: int, absent: str) -> str:
        """The string in a message whose one field is it."""
        text = absent
        for number, wire, begin, end in self.fields(low, high):
            if number == 1:
                self.expect(wire, _BYTES, field.name)
                text = self.text(begin, end)
        return text

    def int_or_string(self, field: Field, low: int, high: int) -> int | str:
        kind, number, text = 0, 0, ""
        for which, wire, begin, end in self.fields(low, high):
            if which in (1, 2):
                self.expect(wire, _VARINT, field.name)
                value = int(self.number(_INT32, begin))
                kind, number = (value, number) if which == 1 else (kind, value)
            elif which == 3:
                self.expect(wire, _BYTES, field.name)
                text = self.text(begin, end)
        if kind not in (0, 1):
            _bad(f"impossible IntOrString.Type {kind} in field {field.name}")
        return text if kind else number

    def time(self, low: int, high: int, *, is_micro: bool) -> str | None:
        """RFC 3339 in UTC, with microseconds where the type has them."""
        seconds = nanos = 0
        for number, wire, value, _ in self.fields(low, high):
            if number in (1, 2):
                self.expect(wire, _VARINT, "timestamp")
                signed = value - (1 << 64) if value >= 1 << 63 else value
                seconds, nanos = (signed, nanos) if number == 1 else (seconds, signed)
        nanos = nanos if is_micro else 0
        if seconds == _NO_TIME and not nanos:
            return None
        if not _NO_TIME <= seconds < 253402300800 or not 0 <= nanos < 1_000_000_000:
            _bad(f"timestamp {seconds} s, {nanos} ns is out of range")
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(
            seconds=seconds, microseconds=nanos // 1000
        )
        return moment.isoformat(timespec="microseconds" if is_micro else "seconds") + "Z"


_INT32: Final = Field("intVal", "int32", False, False, False, False, False)
