"""From a request's body to an object of a known kind, with Kubernetes' decoding errors.

Job: parse JSON or YAML within bounds, walk the value along its `Struct`, drop what the kind does not have, and say
which fields were unknown or given twice. Invariant: what `decode` returns has only known fields of the right types, no
nulls, and canonical quantities. Its input is not changed.
Not guaranteed: that the object makes sense; that is `validation`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

import orjson
import yaml

from hub.api import quantity, schema
from hub.api.schema import Node, Resource, Struct
from hub.errors import BadRequest, UnsupportedMediaType

DEPTH_MAX: Final = 200  # orjson refuses to write deeper than 254
PROBLEMS_MAX: Final = 100
JSON: Final = "application/json"
YAML: Final = "application/yaml"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([.,]\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class _Twice(dict[str, Any]):
    """An object in which some names were given more than once; the last value counts."""

    names: tuple[str, ...] = ()


class _SyntaxProblem(Exception):
    """Raised inside the parsers' callbacks; becomes a BadRequest."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) == len(pairs):
        return out
    seen: set[str] = set()
    twice = _Twice(out)
    twice.names = tuple(dict.fromkeys(k for k, _ in pairs if k in seen or seen.add(k)))  # type: ignore[func-returns-value]
    return twice


def _constant(name: str) -> NoReturn:
    raise _SyntaxProblem(f"invalid character '{name[0]}' looking for beginning of value")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _SyntaxProblem(f"number {text} is out of range")
    return value


_UNSURE: Final = object()


def _parse_canonical(data: bytes) -> Any:
    """The value of what is written as orjson would write it, as most clients do but for white space at the end; _UNSURE of
    all else. In what comes out as it went in no name was given twice and nothing was rounded, and to find that out costs a
    tenth of asking for each object."""
    text = data.rstrip(b" \t\r\n")
    try:
        value = orjson.loads(text)
        if orjson.dumps(value) != text:
            return _UNSURE
    except (orjson.JSONDecodeError, TypeError, ValueError, RecursionError):
        return _UNSURE
    if text.count(b"{") + text.count(b"[") > DEPTH_MAX:
        _check_depth(value)
    return value


def parse_json(data: bytes) -> Any:
    """A JSON value; objects with a name given twice remember it. Raises BadRequest."""
    if (sure := _parse_canonical(data)) is not _UNSURE:
        return sure
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float
        )
    except RecursionError as e:
        raise BadRequest(f"json: exceeded max depth of {DEPTH_MAX}") from e
    except UnicodeDecodeError as e:
        raise BadRequest(f"json: invalid UTF-8 at byte {e.start}") from e
    except json.JSONDecodeError as e:
        raise BadRequest(f"json: {e.msg} at line {e.lineno} column {e.colno}") from e
    except (_SyntaxProblem, ValueError) as e:
        raise BadRequest(f"json: {e}") from e
    _check_depth(value)
    if b"\\u" in data:
        _check_surrogates(value)
    return value


