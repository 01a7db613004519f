"""The REST operations of every resource, in a form that OpenAPI v2 and v3 are written from. [pure]"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hub.api import patch, schema
from hub.api.kinds import kinds
from hub.api.schema import BINDING, DELETE_OPTIONS, META, REVIEWS, SCALE, TOKEN_REQUEST, Resource

STATUS: Final = META + "Status"
PATCH_BODY: Final = META + "Patch"
JSON_TYPES: Final = ("application/json", "application/yaml")
WATCH_TYPES: Final = (*JSON_TYPES, "application/json;stream=watch")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query (or path) parameter; `type` is string, boolean or integer."""

    name: str
    type: str
    help: str
    where: str = "query"


_NAME: Final = Parameter("name", "string", "The object's name.", "path")
_NAMESPACE: Final = Parameter("namespace", "string", "The object's namespace.", "path")
_PRETTY: Final = Parameter("pretty", "string", "If 'true', the output is indented.")
_DRY_RUN: Final = Parameter("dryRun", "string", "All: everything is checked and nothing is stored.")
_MANAGER: Final = Parameter("fieldManager", "string", "The name of who makes the change.")
_VALIDATION: Final = Parameter(
    "fieldValidation",
    "string",
    "What happens to unknown and duplicate fields: Ignore, Warn (the default) or Strict.",
)
_FORCE: Final = Parameter("force", "boolean", "Takes over conflicting fields; only for server-side apply.")
_WRITE: Final = (_DRY_RUN, _MANAGER, _VALIDATION)
_LIST: Final = (
    Parameter("allowWatchBookmarks", "boolean", "Asks for BOOKMARK events."),
    Parameter("continue", "string", "The token of the previous page."),
    Parameter("fieldSelector", "string", "Restricts the list by fields."),
    Parameter("labelSelector", "string", "Restricts the list by labels."),
    Parameter("limit", "integer", "The most objects that one page holds."),
    Parameter("resourceVersion", "string", "The version to read at or to watch from."),
    Parameter("resourceVersionMatch", "string", "How resourceVersion is applied to a list."),
    Parameter("sendInitialEvents", "boolean", "A watch begins with the objects that exist."),
    Parameter("timeoutSeconds", "integer", "Ends the call after this many seconds."),
    Parameter("watch", "boolean", "Streams changes instead of a list."),
)
_DELETE: Final = (
    _DRY_RUN,
    Parameter("gracePeriodSeconds", "integer", "Seconds before the object is removed; 0 is at once."),
    Parameter("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    Parameter("propagationPolicy", "string", "Orphan, Background or Foreground."),
)
_LOG: Final = (
    Parameter("container", "string", "The container; needed when the pod has several."),
    Parameter("follow", "boolean", "Goes on as the log grows."),
    Parameter("limitBytes", "integer", "The most bytes to return."),
    Parameter("previous", "boolean", "The log of the container's previous run."),
    Parameter("sinceSeconds", "integer", "Only lines of the last so many seconds."),
    Parameter("sinceTime", "string", "Only lines since this time (RFC 3339)."),
    Parameter("tailLines", "integer", "Only so many lines from the end."),
    Parameter("timestamps", "boolean", "Begins each line with its time."),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. body and answer are definitions, "" for none."""

    path: str
    method: str
    action: str
    resource: Resource
    gvk: dict[str, str]
    parameters: tuple[Parameter, ...]
    body: str
    answer: str
    consumes: tuple[str, ...] = ("*/*",)
    produces: tuple[str, ...] = JSON_TYPES
    suffix: str = ""

    @property
    def id(self) -> str:
        """operationId: unique, stable."""
        r = self.resource
        group = "".join(part.capitalize() for part in (r.group or "core").split(".")[0].split("-"))
        scope = "Namespaced" if "{namespace}" in self.path else ""
        everywhere = "ForAllNamespaces" if r.namespaced and not scope else ""
        return f"{self.action}{group}{r.version.capitalize()}{scope}{r.kind}{self.suffix}{everywhere}"


def root(resource: Resource) -> str:
    """`/api/v1`, `/apis/apps/v1`."""
    group, version = resource.group, resource.version
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def _gvk(resource: Resource) -> dict[str, str]:
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


def operations() -> Iterator[Operation]:
    """Every operation of every resource that is served."""
    for served in kinds().values():
        yield from _of_resource(served.schema, served.is_made_by_the_hub)
    for r in REVIEWS:
        path, kind = f"{root(r)}{'/namespaces/{namespace}' if r.namespaced else ''}/{r.plural}", r.definition
        scope = (_NAMESPACE,) if r.namespaced else ()
        yield Operation(path, "post", "post", r, _gvk(r), (*scope, *_WRITE, _PRETTY), kind, kind)


def _of_resource(r: Resource, made_by_the_hub: bool) -> Iterator[Operation]:
    scope = (_NAMESPACE,) if r.namespaced else ()
    collection = root(r) + ("/namespaces/{namespace}/" if r.namespaced else "/") + r.plural
    gvk, kind, kinds = _gvk(r), r.definition, r.definition + "List"
    if r.namespaced:
        path = f"{root(r)}/{r.plural}"
        yield Operation(path, "get", "list", r, gvk, (*_LIST, _PRETTY), "", kinds, produces=WATCH_TYPES)
    listing = (*scope, *_LIST, _PRETTY)
    yield Operation(collection, "get", "list", r, gvk, listing, "", kinds, produces=WATCH_TYPES)
    if not made_by_the_hub:
        yield Operation(collection, "post", "post", r, gvk, (*scope, *_WRITE, _PRETTY), kind, kind)
    many = (*scope, *_LIST, *_DELETE, _PRETTY)
    yield Operation(
        collection, "delete", "deletecollection", r, gvk, many, DELETE_OPTIONS, STATUS, suffix="Collection"
    )
    item = collection + "/{name}"
    yield from _of_item(r, item, gvk, kind, "")
    one = (_NAME, *scope, *_DELETE, _PRETTY)
    yield Operation(item, "delete", "delete", r, gvk, one, DELETE_OPTIONS, STATUS)
    for sub in r.subresources:
        yield from _of_subresource(r, f"{item}/{sub}", sub, gvk)


def _of_item(r: Resource, path: str, gvk: dict[str, str], kind: str, suffix: str) -> Iterator[Operation]:
    scope = (_NAME, _NAMESPACE) if r.namespaced else (_NAME,)
    write = (*scope, *_WRITE, _PRETTY)
    yield Operation(path, "get", "get", r, gvk, (*scope, _PRETTY), "", kind, suffix=suffix)
    yield Operation(path, "put", "put", r, gvk, write, kind, kind, suffix=suffix)
    yield Operation(
        path,
        "patch",
        "patch",
        r,
        gvk,
        (*scope, *_WRITE, _FORCE, _PRETTY),
        PATCH_BODY,
        kind,
        consumes=patch.TYPES,
        suffix=suffix,
    )


def _of_subresource(r: Resource, path: str, sub: str, gvk: dict[str, str]) -> Iterator[Operation]:
    scope = (_NAME, _NAMESPACE) if r.namespaced else (_NAME,)
    if sub in ("status", "approval"):
        yield from _of_item(r, path, gvk, r.definition, sub.capitalize())
    elif sub == "scale":
        scale = {"group": "autoscaling", "kind": "Scale", "version": "v1"}
        yield from _of_item(r, path, scale, SCALE, "Scale")
    elif sub == "binding":
        binding = {"group": "", "kind": "Binding", "version": "v1"}
        parameters = (*scope, *_WRITE, _PRETTY)
        yield Operation(path, "post", "post", r, binding, parameters, BINDING, BINDING, suffix="Binding")
    elif sub == "token":
        parameters, kind = (*scope, *_WRITE, _PRETTY), TOKEN_REQUEST.definition
        yield Operation(path, "post", "post", r, _gvk(TOKEN_REQUEST), parameters, kind, kind, suffix="Token")
    elif sub == "log":
        parameters = (*scope, *_LOG, _PRETTY)
        yield Operation(
            path, "get", "get", r, gvk, parameters, "", "", produces=("text/plain",), suffix="Log"
        )
    else:
        raise AssertionError(f"no operations are known for {r.plural}/{sub}")


def used(definitions: dict[str, dict[str, Any]], roots: set[str]) -> dict[str, dict[str, Any]]:
    """The definitions that `roots` lead to, roots included, sorted by name."""
    seen, todo = set(roots), sorted(roots)
    while todo:
        fresh = {name for name in schema.references(definitions[todo.pop()]) if name not in seen}
        seen |= fresh
        todo += sorted(fresh)
    return {name: definitions[name] for name in sorted(seen)}
