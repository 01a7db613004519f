"""PATCH: from the three kinds of patches to the object that would be stored.

Any patch of any object gives an object that a store can keep, or one of the API's own errors; the object that was there is
not changed, and what an empty patch makes of it is itself.
"""

import copy
import functools
import json
from typing import Any

import orjson

from hub.api import decode, defaults, schema, validation
from hub.api.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, apply_patch
from hub.api.schema import Node, Resource
from hub.errors import ApiError
from tests.fuzz.source import ITEMS_MAX, Source

INSTRUMENTED = ("hub.api", "jsonpatch", "jsonpointer")

TYPES = (STRATEGIC_MERGE_PATCH, JSON_PATCH, MERGE_PATCH)
META = {"name": "x", "uid": "1-2", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
CONTAINER = {
    "name": "main",
    "image": "i:1",
    "ports": [{"containerPort": 80}],
    "env": [{"name": "A", "value": "b"}],
}
SPEC = {"containers": [CONTAINER, {"name": "b", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}}]}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": SPEC}
OBJECTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "v1 Pod",
        {"spec": SPEC, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}},
    ),
    ("apps/v1 Deployment", {"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}}),
    ("apps/v1 DaemonSet", {"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}}),
    ("v1 ConfigMap", {"data": {"a": "b"}}),
    ("v1 Secret", {"data": {"a": "Yg=="}, "type": "Opaque"}),
    (
        "v1 Node",
        {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}, "status": {"capacity": {"cpu": "1"}}},
    ),
    ("v1 Namespace", {"spec": {"finalizers": ["kubernetes"]}}),
    ("coordination.k8s.io/v1 Lease", {"spec": {"holderIdentity": "h"}}),
)
OPERATIONS = ("add", "remove", "replace", "move", "copy", "test", "")
POINTER = (
    "metadata",
    "labels",
    "spec",
    "containers",
    "0",
    "1",
    "-",
    "name",
    "ports",
    "env",
    "status",
    "~0",
    "",
)


@functools.cache
def stored(which: int) -> tuple[Resource, dict[str, Any]]:
    """An object as the store has it."""
    name, fields = OBJECTS[which]
    version, _, kind = name.partition(" ")
    resource = schema.resource_of(version, kind)
    assert resource is not None
    meta = {**META, "namespace": "default"} if resource.namespaced else META
    obj = decode.decode(resource, {"metadata": meta, **fields}).object
    defaults.apply(resource, obj)
    return resource, obj


def check(data: bytes) -> None:
    source = Source(data)
    resource, current = stored(source.byte() % len(OBJECTS))
    content_type = source.of(TYPES)
    if source.byte() % 4 == 0:
        patch = source.rest()
    else:
        root = Node("struct", resource.definition, None, "", False, False)
        value = _operations(source) if content_type == JSON_PATCH else _change(source, root, 0)
        patch = json.dumps(value).encode()
    before = copy.deepcopy(current)
    try:
        patched = apply_patch(content_type, resource, current, patch)
        if patch.strip() in (b"{}", b"[]"):
            assert patched == before, "an empty patch changed something"
        obj = decode.decode(resource, patched).object
        again = decode.decode(resource, obj)
        assert again.object == obj and not again.problems, "decoding is not done once"
        orjson.dumps(obj)
        if obj["metadata"].get("name") == "x":
            defaults.apply(resource, obj)
            validation.check_update(resource, obj, current)
            defaulted = copy.deepcopy(obj)
            defaults.apply(resource, obj)
            assert obj == defaulted, "defaults of defaults"
    except ApiError as refused:
        orjson.dumps({"message": refused.message, "details": refused.details})
    finally:
        assert current == before, "the stored object was changed"


def _operations(source: Source) -> list[dict[str, Any]]:
    return [
        {
            "op": source.of(OPERATIONS),
            "path": _pointer(source),
            "from": _pointer(source),
            "value": source.value(POINTER),
        }
        for _ in range(source.byte() % ITEMS_MAX)
    ]


def _pointer(source: Source) -> str:
    if source.byte() % 16 == 0:
        return source.text()
    return "".join("/" + source.of(POINTER) for _ in range(source.byte() % 6))


def _change(source: Source, node: Node | None, depth: int) -> Any:
    """A patch along the schema, with directives, and with wrong types now and then."""
    kind = node.kind if node is not None else ""
    odd = source.byte()
    if odd < 24 or depth > 8 or not source.left:
        return source.value(POINTER)
    if kind == "struct":
        assert node is not None
        fields = schema.struct(node.ref).fields
        names = tuple(fields)
        out: dict[str, Any] = {}
        for _ in range(source.byte() % ITEMS_MAX):
            name = source.of(names)
            directive = source.byte() % 12
            if directive == 0:
                out["$setElementOrder/" + name] = _list(source, fields[name], depth)
            elif directive == 1:
                out["$deleteFromPrimitiveList/" + name] = _list(source, fields[name], depth)
            elif directive == 2:
                out["$patch"] = source.of(("replace", "delete", "merge", "", None))
            elif directive == 3:
                out["$retainKeys"] = [source.of(names) for _ in range(source.byte() % 4)]
            else:
                out[name] = _change(source, fields[name], depth + 1)
        return out
    if kind == "list":
        return _list(source, node, depth)
    if kind == "map":
        elem = node.elem if node is not None else None
        return {source.text(): _change(source, elem, depth + 1) for _ in range(source.byte() % 4)}
    return {
        "string": source.of(("main", "b", "", "A", "x", "Always", "NoSchedule")),
        "int32": source.of((0, 1, 80, 65536, -1)),
        "bool": True,
        "quantity": source.of(("1", "1Gi", "100m", "1e3", "-1", "x", 5)),
        "int-or-string": source.of((80, "50%", "http")),
        "time": "2026-01-01T00:00:00Z",
        "bytes": "Yg==",
    }.get(kind, None if not source.byte() % 2 else source.value(POINTER))


def _list(source: Source, node: Node | None, depth: int) -> Any:
    elem = node.elem if node is not None else None
    return [_change(source, elem, depth + 1) for _ in range(source.byte() % ITEMS_MAX)]