def _check_surrogates(value: Any) -> None:
    """Half a surrogate pair is no text: nothing could store it. Raises BadRequest."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise BadRequest("json: a \\u escape is half of a surrogate pair") from e


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: no timestamps; names given twice are remembered."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _SyntaxProblem("expected a mapping")
        pairs: list[tuple[str, Any]] = []
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            pairs.append((_yaml_key(key), self.construct_object(value_node, deep=True)))
        return _pairs(pairs)


def _yaml_key(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, (int, float)):
        return str(key)
    raise _SyntaxProblem(f"unsupported map key {key!r}")


def _construct_map(loader: yaml.Loader, node: yaml.Node) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":merge"))]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _scan_yaml(data: bytes) -> None:
    """Refuses what must not reach the composer, which recurses in C and shares aliased nodes."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # An alias can blow a small text up beyond any limit.
            raise _SyntaxProblem("aliases are not accepted; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise _SyntaxProblem(f"exceeded max depth of {DEPTH_MAX}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse_yaml(data: bytes) -> Any:
    """One YAML document without aliases. Raises BadRequest."""
    try:
        _scan_yaml(data)
        value = yaml.load(data, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 0
        raise BadRequest(f"yaml: line {line}: {e.problem or e.context or 'cannot be parsed'}") from e
    except (yaml.YAMLError, _SyntaxProblem, ValueError) as e:
        raise BadRequest(f"yaml: {e}") from e
    return value


def parse_body(content_type: str, data: bytes) -> Any:
    """A text body as a plain value (`protobuf.parse` reads the other form). An absent Content-Type is JSON. Raises
    BadRequest, UnsupportedMediaType."""
    media = content_type.partition(";")[0].strip().lower()
    if media in ("", JSON):
        return parse_json(data)
    if media in (YAML, "application/x-yaml", "text/yaml"):
        return parse_yaml(data)
    raise UnsupportedMediaType([JSON, YAML, PROTOBUF])


def _check_depth(value: Any) -> None:
    """Raises BadRequest when containers nest deeper than DEPTH_MAX."""
    level = [value] if isinstance(value, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise BadRequest(f"json: exceeded max depth of {DEPTH_MAX}")
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A clean object, and what was wrong but not fatal: `unknown field "spec.x"`, `duplicate field "spec.y"`."""

    object: dict[str, Any]
    problems: list[str]


class _Mismatch(Exception):
    """A value of the wrong type; the text is Kubernetes' own."""


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    for known, name in ((str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, known):
            return name
    return "null" if value is None else type(value).__name__


class _Walk:
    """One decoding. `fields` is the path of Go fields (no indexes), `owner` the struct that errors name."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.fields: list[str] = []
        self.owner = ""

    def problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)

    def mismatch(self, got: str, node: Node) -> NoReturn:
        where = f"Go struct field {self.owner}.{'.'.join(self.fields)}" if self.fields else "Go value"
        raise _Mismatch(f"json: cannot unmarshal {got} into {where} of type {node.go_type()}")

    def struct(self, shape: Struct, value: dict[str, Any], path: str) -> dict[str, Any]:
        if type(value) is _Twice:
            for name in value.names:
                self.problem(f'duplicate field "{_join(path, name)}"')
        out: dict[str, Any] = {}
        outer = self.owner
        for name, item in value.items():
            node = shape.fields.get(name)
            if node is None:
                self.problem(f'unknown field "{_join(path, name)}"')
                continue
            if item is None:
                continue
            self.owner = shape.name
            self.fields.append(name)
            out[name] = self.value(node, item, _join(path, name))
            self.fields.pop()
        self.owner = outer
        return out

    def value(self, node: Node, value: Any, path: str) -> Any:
        if node.kind == "struct":
            if not isinstance(value, dict):
                self.mismatch(_json_type(value), node)
            return self.struct(schema.struct(node.ref), value, path)
        if node.kind == "list":
            if not isinstance(value, list):
                self.mismatch(_json_type(value), node)
            elem = node.elem
            assert elem is not None
            return [
                _zero(elem) if item is None else self.value(elem, item, f"{path}[{i}]")
                for i, item in enumerate(value)
            ]
        if node.kind == "map":
            if not isinstance(value, dict):
                self.mismatch(_json_type(value), node)
            elem = node.elem
            assert elem is not None
            if type(value) is _Twice:
                for name in value.names:
                    self.problem(f'duplicate field "{_join(path, name)}"')
            return {
                key: _zero(elem) if item is None else self.value(elem, item, _join(path, key))
                for key, item in value.items()
            }
        return self.scalar(node, value)

    def scalar(self, node: Node, value: Any) -> Any:
        kind = node.kind
        if kind == "string" and isinstance(value, str):
            return value
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind in ("int32", "int64") and _json_type(value) == "number":
            limit = 1 << (31 if kind == "int32" else 63)
            if isinstance(value, float) or not -limit <= value < limit:
                self.mismatch(f"number {value}", node)
            return value
        if kind == "number" and _json_type(value) == "number":
            return value
        if kind == "value" or (kind == "any" and isinstance(value, dict)):
            return _plain(value)
        if kind in ("quantity", "int-or-string", "time", "microtime", "bytes"):
            return self.special(node, value)
        return self.mismatch(_json_type(value), node)

    def special(self, node: Node, value: Any) -> Any:
        kind = node.kind
        if kind == "quantity" and _json_type(value) in ("number", "string"):
            try:
                return quantity.canonical(str(value).strip())
            except ValueError as e:
                raise _Mismatch(str(e)) from e
        if kind == "int-or-string":
            if isinstance(value, str):
                return value
            number = isinstance(value, int) and not isinstance(value, bool)
            if not number or not -(1 << 31) <= value < 1 << 31:
                got = f"number {value}" if _json_type(value) == "number" else _json_type(value)
                raise _Mismatch(f"json: cannot unmarshal {got} into Go value of type int32")
            return value
        if kind in ("time", "microtime") and isinstance(value, str):
            return _time(value)
        if kind == "bytes" and isinstance(value, str):
            return _bytes(value)
        if kind in ("time", "microtime"):
            raise _Mismatch(f"json: cannot unmarshal {_json_type(value)} into Go value of type string")
        return self.mismatch(_json_type(value), node)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _zero(node: Node) -> Any:
    """What Go has where a list element or map value was null."""
    if node.kind in ("struct", "map", "any"):
        return {}
    if node.kind == "list":
        return []
    if node.kind == "value":
        return None
    return {"bool": False, "int32": 0, "int64": 0, "number": 0, "int-or-string": 0, "quantity": "0"}.get(
        node.kind, ""
    )


def _plain(value: Any) -> Any:
    """A copy in which no `_Twice` is left, and no integer that the store's encoder cannot write: as in Go, one that 64
    bits do not hold becomes a float."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        try:
            return float(value)
        except OverflowError as e:
            raise _Mismatch("json: a number is out of range") from e
    return value


def _time(value: str) -> str:
    try:
        if _RFC3339.fullmatch(value):
            datetime.fromisoformat(value.upper().replace(",", "."))
            return value
    except ValueError as e:
        raise _Mismatch(f'parsing time "{value}": {e}') from e
    raise _Mismatch(
        f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"'
    )


def _bytes(value: str) -> str:
    text = value.replace("\r", "").replace("\n", "")
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        bad = re.search(r"[^A-Za-z0-9+/]", text)
        raise _Mismatch(f"illegal base64 data at input byte {bad.start() if bad else len(text)}") from e
    return text


def decode_as(definition: str, value: Any, *, what: str = "") -> Decoded:
    """`value` as an object of one definition, such as `schema.DELETE_OPTIONS`. Raises BadRequest.

    what: the error's prefix; empty: the decoding error alone.
    """
    shape = schema.struct(definition)
    walk = _Walk()
    try:
        if not isinstance(value, dict):
            raise _Mismatch(
                f"json: cannot unmarshal {_json_type(value)} into Go value of type v1.{shape.name}"
            )
        return Decoded(walk.struct(shape, value, ""), walk.problems)
    except _Mismatch as e:
        raise BadRequest(f"{what}: {e}" if what else str(e)) from e


def prefix(resource: Resource) -> str:
    """How Kubernetes begins every decoding error of a resource's object."""
    return f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'


def decode(resource: Resource, value: Any, stored: Mapping[str, Any] | None = None) -> Decoded:
    """`value` as an object of the resource; absent apiVersion and kind are filled in. Raises BadRequest.

    `stored`: an object as the store has it. Members of `value` that are the very same dicts, as those are that a patch does not
    touch, were decoded when they were stored, and are taken over unread.
    """
    if not isinstance(value, dict):
        raise BadRequest(
            f"couldn't get version/kind; json parse error: json: cannot unmarshal {_json_type(value)} into "
            "Go value of type struct { APIVersion string; Kind string }"
        )
    version, kind = value.get("apiVersion"), value.get("kind")
    if version and version != resource.api_version:
        raise BadRequest(
            f"the API version in the data ({version}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if kind and kind != resource.kind:
        raise BadRequest(f"the kind in the data ({kind}) does not match the expected kind ({resource.kind})")
    same = {k: v for k, v in value.items() if isinstance(v, dict) and v is stored.get(k)} if stored else {}
    fresh = {k: v for k, v in value.items() if k not in same} if same else value
    decoded = decode_as(resource.definition, fresh, what=prefix(resource))
    found = {
        k: same[k] if k in same else decoded.object[k] for k in value if k in same or k in decoded.object
    }
    rest = {k: v for k, v in found.items() if k not in ("apiVersion", "kind")}
    clean = {"apiVersion": resource.api_version, "kind": resource.kind, **rest}
    clean.setdefault("metadata", {})
    return Decoded(clean, decoded.problems)


FIELD_VALIDATION: Final = ("Strict", "Warn", "Ignore")


def field_warnings(resource: Resource, decoded: Decoded, field_validation: str) -> list[str]:
    """The warnings for the Warning header, by the query parameter fieldValidation ("" is Warn).

    Raises BadRequest under Strict when there is any problem, and for an unknown value.
    """
    mode = field_validation or "Warn"
    if mode not in FIELD_VALIDATION:
        raise BadRequest(
            f'fieldValidation: Unsupported value: "{mode}": supported values: "Ignore", "Strict", "Warn"'
        )
    if mode == "Ignore" or not decoded.problems:
        return []
    if mode == "Warn":
        return decoded.problems
    raise BadRequest(f"{prefix(resource)}: strict decoding error: {', '.join(decoded.problems)}")
