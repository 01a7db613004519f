"""Which resources the hub serves, and the shape of their objects.

Job: the table of resources, and for each kind its fields as a compact `Struct`, read once from the published
Kubernetes schemas. Invariant: what is resident is small (well under 1 MB: identical nodes are shared, descriptions
are left on disk); `published()` reads the full definitions again for those who print them.
Not guaranteed: which fields are required; that is `validation`'s job, as in Kubernetes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hub.api import own_types

KUBERNETES_MINOR: Final = "1.34"  # the one place that names the implemented API version
KUBERNETES_VERSION: Final = f"v{KUBERNETES_MINOR}.0"

_CORE: Final = "io.k8s.api.core.v1."
_APPS: Final = "io.k8s.api.apps.v1."
META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."
_RBAC: Final = "io.k8s.api.rbac.v1."
_OWN: Final = "dev.cloudhub.v1alpha1."

QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING: Final = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"

# Definitions that are values of their own rather than objects with fields.
_SPECIAL: Final = {
    QUANTITY: "quantity",
    INT_OR_STRING: "int-or-string",
    META + "Time": "time",
    META + "MicroTime": "microtime",
    META + "FieldsV1": "any",
    META + "Patch": "any",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
}


@dataclass(frozen=True, slots=True)
class Resource:
    """One served resource. `definition` is the schema of its kind; `subresources` are served below its name."""

    group: str
    version: str
    plural: str
    kind: str
    singular: str
    namespaced: bool
    definition: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        return self.kind + "List"

    @property
    def qualified(self) -> str:
        """`pods`, `deployments.apps`: as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _core(plural: str, kind: str, namespaced: bool, short: str, *subresources: str) -> Resource:
    shorts = (short,) if short else ()
    categories = ("all",) if kind == "Pod" else ()
    return Resource(
        "", "v1", plural, kind, kind.lower(), namespaced, _CORE + kind, shorts, categories, subresources
    )


def _apps(plural: str, kind: str, short: str, *subresources: str) -> Resource:
    return Resource(
        "apps", "v1", plural, kind, kind.lower(), True, _APPS + kind, (short,), ("all",), subresources
    )


def _admission(plural: str, kind: str) -> Resource:
    definition = "io.k8s.api.admissionregistration.v1." + kind
    return Resource("admissionregistration.k8s.io", "v1", plural, kind, kind.lower(), False, definition)


def _rbac(kind: str, namespaced: bool) -> Resource:
    plural = kind.lower() + "s"
    return Resource("rbac.authorization.k8s.io", "v1", plural, kind, kind.lower(), namespaced, _RBAC + kind)


