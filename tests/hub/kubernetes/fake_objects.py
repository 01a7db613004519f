"""An API server in memory, for what decides whether a write is taken: resourceVersion, UID, the status subresource,
preconditions of a delete, finalizers and grace. Beside it the same tests run against a real one."""

import asyncio
import copy
import datetime
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from hub import errors

Object = dict[str, Any]
SERVER_META = ("uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp")


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


class FakeApi:
    """`request` as KubeClient's. `log`: (method, path) of every request that was sent. `meddle`: called once, before the
    next write is looked at. `failures`: raised, one each, in place of an answer; `lost`: how many writes are carried out
    without an answer."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.revision = 1000
        self.log: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.meddle: list[Callable[[], None]] = []
        self.failures: list[errors.ApiError] = []
        self.lost = 0
        self.sent: Callable[[], None] = lambda: None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        before: Callable[[], None] | None = None,
        apart: bool = False,
    ) -> tuple[int, bytes]:
        await asyncio.sleep(0)  # others come in between, as with a real one
        if before is not None:
            before()
        self.log.append((method, path))
        self.sent()
        if method != "GET" and self.meddle:
            self.meddle.pop(0)()
        if self.failures:
            raise self.failures.pop(0)
        value = orjson.loads(body) if isinstance(body, bytes) else body
        self.bodies.append(value)
        answer = orjson.dumps(self._answer(method, path, value, content_type))
        if method != "GET" and self.lost:
            self.lost -= 1
            raise errors.Timeout("no answer; whether it took effect is not known")
        return 200, answer

    # -- by hand -------------------------------------------------------------------------------------------------

    def put(self, path: str, obj: Object) -> Object:
        """Creates or overwrites, as somebody else would."""
        held = self.objects.get(path)
        meta = obj.setdefault("metadata", {})
        meta.setdefault("name", path.rsplit("/", 1)[1])
        if "/namespaces/" in path:
            meta.setdefault("namespace", path.split("/namespaces/")[1].split("/")[0])
        meta.setdefault("uid", held["metadata"]["uid"] if held else str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self._stamp(obj)
        self.objects[path] = obj
        return obj

    def touch(self, path: str, **labels: str) -> None:
        """Somebody else changes the object."""
        obj = copy.deepcopy(self.objects[path])
        obj["metadata"].setdefault("labels", {}).update(labels)
        self.put(path, obj)

    def _stamp(self, obj: Object) -> None:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)

    # -- one request ---------------------------------------------------------------------------------------------

    def _answer(self, method: str, path: str, value: Any, content_type: str) -> Object:
        if method == "POST":
            return self._create(path, value)
        status = path.endswith("/status")
        target = path.removesuffix("/status")
        held = self.objects.get(target)
        resource, name = target.rsplit("/", 2)[1:]
        if held is None:
            raise errors.NotFound(resource, name)
        if method == "GET":
            return held
        if method == "DELETE":
            return self._delete(target, held, value or {})
        assert method == "PATCH" and content_type == "application/merge-patch+json", (method, content_type)
        return self._patch(target, held, value, status)

    def _create(self, path: str, obj: Object) -> Object:
        name, resource = obj["metadata"]["name"], path.rsplit("/", 1)[1]
        if f"{path}/{name}" in self.objects:
            raise errors.AlreadyExists(resource, name)
        if obj["metadata"].get("resourceVersion"):
            raise errors.BadRequest("resourceVersion should not be set on objects to be created")
        obj = copy.deepcopy(obj)
        obj["metadata"].pop("uid", None)
        if resource in ("jointokens", "pods"):
            obj.pop("status", None)  # has a status subresource that a create does not touch
        return self.put(f"{path}/{name}", obj)

    def _patch(self, path: str, held: Object, patch: Object, status: bool) -> Object:
        resource, name = path.rsplit("/", 2)[1:]
        meta = patch.get("metadata", {})
        version = held["metadata"]["resourceVersion"]
        if meta.get("resourceVersion", version) != version:
            raise errors.Conflict(resource, name)
        if meta.get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            raise errors.Unprocessable(f"{resource} {name} is invalid: metadata.uid: field is immutable")
        new = merged(held, patch)
        for field in SERVER_META:
            if field in held["metadata"]:
                new["metadata"][field] = held["metadata"][field]
        if resource in ("pods", "nodes", "jointokens"):
            part = "spec" if status else "status"
            new[part] = held.get(part, {})
            if status and resource == "pods" and "qosClass" in held.get("status", {}):
                new["status"].setdefault("qosClass", held["status"]["qosClass"])
        if new == held:
            return held
        self._stamp(new)
        self.objects[path] = new
        return new

    def _delete(self, path: str, held: Object, options: Object) -> Object:
        resource, name = path.rsplit("/", 2)[1:]
        wanted, meta = options.get("preconditions", {}), held["metadata"]
        for field in ("uid", "resourceVersion"):
            if wanted.get(field, meta[field]) != meta[field]:
                raise errors.Conflict(resource, name, f"Precondition failed: {field} in precondition")
        grace = options.get("gracePeriodSeconds", 30 if resource == "pods" else 0)
        if grace == 0 and not meta.get("finalizers"):
            del self.objects[path]
            self.revision += 1
            return held
        marked = copy.deepcopy(held)
        marked["metadata"].setdefault(
            "deletionTimestamp", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        marked["metadata"]["deletionGracePeriodSeconds"] = grace
        return self.put(path, marked)
