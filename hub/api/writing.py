"""Create, update, patch and delete: from a request's body to the store.

Every write is decoded, defaulted and validated as a whole object, whichever verb brought it. What the system owns
(uid, times, generation, status outside the status subresource) is never taken from a client.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hub import deletion, errors, objects, tracecontext
from hub.api import decode, defaults, validation
from hub.api.ages import rfc3339_micro
from hub.api.kinds import Kind, Object, kind_of
from hub.api.patch import TYPES as PATCH_TYPES
from hub.api.patch import apply_patch
from hub.api.podspecs import PodSpecs
from hub.jointokens import RECORD, with_record
from hub.policies.asking import ASKER
from hub.policies.matching import Attempt
from hub.policies.watching import Policies
from hub.registry import MUTATE_ATTEMPTS, Registry, Stored, rfc3339

CREATE_ATTEMPTS: Final = 8
SPACES_MAX: Final = 1024
"""Namespaces that are remembered from one create to the next."""
APPLY_PATCH: Final = "application/apply-patch"
_PATCH_THREAD_BYTES_MIN: Final = 64 * 1024
_SYSTEM_META: Final = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
)

Mint = Callable[[Object], tuple[Object, str]]
"""From a JoinToken's spec to (record to store, the token's text). Raises ApiError."""


Guard = Callable[[Kind, Object, Object | None], Awaitable[None]]
"""Asked with the object as it is going to be stored and as it was (None at a create), right before. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class Written:
    """`raw` and `revision` as stored, `obj` instead where nothing was stored (dry run) or the answer says more than the
    store holds. `warnings` go into Warning headers. `created`: 201."""

    stored: Stored | None
    obj: Object | None
    warnings: list[str]
    created: bool = False


