"""OpenAPI v2 and v3, as kubectl asks for them.

Job: the documents as bytes, built when first asked for and kept (about 1 MB each family); the trees that they are made
from are dropped. Invariant: deterministic, so that the hash in the v3 index changes only with the content.
Building takes some tenths of a second: call the functions off the event loop (`asyncio.to_thread`).

Sources: the OpenAPI 2.0 and 3.0 specifications, the Kubernetes page on its OpenAPI endpoints.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Final

import orjson

from hub.api import openapi_pb, operations, schema
from hub.api.operations import Operation, Parameter
from hub.errors import NotAcceptable, NotFound

JSON: Final = "application/json"
V2_PROTOBUF: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_V2_PROTOBUF_OLD: Final = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_EXTRA: Final = (operations.STATUS, schema.META + "WatchEvent", schema.META + "APIResourceList")

Tree = dict[str, Any]


def v2(accept: str = "") -> tuple[bytes, str]:
    """(body, Content-Type) of /openapi/v2 for an Accept header. Raises NotAcceptable (406)."""
    wanted = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    for media in wanted or [JSON]:
        if media in (JSON, "application/*", "*/*"):
            return v2_json(), JSON
        if media in (V2_PROTOBUF, _V2_PROTOBUF_OLD):
            return v2_protobuf(), V2_PROTOBUF  # Go cannot parse the old name as a media type
    raise NotAcceptable([JSON, V2_PROTOBUF])


@functools.cache
def v2_json() -> bytes:
    """/openapi/v2 as JSON."""
    return orjson.dumps(_v2())


@functools.cache
def v2_protobuf() -> bytes:
    """/openapi/v2 as a gnostic openapi.v2.Document."""
    return openapi_pb.document(_v2())


def v3_index() -> bytes:
    """/openapi/v3: where each group and version's document is, with its hash."""
    paths = {
        path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={hashlib.sha256(body).hexdigest().upper()}"}
        for path, body in _v3().items()
    }
    return orjson.dumps({"paths": paths})


def v3_document(path: str) -> bytes:
    """/openapi/v3/<path>, such as `api/v1` or `apis/apps/v1`. Raises NotFound."""
    body = _v3().get(path.strip("/"))
    if body is None:
        raise NotFound.no_such_path()
    return body


def v3_hash(path: str) -> str:
    """The hash that the index gives for a document (an ETag). Raises NotFound."""
    return hashlib.sha256(v3_document(path)).hexdigest().upper()


def _info() -> Tree:
    return {"title": "CloudHub", "version": schema.KUBERNETES_VERSION}


def _described(op: Operation) -> Tree:
    """What both versions say of an operation."""
    return {
        "tags": [f"{op.resource.group or 'core'}_{op.resource.version}"],
        "description": f"{op.action} {op.resource.plural}",
        "operationId": op.id,
        "x-kubernetes-action": op.action,
        "x-kubernetes-group-version-kind": op.gvk,
    }


def _v2() -> Tree:
    paths: dict[str, Tree] = {}
    for op in operations.operations():
        paths.setdefault(op.path, {})[op.method] = _v2_operation(op)
    return {
        "swagger": "2.0",
        "info": _info(),
        "paths": dict(sorted(paths.items())),
        "definitions": schema.published(),
    }


def _v2_operation(op: Operation) -> Tree:
    parameters = [_v2_parameter(p) for p in op.parameters]
    if op.body:
        body = {"in": "body", "name": "body", "required": True, "schema": _v2_ref(op.body)}
        parameters.insert(0, body)
    ok: Tree = {"description": "OK", "schema": _v2_ref(op.answer) if op.answer else {"type": "string"}}
    answers: Tree = {"200": ok}
    if op.action == "post":
        answers["201"] = {**ok, "description": "Created"}
    return {
        **_described(op),
        "consumes": list(op.consumes),
        "produces": list(op.produces),
        "parameters": parameters,
        "responses": {**answers, "401": {"description": "Unauthorized"}},
    }


def _v2_parameter(p: Parameter) -> Tree:
    required = {"required": True} if p.where == "path" else {}
    return {
        "name": p.name,
        "in": p.where,
        "type": p.type,
        "description": p.help,
        "uniqueItems": True,
    } | required


def _v2_ref(definition: str) -> Tree:
    return {"$ref": "#/definitions/" + definition}


@functools.cache
def _v3() -> dict[str, bytes]:
    definitions = {name: _v3_schema(tree) for name, tree in schema.published().items()}
    definitions[schema.QUANTITY] = {
        "description": schema.QUANTITY_HELP,
        "oneOf": [{"type": "string"}, {"type": "number"}],
    }
    definitions[schema.INT_OR_STRING] = {
        "description": "A number, or a string (a name or a percentage).",
        "format": "int-or-string",
        "oneOf": [{"type": "integer"}, {"type": "string"}],
    }
    grouped: dict[str, list[Operation]] = {}
    for op in operations.operations():
        grouped.setdefault(operations.root(op.resource).strip("/"), []).append(op)
    return {path: _v3_group(ops, definitions) for path, ops in sorted(grouped.items())}


def _v3_group(ops: list[Operation], definitions: dict[str, Tree]) -> bytes:
    paths: dict[str, Tree] = {}
    roots = set(_EXTRA)
    for op in ops:
        path = paths.setdefault(op.path, {})
        path[op.method] = _v3_operation(op)
        roots |= {name for name in (op.body, op.answer) if name}
    return orjson.dumps(
        {
            "openapi": "3.0.0",
            "info": _info(),
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": operations.used(definitions, roots)},
        }
    )


def _v3_operation(op: Operation) -> Tree:
    out = _described(op)
    out["parameters"] = [_v3_parameter(p) for p in op.parameters]
    if op.body:
        content = {media: {"schema": _v3_ref(op.body)} for media in op.consumes}
        out["requestBody"] = {"content": content, "required": True}
    answer = _v3_ref(op.answer) if op.answer else {"type": "string"}
    ok = {"description": "OK", "content": {media: {"schema": answer} for media in op.produces}}
    out["responses"] = {"200": ok, "401": {"description": "Unauthorized"}}
    if op.action == "post":
        out["responses"]["201"] = {**ok, "description": "Created"}
    return out


def _v3_parameter(p: Parameter) -> Tree:
    required = {"required": True} if p.where == "path" else {}
    return {
        "name": p.name,
        "in": p.where,
        "description": p.help,
        "schema": {"type": p.type, "uniqueItems": True},
    } | required


def _v3_ref(definition: str) -> Tree:
    return {"$ref": "#/components/schemas/" + definition}


def _v3_schema(tree: Any) -> Any:
    """A v2 schema as v3 writes it: a reference that has neighbours moves into allOf."""
    if isinstance(tree, list):
        return [_v3_schema(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    out = {k: _v3_schema(v) for k, v in tree.items() if k != "$ref"}
    if "$ref" in tree:
        ref = _v3_ref(tree["$ref"].rpartition("/")[2])
        return {**out, "allOf": [ref]} if out else ref
    return out
