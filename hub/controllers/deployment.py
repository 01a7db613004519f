"""The Deployment controller: one ReplicaSet per template, and the way from the old ones to the new one.

Rollback needs nothing here: `kubectl rollout undo` writes an old ReplicaSet's template into the Deployment; that
ReplicaSet then is the new one, and gets a new revision number.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from hub import errors
from hub.api.selectors import LabelSelector, from_object
from hub.cache import Entry
from hub.controllers import progress, rollout
from hub.controllers.adoption import Orphans, claim
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.events import namespace_takes_objects
from hub.controllers.meta import (
    FINISHED,
    bump_generation,
    condition,
    controller_of,
    generated_name,
    owner_reference,
    template_hash,
)
from hub.controllers.rollout import DESIRED, HASH_LABEL, REVISION, REVISION_HISTORY, Limits, Replicas, Scaling
from hub.informer import Delta
from hub.objects import DEPLOYMENTS, NAMESPACES, PODS, REPLICASETS, ObjectView, Resource

WORKERS = 4
HISTORY_CHARS_MAX = 2000


class Deployments:
    """See the module. Keys are (namespace, name) of Deployments."""

    kinds = (DEPLOYMENTS, REPLICASETS, PODS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._orphans = Orphans()
        self._selectors: dict[ObjectKey, LabelSelector] = {}
        self._driver: Controller[ObjectKey] = Controller(
            "deployment",
            context,
            self._sync,
            kinds=(DEPLOYMENTS, REPLICASETS, PODS, NAMESPACES),
            workers=WORKERS,
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        key = delta.entry.key
        if res == DEPLOYMENTS:
            if delta.type == "DELETED":
                self._selectors.pop(key, None)
            else:
                self._selectors[key] = from_object(delta.entry.obj()["spec"].get("selector"))
            self._driver.queue.add(key)
        elif res == REPLICASETS:
            self._orphans.on_delta(delta)
            self._on_replica_set(delta)
        elif delta.type == "DELETED" or delta.entry.view.status.phase in FINISHED:
            owner = controller_of(delta.entry.meta)
            rs = owner and self._context.informers.of(REPLICASETS).cache.get(key[0], owner.name)
            above = controller_of(rs.meta) if rs else None
            if above is not None:
                self._driver.queue.add((key[0], above.name))  # Recreate waits for the last old pod

    def _on_replica_set(self, delta: Delta[Any]) -> None:
        namespace = delta.entry.key[0]
        for entry in (delta.entry, delta.old):
            owner = controller_of(entry.meta) if entry is not None else None
            if owner is not None and owner.kind == DEPLOYMENTS.kind:
                self._driver.queue.add((namespace, owner.name))
        if controller_of(delta.entry.meta) is None and delta.type != "DELETED":
            for key, selector in self._selectors.items():
                if key[0] == namespace and selector.matches(delta.entry.meta.labels):
                    self._driver.queue.add(key)

    # -- one Deployment ---------------------------------------------------------------------------------------

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        entry: Entry[ObjectView] | None = self._context.informers.of(DEPLOYMENTS).cache.get(*key)
        if entry is None:
            return None
        deployment = entry.obj()
        selector = from_object(deployment["spec"].get("selector"))
        if selector.everything:
            text = "This deployment is selecting all pods. A non-empty selector is required."
            self._context.recorder.event(DEPLOYMENTS, entry.meta, "Warning", "SelectingAll", text)
            return None
        owned = await claim(
            self._context, writer, DEPLOYMENTS, deployment, REPLICASETS, selector, self._orphans
        )
        if REPLICASETS in writer.reached:
            return None  # what was adopted or released brings this key back
        sets = [rollout.replicas_of(rs.obj()) for rs in owned if rs.meta.deletionTimestamp is None]
        new = rollout.find_new(deployment, sets)
        old = [r for r in sets if new is None or r.uid != new.uid]
        return await _Sync(self._context, writer, entry, deployment, new, old).run()


class _Sync:
    """One pass over one Deployment."""

    def __init__(
        self,
        context: Context,
        writer: Writer,
        entry: Entry[ObjectView],
        deployment: Object,
        new: Replicas | None,
        old: list[Replicas],
    ) -> None:
        self._context = context
        self._writer = writer
        self._entry = entry
        self._deployment = deployment
        self._limits: Limits = rollout.limits_of(deployment)
        self._recreate = rollout.is_recreate(deployment)
        self._new = new
        self._old = old
        self._revision = max((r.revision for r in old), default=0) + 1
        self._found = ""
        self._collided = False

    @property
    def _sets(self) -> list[Replicas]:
        return [*self._old, *([self._new] if self._new else [])]

    async def run(self) -> float | None:
        paused = bool(self._deployment["spec"].get("paused"))
        if self._deployment["metadata"].get("deletionTimestamp") is None:
            if self._new is not None:
                await self._update_new(self._new)
            if paused or rollout.is_scaling(self._limits, self._sets):
                await self._resize()
            elif self._recreate:
                await self._recreate_step()
            else:
                await self._rolling_step()
            if paused or progress.is_complete(self._deployment, self._deployment.get("status") or {}):
                await self._forget_history()
        return await self._write_status()

    # -- steps ------------------------------------------------------------------------------------------------

    async def _resize(self) -> None:
        sizes = rollout.scale(self._limits, self._new, self._old, recreate=self._recreate)
        for rs in self._sets:
            desired = rs.annotations.get(DESIRED)
            if rs.wanted > 0 and desired is not None and desired != str(self._limits.replicas):
                sizes.setdefault(rs.name, rs.wanted)  # its annotations follow
        await self._scale(sizes)

    async def _rolling_step(self) -> None:
        if self._new is None:
            size = rollout.new_set_size(self._limits, self._old, 0, recreate=False)
            await self._create_new(size)
            return
        await self._scale(rollout.roll(self._limits, self._new, self._old))

    async def _recreate_step(self) -> None:
        down = {r.name: 0 for r in self._old if r.wanted}
        if down:
            await self._scale(down)
        elif self._old_pods_run():
            return
        elif self._new is None:
            await self._create_new(self._limits.replicas)
        elif self._new.wanted != self._limits.replicas:
            await self._scale({self._new.name: self._limits.replicas})

    def _old_pods_run(self) -> bool:
        cache = self._context.informers.of(PODS).cache
        return any(
            pod.view.status.phase not in FINISHED for rs in self._old for pod in cache.find("owner", rs.uid)
        )

    async def _forget_history(self) -> None:
        for rs in rollout.surplus_history(self._deployment, self._old):
            await self._writer.delete(REPLICASETS, (self._entry.key[0], rs.name), rs.uid)

    # -- ReplicaSets ------------------------------------------------------------------------------------------

    async def _create_new(self, size: int) -> None:
        meta, spec = self._deployment["metadata"], self._deployment["spec"]
        if not namespace_takes_objects(self._context.informers, meta["namespace"]):
            return
        collisions = (self._deployment.get("status") or {}).get("collisionCount", 0)
        digest = template_hash(rollout.bare_template(spec["template"]), collisions)
        rs = self._replica_set(generated_name(meta["name"], digest, limit=253), digest, size)
        try:
            await self._writer.create(REPLICASETS, rs)
        except errors.AlreadyExists:
            await self._meet_existing(rs)
            return
        self._found = "NewReplicaSetCreated"
        self._new = rollout.replicas_of(rs)
        self._tell_scaled(rs["metadata"]["name"], 0, size)

    async def _meet_existing(self, rs: Object) -> None:
        """The name is taken: by what we wanted to make (then it is the new one, once the cache shows it), or by another
        template (then the next try takes another name)."""
        meta = rs["metadata"]
        held = await self._context.registry.find(REPLICASETS, meta["namespace"], meta["name"])
        if held is None:
            return
        obj = held.obj()
        owners = {ref["uid"] for ref in obj["metadata"].get("ownerReferences") or ()}
        same = rollout.bare_template(obj["spec"]["template"]) == rollout.bare_template(rs["spec"]["template"])
        if self._entry.meta.uid not in owners or not same:
            self._collided = True

    def _replica_set(self, name: str, digest: str, size: int) -> Object:
        meta, spec = self._deployment["metadata"], self._deployment["spec"]
        template: Object = orjson.loads(orjson.dumps(spec["template"]))
        template_meta = template.setdefault("metadata", {})
        template_meta["labels"] = {**(template_meta.get("labels") or {}), HASH_LABEL: digest}
        selector: Object = orjson.loads(orjson.dumps(spec["selector"]))
        selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}
        rs: Object = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "generation": 1,
                "labels": dict(template_meta["labels"]),
                "annotations": {
                    **rollout.copied_annotations(self._deployment),
                    **rollout.replica_annotations(self._limits),
                    REVISION: str(self._revision),
                },
                "ownerReferences": [owner_reference(DEPLOYMENTS, self._deployment)],
            },
            "spec": {"replicas": size, "selector": selector, "template": template},
            "status": {"replicas": 0},
        }
        if spec.get("minReadySeconds"):
            rs["spec"]["minReadySeconds"] = spec["minReadySeconds"]
        return rs

    async def _update_new(self, new: Replicas) -> None:
        """Revision, the Deployment's annotations and minReadySeconds reach the new ReplicaSet."""
        wanted = rollout.copied_annotations(self._deployment)
        min_ready = self._deployment["spec"].get("minReadySeconds") or 0

        def change(rs: Object) -> Object | None:
            held = rs["metadata"].setdefault("annotations", {})
            before = dict(held)
            held.update(wanted)
            revision = int(held.get(REVISION) or 0)
            if revision < self._revision:
                if revision:
                    _note_revision(held, revision)
                held[REVISION] = str(self._revision)
            if (rs["spec"].get("minReadySeconds") or 0) != min_ready:
                rs["spec"]["minReadySeconds"] = min_ready
                return bump_generation(rs)
            return rs if held != before else None

        await self._change(new, change)
        if condition((self._deployment.get("status") or {}).get("conditions"), "Progressing") is None:
            self._found = "FoundNewReplicaSet"

    async def _scale(self, sizes: Scaling) -> None:
        annotations = rollout.replica_annotations(self._limits)
        for rs in self._sets:
            size = sizes.get(rs.name)
            if size is None:
                continue

            def change(obj: Object, size: int = size) -> Object | None:
                obj["metadata"].setdefault("annotations", {}).update(annotations)
                if obj["spec"].get("replicas") != size:
                    obj["spec"]["replicas"] = size
                    bump_generation(obj)
                return obj

            await self._change(rs, change)
            if size != rs.wanted:
                self._tell_scaled(rs.name, rs.wanted, size)

    async def _change(self, rs: Replicas, change: Any) -> None:
        key = (self._entry.key[0], rs.name)
        try:
            stored = await self._writer.mutate(REPLICASETS, key, change, rs.uid)
        except errors.NotFound:
            return
        changed = rollout.replicas_of(stored.obj())
        if self._new is not None and rs.uid == self._new.uid:
            self._new = changed
        else:
            self._old = [changed if r.uid == rs.uid else r for r in self._old]

    def _tell_scaled(self, name: str, before: int, after: int) -> None:
        word = "up" if after > before else "down"
        text = f"Scaled {word} replica set {name} from {before} to {after}"
        self._context.recorder.event(DEPLOYMENTS, self._entry.meta, "Normal", "ScalingReplicaSet", text)

    # -- status -----------------------------------------------------------------------------------------------

    async def _write_status(self) -> float | None:
        now = self._context.clock.now()
        status = progress.status(self._deployment, self._new, self._old, now, found=self._found)
        if self._collided:
            status["collisionCount"] = status.get("collisionCount", 0) + 1
        revision = str(self._new.revision) if self._new is not None else None

        def change(obj: Object) -> Object | None:
            annotations = obj["metadata"].get("annotations") or {}
            current = revision is None or annotations.get(REVISION) == revision
            if current and obj.get("status") == status:
                return None
            if revision is not None:
                obj["metadata"]["annotations"] = {**annotations, REVISION: revision}
            obj["status"] = status
            return obj

        try:
            await self._writer.mutate(DEPLOYMENTS, self._entry.key, change, self._entry.meta.uid)
        except errors.NotFound:
            return None
        return progress.seconds_to_deadline(self._deployment, status.get("conditions") or (), now)


def _note_revision(annotations: Object, revision: int) -> None:
    history = annotations.get(REVISION_HISTORY, "")
    numbers = [n for n in history.split(",") if n and n != str(revision)]
    text = ",".join([*numbers, str(revision)])
    while len(text) > HISTORY_CHARS_MAX:
        text = text.partition(",")[2]
    annotations[REVISION_HISTORY] = text