class Writer:
    """All writes of one API server."""

    def __init__(self, registry: Registry, mint: Mint | None, policies: Policies | None = None) -> None:
        self._registry = registry
        self._mint = mint
        self._policies = policies
        self._pod_specs = PodSpecs()
        self._spaces: dict[str, Stored] = {}
        """Namespaces as they were read last. Every create compares its namespace's revision, so an old one is found out."""

    # -- create -------------------------------------------------------------------------------------------------

    async def create(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        value: Any,
        *,
        field_validation: str,
        dry_run: bool,
        guard: Guard,
    ) -> Written:
        """`name`: of a PUT that creates, else "". Raises ApiError."""
        spec_key = self._pod_specs.key(value) if kind.res == objects.PODS else None
        spec = self._pod_specs.get(spec_key, value)
        if spec is not None:
            value = {**value, "spec": spec}
        decoded = decode.decode(kind.schema, value, {"spec": spec})
        warnings = decode.field_warnings(kind.schema, decoded, _strictness(kind, field_validation))
        obj = decoded.object
        _set_scope(kind, namespace, obj)
        meta = obj["metadata"]
        if meta.get("resourceVersion"):
            raise errors.BadRequest("resourceVersion should not be set on objects to be created")
        if name and meta.setdefault("name", name) != name:
            raise _name_mismatch(meta["name"], name)
        _reset_for_create(kind, obj)
        generate = "" if meta.get("name") else meta.get("generateName", "")
        text = self._mint_into(obj) if kind.res == objects.JOINTOKENS else ""
        for attempt in range(CREATE_ATTEMPTS):
            called = meta.get("name") or generate
            remembered = self._spaces.get(namespace) if attempt == 0 and not dry_run else None
            within = remembered or await self._live_namespace(kind, namespace, called)
            if generate:
                meta["name"] = validation.generated_name(generate, os.urandom(16))
            defaults.apply(kind.schema, obj)
            validation.check_create(kind.schema, obj, spec_known=spec is not None)
            if spec_key is not None and not decoded.problems:
                self._pod_specs.put(spec_key, obj["spec"])
            await guard(kind, obj, None)
            warnings += self._judge("CREATE", kind, obj, None, dry_run=dry_run)
            if dry_run:
                if await self._registry.find(kind.res, namespace, meta["name"]) is not None:
                    raise errors.AlreadyExists(kind.res.resource, meta["name"], group=kind.res.group)
                return Written(None, obj, warnings, created=True)
            tracecontext.stamp(obj)
            try:
                stored = await self._registry.create(kind.res, obj, within=within)
            except errors.Conflict:  # the namespace changed: it may be going
                self._spaces.pop(namespace, None)
                if attempt + 1 == CREATE_ATTEMPTS:
                    raise
                continue
            except errors.AlreadyExists:
                if remembered is not None:
                    await self._live_namespace(kind, namespace, called)  # that it is going comes first
                if not generate or attempt + 1 == CREATE_ATTEMPTS:
                    raise
                continue
            if within is not None:
                self._remember(namespace, within)
            shown = _with_token(stored, text) if text else None
            return Written(stored, shown, warnings, created=True)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _remember(self, namespace: str, found: Stored) -> None:
        if len(self._spaces) >= SPACES_MAX:
            self._spaces.clear()
        self._spaces[namespace] = found

    async def _live_namespace(self, kind: Kind, namespace: str, name: str) -> Stored | None:
        """The namespace that the object goes into; None for a kind without. Raises NotFound, and Forbidden for one that
        is being deleted."""
        if not kind.res.namespaced:
            return None
        found = await self._registry.find(objects.NAMESPACES, "", namespace)
        if found is None:
            raise errors.NotFound(objects.NAMESPACES.resource, namespace)
        if deletion.MARK in found.raw and found.obj()["metadata"].get("deletionTimestamp"):
            failure = errors.Forbidden(
                kind.res.resource,
                name,
                f"unable to create new content in namespace {namespace} because it is being terminated",
                group=kind.res.group,
            )
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            failure.details["causes"] = [cause]
            raise failure
        return found

    def _mint_into(self, obj: Object) -> str:
        """Makes the token of a JoinToken; returns its text. The object gets the record, and the token's id as its name:
        that is how whoever joins finds it."""
        defaults.apply(kind_of(objects.JOINTOKENS).schema, obj)
        meta = obj["metadata"]
        if meta.get("name") or meta.get("generateName"):
            raise errors.BadRequest(
                "a JoinToken is named by its token's id: leave metadata.name and generateName out"
            )
        # What is wrong with the spec is said in the API's words, before a token is made of it.
        probe = {**obj, "metadata": {**meta, "name": "token"}}
        validation.check_create(kind_of(objects.JOINTOKENS).schema, probe)
        if self._mint is None:
            raise errors.ServiceUnavailable("this hub makes no join tokens: it has no certificate authority")
        record, text = self._mint(obj["spec"])
        meta["name"] = record["id"]
        obj["status"] = {"expires": rfc3339(int(record["expires"])), "redeemed": 0}
        obj["status"] = with_record(obj, record)["status"]
        return text

    # -- update -------------------------------------------------------------------------------------------------

    async def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        subresource: str,
        value: Any,
        *,
        field_validation: str,
        dry_run: bool,
        guard: Guard,
    ) -> Written:
        """PUT of the object, its status or (namespaces) its spec.finalizers. Raises ApiError."""
        decoded = decode.decode(kind.schema, value)
        warnings = decode.field_warnings(kind.schema, decoded, _strictness(kind, field_validation))
        obj = decoded.object
        _set_scope(kind, namespace, obj)
        if (given := obj["metadata"].get("name")) != name:
            raise _name_mismatch(given or "", name)
        asked = obj["metadata"].get("resourceVersion")
        for _ in range(MUTATE_ATTEMPTS):
            stored = await self._registry.find(kind.res, namespace, name)
            if stored is None:
                if kind.created_by_update and not subresource and not asked:
                    return await self.create(
                        kind,
                        namespace,
                        name,
                        value,
                        field_validation=field_validation,
                        dry_run=dry_run,
                        guard=guard,
                    )
                raise errors.NotFound(kind.res.resource, name, group=kind.res.group)
            try:
                return await self._write(kind, stored, _copy(obj), subresource, warnings, dry_run, guard)
            except errors.Conflict:
                uid = obj["metadata"].get("uid")
                if asked or (uid and uid != stored.obj()["metadata"]["uid"]):
                    raise
        raise errors.Conflict(kind.res.resource, name, group=kind.res.group)

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        subresource: str,
        content_type: str,
        body: bytes,
        *,
        field_validation: str,
        dry_run: bool,
        guard: Guard,
    ) -> Written:
        """PATCH of the object or its status. Raises ApiError."""
        check_patch_type(content_type)
        for _ in range(MUTATE_ATTEMPTS):
            stored = await self._registry.get(kind.res, namespace, name)
            current = _public(kind, stored)
            if len(body) >= _PATCH_THREAD_BYTES_MIN:
                patched = await asyncio.to_thread(apply_patch, content_type, kind.schema, current, body)
            else:
                patched = apply_patch(content_type, kind.schema, current, body)
            decoded = decode.decode(kind.schema, patched, current)
            warnings = decode.field_warnings(kind.schema, decoded, _strictness(kind, field_validation))
            obj = decoded.object
            _set_scope(kind, namespace, obj)
            if obj["metadata"].get("name") != name:
                raise _name_mismatch(obj["metadata"].get("name", ""), name)
            asked = obj["metadata"].get("resourceVersion")
            try:
                return await self._write(kind, stored, obj, subresource, warnings, dry_run, guard)
            except errors.Conflict:
                if asked != str(stored.revision):
                    raise  # the patch itself names a resourceVersion
        raise errors.Conflict(kind.res.resource, name, group=kind.res.group)

    async def _write(
        self,
        kind: Kind,
        stored: Stored,
        obj: Object,
        subresource: str,
        warnings: list[str],
        dry_run: bool,
        guard: Guard,
    ) -> Written:
        """Replaces `stored` by `obj`, as far as the subresource says."""
        old = stored.obj()
        _check_versions(kind, obj, old)
        new = merge_system(kind, obj, old, subresource)
        defaults.apply(kind.schema, new)
        validation.check_update(kind.schema, new, old)
        await guard(kind, new, old)
        if kind.has_generation and not subresource and new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        warnings = [*warnings, *self._judge("UPDATE", kind, new, old, subresource, dry_run=dry_run)]
        if dry_run:
            return Written(None, new, warnings)
        if new == old:
            return Written(stored, None, warnings)  # no write for another order of the same fields
        if not subresource:
            tracecontext.stamp(new)
        written = await self._registry.replace(kind.res, stored, new)
        await deletion.release(self._registry, kind.res, written)
        return Written(written, None, warnings)

    def _judge(
        self,
        operation: str,
        kind: Kind,
        obj: Object | None,
        old: Object | None,
        subresource: str = "",
        *,
        dry_run: bool,
    ) -> list[str]:
        """The warnings of users' policies about a write. Raises ApiError for what they deny."""
        if self._policies is None or not self._policies.concern(operation, kind.res, subresource):
            return []
        meta = (obj or old or {})["metadata"]
        asker = ASKER.get()
        return self._policies.review(
            Attempt(
                operation,
                kind.res,
                meta.get("namespace", ""),
                meta["name"],
                obj,
                old,
                asker.name,
                asker.groups,
                subresource,
                dry_run,
            )
        )

    # -- delete -------------------------------------------------------------------------------------------------

    async def delete(
        self, kind: Kind, namespace: str, name: str, options: deletion.DeleteOptions
    ) -> tuple[Stored, bool]:
        """(the object as it is now, or last was; whether it is gone). Raises ApiError."""
        if kind.res == objects.NAMESPACES and name in deletion.PROTECTED_NAMESPACES:
            raise errors.Forbidden(kind.res.resource, name, "this namespace may not be deleted")
        stored = await self._registry.get(kind.res, namespace, name)
        self._judge("DELETE", kind, None, stored.obj(), dry_run=options.dry_run)
        left = await deletion.delete(self._registry, kind.res, stored, options)
        return (stored, True) if left is None else (left, False)