RESOURCES: Final[tuple[Resource, ...]] = (
    _core("namespaces", "Namespace", False, "ns", "status"),
    _core("nodes", "Node", False, "no", "status"),
    _core("pods", "Pod", True, "po", "status", "binding", "log"),
    _core("configmaps", "ConfigMap", True, "cm"),
    _core("secrets", "Secret", True, ""),
    _core("events", "Event", True, "ev"),
    _core("serviceaccounts", "ServiceAccount", True, "sa", "token"),
    Resource("events.k8s.io", "v1", "events", "Event", "event", True, "io.k8s.api.events.v1.Event", ("ev",)),
    Resource(
        "coordination.k8s.io", "v1", "leases", "Lease", "lease", True, "io.k8s.api.coordination.v1.Lease"
    ),
    _apps("deployments", "Deployment", "deploy", "status", "scale"),
    _apps("replicasets", "ReplicaSet", "rs", "status", "scale"),
    _apps("daemonsets", "DaemonSet", "ds", "status"),
    _admission("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
    _admission("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    _rbac("Role", True),
    _rbac("RoleBinding", True),
    _rbac("ClusterRole", False),
    _rbac("ClusterRoleBinding", False),
    Resource(
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
        "certificatesigningrequest",
        False,
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
        ("csr",),
        (),
        ("status", "approval"),
    ),
    Resource(own_types.GROUP, "v1alpha1", "jointokens", "JoinToken", "jointoken", False, _OWN + "JoinToken"),
    Resource(
        own_types.GROUP, "v1alpha1", "revocations", "Revocation", "revocation", False, _OWN + "Revocation"
    ),
    Resource(
        own_types.GROUP,
        "v1alpha1",
        "devices",
        "Device",
        "device",
        True,
        _OWN + "Device",
        ("dev",),
        (),
        ("status",),
    ),
)


def _review(group: str, kind: str, namespaced: bool = False) -> Resource:
    definition = f"io.k8s.api.{group.partition('.')[0]}.v1.{kind}"
    return Resource(group, "v1", kind.lower() + "s", kind, kind.lower(), namespaced, definition)


REVIEWS: Final[tuple[Resource, ...]] = (
    _review("authentication.k8s.io", "SelfSubjectReview"),
    _review("authorization.k8s.io", "SelfSubjectAccessReview"),
    _review("authorization.k8s.io", "SelfSubjectRulesReview"),
    _review("authorization.k8s.io", "SubjectAccessReview"),
    _review("authorization.k8s.io", "LocalSubjectAccessReview", namespaced=True),
    _review("authentication.k8s.io", "TokenReview"),
)
"""Questions about who may do what, and about whose a token is: created and answered, never stored."""
TOKEN_REQUEST: Final = _review("authentication.k8s.io", "TokenRequest")
"""serviceaccounts/token: created and answered, never stored."""

BINDING: Final = _CORE + "Binding"
DELETE_OPTIONS: Final = META + "DeleteOptions"
SCALE: Final = "io.k8s.api.autoscaling.v1.Scale"
_EXTRA_ROOTS: Final = (
    BINDING,
    SCALE,
    DELETE_OPTIONS,
    *(r.definition for r in REVIEWS),
    TOKEN_REQUEST.definition,
    *(
        META + kind
        for kind in ("Status", "WatchEvent", "Patch", "APIGroup", "APIGroupList", "APIResourceList")
    ),
)


@functools.cache
def _by_path() -> dict[tuple[str, str, str], Resource]:
    return {(r.group, r.version, r.plural): r for r in RESOURCES}


@functools.cache
def _by_kind() -> dict[tuple[str, str], Resource]:
    return {(r.api_version, r.kind): r for r in RESOURCES}


def resource(group: str, version: str, plural: str) -> Resource | None:
    """The resource at `/apis/<group>/<version>/<plural>` (group `""` for the core), or None."""
    return _by_path().get((group, version, plural))


def resource_of(api_version: str, kind: str) -> Resource | None:
    """The resource whose objects carry this apiVersion and kind, or None."""
    return _by_kind().get((api_version, kind))


class Node:
    """The type of one field, list element or map value.

    kind: struct, map, list, string, int32, int64, number, bool, bytes, quantity, int-or-string, time, microtime, any (an
    object of any fields), value (any JSON).
    ref: a struct's definition. elem: of a map or list. merge_key, merge, retain: the strategic merge patch's rules.
    """

    __slots__ = ("elem", "kind", "merge", "merge_key", "ref", "retain")

    def __init__(
        self, kind: str, ref: str, elem: Node | None, merge_key: str, merge: bool, retain: bool
    ) -> None:
        self.kind, self.ref, self.elem = kind, ref, elem
        self.merge_key, self.merge, self.retain = merge_key, merge, retain

    def go_type(self) -> str:
        """The Go type that Kubernetes' decoding errors name."""
        if self.kind == "struct":
            return "v1." + struct(self.ref).name
        if self.kind == "list":
            return "[]" + self._elem_go_type()
        if self.kind == "map":
            return "map[string]" + self._elem_go_type()
        return {
            "number": "float64",
            "bytes": "[]uint8",
            "quantity": "resource.Quantity",
            "int-or-string": "intstr.IntOrString",
            "time": "v1.Time",
            "microtime": "v1.MicroTime",
            "any": "map[string]interface {}",
            "value": "interface {}",
        }.get(self.kind, self.kind)

    def _elem_go_type(self) -> str:
        return self.elem.go_type() if self.elem is not None else "interface {}"


class Struct:
    """The fields of one definition. `name` is its Go name, as in decoding errors."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, Node]) -> None:
        self.name, self.fields = name, fields


def _read() -> dict[str, msgspec.Raw]:
    """All published definitions, still undecoded: slices of one buffer.

    The package is located, not imported: importing it costs 9 MB.
    """
    spec = importlib.util.find_spec("kubernetes_validate")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package kubernetes-validate is missing: install cloudhub[hub]")
    path = os.path.join(
        spec.submodule_search_locations[0],
        "kubernetes-json-schema",
        f"{KUBERNETES_VERSION}-local",
        "_definitions.json",
    )
    with open(path, "rb") as file:
        raw = msgspec.json.decode(file.read(), type=dict[str, msgspec.Raw])
    return msgspec.json.decode(raw["$defs"], type=dict[str, msgspec.Raw])


def references(value: object) -> Iterator[str]:
    """The definitions that a schema refers to."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref" and isinstance(item, str):
                yield item.rpartition("/")[2]
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _reachable() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, definition as on disk) of everything that our resources use, each once."""
    raw = _read()
    todo = [*_EXTRA_ROOTS]
    for r in RESOURCES:
        todo += [r.definition, r.definition + "List"]
    seen = set(todo)
    while todo:
        name = todo.pop()
        definition = own_types.DEFINITIONS.get(name) or msgspec.json.decode(raw[name])
        yield name, definition
        fresh = set(references(definition)) - seen
        seen |= fresh
        todo += sorted(fresh)


def _single_type(schema: dict[str, Any]) -> str:
    declared = schema.get("type", "object")
    if isinstance(declared, list):  # the package writes optional fields as ["string", "null"]
        declared = next(t for t in declared if t != "null")
    return str(declared)


class _Compiler:
    """Turns definitions into Nodes; equal nodes become one object."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[Any, ...], Node] = {}

    def node(self, schema: dict[str, Any]) -> Node:
        strategy = str(schema.get("x-kubernetes-patch-strategy", "")).split(",")
        key = str(schema.get("x-kubernetes-patch-merge-key", ""))
        kind, ref, elem = self._kind(schema)
        parts = (kind, ref, elem, key, "merge" in strategy, "retainKeys" in strategy)
        return self._nodes.setdefault(parts, Node(*parts))

    def _kind(self, schema: dict[str, Any]) -> tuple[str, str, Node | None]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            special = _SPECIAL.get(name)
            return (special, "", None) if special else ("struct", name, None)
        if schema.get("x-kubernetes-preserve-unknown-fields") and "type" not in schema:
            return "value", "", None
        declared = _single_type(schema)
        if declared == "array":
            return "list", "", self.node(schema["items"])
        if declared == "object":
            values = schema.get("additionalProperties")
            return ("map", "", self.node(values)) if values else ("any", "", None)
        if declared == "integer":
            return str(schema.get("format", "int64")), "", None
        if declared == "string" and schema.get("format") == "byte":
            return "bytes", "", None
        return {"boolean": "bool"}.get(declared, declared), "", None


@functools.cache
def structs() -> dict[str, Struct]:
    """Every definition that our resources use, by name."""
    compiler = _Compiler()
    out: dict[str, Struct] = {}
    names: dict[str, str] = {}
    for name, definition in _reachable():
        if name in _SPECIAL:
            continue
        fields = {
            names.setdefault(field, field): compiler.node(schema)
            for field, schema in definition.get("properties", {}).items()
        }
        out[name] = Struct(name.rpartition(".")[2], fields)
    return out


def struct(definition: str) -> Struct:
    """One definition's fields. KeyError: it is not reachable from a served resource."""
    return structs()[definition]


def _mend(schema: Any) -> Any:
    """A schema as Kubernetes publishes it: single types, references into `definitions`, no added enums."""
    if isinstance(schema, list):
        return [_mend(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            out[key] = {name: _mend(field) for name, field in value.items()}
            for name in ("apiVersion", "kind"):  # the package pins their values
                out[key].get(name, {}).pop("enum", None)
        elif key == "type" and isinstance(value, list):
            out[key] = _single_type(schema)
        elif key == "$ref":
            out[key] = "#/definitions/" + value.rpartition("/")[2]
        elif key == "x-kubernetes-group-version-kind":
            out[key] = [gvk for gvk in value if gvk["group"] in _groups()]
        else:
            out[key] = _mend(value)
    return out


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(r.group for r in (*RESOURCES, *REVIEWS)) | {"autoscaling"}


def published() -> dict[str, dict[str, Any]]:
    """The full definitions with descriptions, in OpenAPI v2 form, read from disk on every call (about 8 MB)."""
    out = {name: _mend(definition) for name, definition in _reachable()}
    out[QUANTITY] = {"description": QUANTITY_HELP, "type": "string"}
    out[INT_OR_STRING] = {
        "description": "A number, or a string (a name or a percentage).",
        "format": "int-or-string",
        "type": "string",
    }
    return dict(sorted(out.items()))


QUANTITY_HELP: Final = (
    "A fixed-point number with an optional suffix: n, u, m, k, M, G, T, P, E (powers of 1000), Ki, Mi, Gi, Ti, Pi, Ei "
    "(powers of 1024), or a decimal exponent."
)
