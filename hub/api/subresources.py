"""scale, binding and eviction: views of an object, and verbs on it."""

from collections.abc import Mapping
from typing import Any, Final

from hub import errors, objects, tracecontext
from hub.api import decode, schema, validation
from hub.api.kinds import Kind, Object
from hub.api.patch import apply_patch
from hub.api.writing import Writer, check_patch_type, delete_options
from hub.registry import MUTATE_ATTEMPTS, Registry, Stored

SCALE: Final = schema.Resource("autoscaling", "v1", "scales", "Scale", "scale", True, schema.SCALE)


def scale_of(kind: Kind, obj: Object) -> Object:
    """The Scale of a Deployment or ReplicaSet. [pure]"""
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in kept if k in meta},
        "spec": {"replicas": obj.get("spec", {}).get("replicas", 1)},
        "status": {
            "replicas": obj.get("status", {}).get("replicas", 0),
            "selector": _selector_text(obj.get("spec", {}).get("selector", {})),
        },
    }


def _selector_text(selector: Mapping[str, Any]) -> str:
    terms = [f"{key}={value}" for key, value in sorted(selector.get("matchLabels", {}).items())]
    for term in selector.get("matchExpressions", []):
        key, op, values = term["key"], term["operator"], ",".join(sorted(term.get("values", [])))
        text = {"Exists": key, "DoesNotExist": f"!{key}"}.get(op)
        terms.append(text or f"{key} {'in' if op == 'In' else 'notin'} ({values})")
    return ",".join(terms)


class Subresources:
    """Writes through subresources other than status."""

    def __init__(self, registry: Registry, writer: Writer) -> None:
        self._registry = registry
        self._writer = writer

    async def get_scale(self, kind: Kind, namespace: str, name: str) -> Object:
        stored = await self._registry.get(kind.res, namespace, name)
        return scale_of(kind, stored.obj())

    async def put_scale(
        self, kind: Kind, namespace: str, name: str, value: Any, *, field_validation: str, dry_run: bool
    ) -> tuple[Object, list[str]]:
        """The new Scale, and warnings. Raises ApiError."""
        decoded = decode.decode(SCALE, value)
        warnings = decode.field_warnings(SCALE, decoded, field_validation)
        for _ in range(MUTATE_ATTEMPTS):
            stored = await self._registry.get(kind.res, namespace, name)
            try:
                return await self._set_scale(kind, stored, decoded.object, dry_run), warnings
            except errors.Conflict:
                if decoded.object["metadata"].get("resourceVersion"):
                    raise
        raise errors.Conflict(kind.res.resource, name, group=kind.res.group)

    async def patch_scale(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        content_type: str,
        body: bytes,
        *,
        field_validation: str,
        dry_run: bool,
    ) -> tuple[Object, list[str]]:
        check_patch_type(content_type)
        for _ in range(MUTATE_ATTEMPTS):
            stored = await self._registry.get(kind.res, namespace, name)
            patched = apply_patch(content_type, SCALE, scale_of(kind, stored.obj()), body)
            decoded = decode.decode(SCALE, patched)
            warnings = decode.field_warnings(SCALE, decoded, field_validation)
            try:
                return await self._set_scale(kind, stored, decoded.object, dry_run), warnings
            except errors.Conflict:
                if decoded.object["metadata"].get("resourceVersion") != str(stored.revision):
                    raise
        raise errors.Conflict(kind.res.resource, name, group=kind.res.group)

    async def _set_scale(self, kind: Kind, stored: Stored, scale: Object, dry_run: bool) -> Object:
        name = stored.obj()["metadata"]["name"]
        if (given := scale["metadata"].setdefault("name", name)) != name:
            raise errors.BadRequest(
                f"the name of the object ({given}) does not match the name on the URL ({name})"
            )
        if causes := validation.validate_scale(scale):
            raise errors.Invalid("Scale", name, causes, group="autoscaling")
        asked = scale["metadata"].get("resourceVersion")
        if asked and asked != str(stored.revision):
            raise errors.Conflict(kind.res.resource, name, group=kind.res.group)
        obj = stored.obj()
        replicas = scale.get("spec", {}).get("replicas", 0)
        if obj["spec"].get("replicas") != replicas:
            obj["spec"]["replicas"] = replicas
            obj["metadata"]["generation"] = obj["metadata"].get("generation", 0) + 1
            if not dry_run:
                tracecontext.stamp(obj)
                obj = (await self._registry.replace(kind.res, stored, obj)).obj()
        return scale_of(kind, obj)

    async def bind(self, namespace: str, name: str, value: Any, *, dry_run: bool) -> None:
        """POST of a Binding. Raises ApiError."""
        decoded = decode.decode_as(
            schema.BINDING, value, what='Binding in version "v1" cannot be handled as a Binding'
        )
        binding = decoded.object
        if causes := validation.validate_binding(binding):
            raise errors.Invalid("Binding", name, causes)
        given = binding.get("metadata", {}).get("name")
        if given and given != name:
            raise errors.BadRequest(
                f"the name of the object ({given}) does not match the name on the URL ({name})"
            )
        uid = binding.get("metadata", {}).get("uid")
        if uid is None:
            stored = await self._registry.get(objects.PODS, namespace, name)
            uid = stored.obj()["metadata"]["uid"]
        if not dry_run:
            await self._registry.bind(namespace, name, uid, binding["target"]["name"])

    async def evict(self, kind: Kind, namespace: str, name: str, value: Any, *, dry_run: bool) -> None:
        """POST of an Eviction: a delete, since there are no disruption budgets here. Raises ApiError."""
        if not isinstance(value, dict) or value.get("kind", "Eviction") != "Eviction":
            raise errors.BadRequest("the body of an eviction must be an object of kind Eviction (policy/v1)")
        body = value.get("deleteOptions")
        options: Object = {}
        if body is not None:
            options = decode.decode_as(schema.DELETE_OPTIONS, body, what="Eviction.deleteOptions").object
        if dry_run:
            options["dryRun"] = ["All"]
        await self._writer.delete(kind, namespace, name, delete_options({}, options))