def _strictness(kind: Kind, asked: str) -> str:
    """Of policies no field is ever passed over: one that is not understood would let through what it was to stop."""
    return "Strict" if kind.res in (objects.POLICIES, objects.POLICY_BINDINGS) else asked


def check_patch_type(content_type: str) -> None:
    """Raises UnsupportedMediaType, with a word on server-side apply."""
    media = content_type.partition(";")[0].strip().lower()
    if media.startswith(APPLY_PATCH):
        failure = errors.UnsupportedMediaType(PATCH_TYPES)
        failure.message = (
            "server-side apply is not served by this hub; use client-side apply "
            f"(kubectl apply --server-side=false). {failure.message}"
        )
        raise failure
    if media not in PATCH_TYPES:
        raise errors.UnsupportedMediaType(PATCH_TYPES)


def _copy(obj: Object) -> Object:
    """A copy whose top and metadata may be changed."""
    return {**obj, "metadata": dict(obj["metadata"])}


def _public(kind: Kind, stored: Stored) -> Object:
    """The object as clients see it, which is what their patches are made for."""
    obj = kind.decode(stored.raw, stored.revision)
    if kind.res == objects.JOINTOKENS:
        obj.get("status", {}).pop(RECORD, None)
    return obj


def _set_scope(kind: Kind, namespace: str, obj: Object) -> None:
    meta = obj["metadata"]
    if not kind.res.namespaced:
        return
    if meta.setdefault("namespace", namespace) != namespace:
        raise errors.BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _name_mismatch(given: str, wanted: str) -> errors.BadRequest:
    return errors.BadRequest(
        f"the name of the object ({given}) does not match the name on the URL ({wanted})"
    )


