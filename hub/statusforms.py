"""What a node may say about an object's status: the published fields with values of their types, and nothing else. [pure]

A status is stored, cached by every replica that follows the object, and sent to clients whose decoders are typed: one
field of the wrong type would break the list of all pods for everybody. So a report is decoded into structs that are made
from the published schema (`hub.api.schema`), which costs some µs where the API's own decoder takes 40. Fields that the
schema lacks and nulls are dropped, as an API server does.

Guarantees: what `pod_status` and `check_node` let through has the schema's types at every depth, RFC 3339 times,
quantities that can be read, conditions with type and status, container statuses with a name.
"""

import functools
import re
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from hub.api import quantity, schema
from hub.api.schema import Node
from security.frames import CONDITIONS_MAX

Object = dict[str, Any]

POD_STATUS: Final = "io.k8s.api.core.v1.PodStatus"
NODE_STATUS: Final = "io.k8s.api.core.v1.NodeStatus"
PHASES: Final = frozenset({"Pending", "Running", "Succeeded", "Failed", "Unknown"})
CONTAINERS_MAX: Final = 256
_NEEDED: Final = {
    "PodCondition": ("type", "status"),
    "NodeCondition": ("type", "status"),
    "NodeAddress": ("type", "address"),
    "ContainerStatus": ("name",),
}
"""Fields that readers count on, though they are pointers nowhere and zero when absent."""
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


class Time(str):
    """RFC 3339 as Go's decoders demand it."""


class Quantity(str):
    """A Kubernetes quantity that can be read."""


def _special(kind: type, value: Any) -> Any:
    """msgspec's hook for the types above. Raises ValueError, which becomes a ValidationError with the field's path."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    if kind is Quantity:
        quantity.parse(value)
        return Quantity(value)
    if _TIME.fullmatch(value) is None:
        raise ValueError("not a time of the form 2006-01-02T15:04:05Z")
    datetime.fromisoformat(value)
    return Time(value)


_SIMPLE: Final[dict[str, Any]] = {
    "string": str,
    "bool": bool,
    "int32": Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)],
    "int64": Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)],
    "number": float,
    "int-or-string": int | str,
    "quantity": Quantity,
    "time": Time,
    "microtime": Time,
}


class _Forms:
    """Struct types by definition, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, type[msgspec.Struct]] = {}

    def struct(self, definition: str) -> type[msgspec.Struct]:
        made = self._made.get(definition)
        if made is not None:
            return made
        shape = schema.struct(definition)
        needed = _NEEDED.get(shape.name, ())
        fields: list[Any] = [(name, self.of(shape.fields[name])) for name in needed]
        fields += [
            (name, self.of(node) | None, None) for name, node in shape.fields.items() if name not in needed
        ]
        made = msgspec.defstruct(shape.name, fields, omit_defaults=True, gc=False)
        self._made[definition] = made
        return made

    def of(self, node: Node) -> Any:
        if node.kind == "struct":
            return self.struct(node.ref)
        if node.kind == "list":
            assert node.elem is not None
            return list[self.of(node.elem)]  # type: ignore[misc]
        if node.kind == "map":
            assert node.elem is not None
            return dict[str, self.of(node.elem)]  # type: ignore[misc]
        return _SIMPLE[node.kind]


@functools.cache
def _decoder(definition: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_Forms().struct(definition), dec_hook=_special)


def pod_status(raw: bytes | msgspec.Raw) -> Object:
    """A PodStatus as a node reports it, clean. Raises msgspec.ValidationError and its kin, UnicodeError, RecursionError."""
    status = _decoder(POD_STATUS).decode(raw)
    if status.phase not in PHASES:
        raise msgspec.ValidationError("status.phase is none of Kubernetes' phases")
    _check_bounds(status.conditions, CONDITIONS_MAX, "conditions")
    for name in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        _check_bounds(getattr(status, name), CONTAINERS_MAX, name)
    clean: Object = msgspec.to_builtins(status, enc_hook=str)
    return clean


def check_node(raw: bytes | msgspec.Raw) -> None:
    """Whether the status fields of a node's report have the schema's types. Raises as `pod_status`."""
    _decoder(NODE_STATUS).decode(raw)


def _check_bounds(items: list[Any] | None, most: int, name: str) -> None:
    if items is not None and len(items) > most:
        raise msgspec.ValidationError(f"status.{name}: {len(items)} entries, at most {most} are allowed")