def _reset_for_create(kind: Kind, obj: Object) -> None:
    """Takes out what the system owns."""
    meta = obj["metadata"]
    for field in _SYSTEM_META:
        meta.pop(field, None)
    meta["uid"] = str(uuid.uuid4())
    now = time.time()
    meta["creationTimestamp"] = rfc3339(int(now))
    if kind.res == objects.REVOCATIONS:
        meta["annotations"] = {**(meta.get("annotations") or {}), objects.REVOKED_AT: rfc3339_micro(now)}
    if kind.has_generation:
        meta["generation"] = 1
    # A node brings its status along, as a kubelet's registration does.
    if kind.has_status and kind.res != objects.NODES:
        obj.pop("status", None)
        if kind.res not in (objects.NAMESPACES, objects.PODS, objects.JOINTOKENS):
            obj["status"] = {}


def _check_versions(kind: Kind, obj: Object, old: Object) -> None:
    """Raises Conflict when the client wrote against another state or another object."""
    meta, held = obj["metadata"], old["metadata"]
    if meta.get("uid") and meta["uid"] != held["uid"]:
        raise errors.Conflict(
            kind.res.resource,
            held["name"],
            f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {held['uid']}",
            group=kind.res.group,
        )
    if meta.get("resourceVersion") and meta["resourceVersion"] != held["resourceVersion"]:
        raise errors.Conflict(kind.res.resource, held["name"], group=kind.res.group)


def merge_system(kind: Kind, obj: Object, old: Object, subresource: str) -> Object:
    """The new object, with what the system owns, and what the subresource does not cover, taken from the old one. [pure]"""
    if subresource == "status":
        new = {**old, "metadata": dict(old["metadata"])}
        new["status"] = obj.get("status", {})
        if RECORD in old.get("status", {}) and kind.res == objects.JOINTOKENS:
            new["status"] = {**new["status"], RECORD: old["status"][RECORD]}
        return new
    if subresource == "approval":
        conditions = obj.get("status", {}).get("conditions", [])
        return {**old, "status": {**old.get("status", {}), "conditions": conditions}}
    if subresource == "finalize":
        finalizers = obj.get("spec", {}).get("finalizers", [])
        return {**old, "spec": {**old.get("spec", {}), "finalizers": finalizers}}
    meta = obj["metadata"]
    for field in _SYSTEM_META:
        meta.pop(field, None)
        if field in old["metadata"]:
            meta[field] = old["metadata"][field]
    meta["resourceVersion"] = old["metadata"]["resourceVersion"]
    if kind.has_status:
        obj.pop("status", None)
        if "status" in old:
            obj["status"] = old["status"]
    if kind.res == objects.NAMESPACES:
        obj["spec"] = {**obj.get("spec", {}), "finalizers": old.get("spec", {}).get("finalizers", [])}
    return obj


def _with_token(stored: Stored, text: str) -> Object:
    obj = stored.obj()
    status = {k: v for k, v in obj["status"].items() if k != RECORD}
    return {**obj, "status": {"token": text, **status}}


def delete_options(query: Mapping[str, str], body: Mapping[str, Any] | None) -> deletion.DeleteOptions:
    """From the body where there is one, else from the query parameters. Raises BadRequest, Invalid."""
    if body:
        return deletion.DeleteOptions.parse(body)
    found: Object = {}
    if text := query.get("gracePeriodSeconds"):
        try:
            found["gracePeriodSeconds"] = int(text)
        except ValueError:
            raise errors.BadRequest(
                f"gracePeriodSeconds: {errors.quote(text[:64])} is not a number of seconds"
            ) from None
    if policy := query.get("propagationPolicy"):
        found["propagationPolicy"] = policy
    if dry_run := query.get("dryRun"):
        found["dryRun"] = [dry_run]
    return deletion.DeleteOptions.parse(found)
