"""NoExecute taints that somebody has put on a node: pods that do not tolerate them are deleted, with their grace.

Never for the taints that stand for a node that is not ready or cannot be reached, whoever sets them: a dead link is no
reason to evict (I8). A pod that tolerates a taint for `tolerationSeconds` goes when they are over, counted from the
taint's `timeAdded` or, without one, from when this process first saw it. Before a pod goes, its node is read from the
store; a cache alone evicts nothing (I9).

Source: Kubernetes, "Taints and Tolerations", taint based evictions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hub.controllers.controller import Context, Controller, Object, Writer
from hub.controllers.meta import FINISHED, seconds
from hub.controllers.scheduling import tolerates
from hub.controllers.taints import MANAGED
from hub.informer import Delta
from hub.objects import NODES, PODS, Resource, Taint

EVICT_BATCH = 100


def evicting(taints: Iterable[Taint] | None) -> tuple[Taint, ...]:
    """Those of a node's taints that evict. [pure]"""
    return tuple(t for t in taints or () if t.effect == "NoExecute" and t.key not in MANAGED)


def due(since: Mapping[Taint, float], tolerations: Sequence[Object]) -> float:
    """When a pod has to leave, unix seconds; infinity for one that may stay. `since`: the evicting taints and when each
    began. [pure]"""
    at = math.inf
    for taint, began in since.items():
        found = [t for t in tolerations if tolerates(t, taint)]
        if not found:
            return -math.inf
        limits = [t["tolerationSeconds"] for t in found if t.get("tolerationSeconds") is not None]
        if limits:
            at = min(at, began + max(0, min(limits)))
    return at


class Evictions:
    """See the module. Keys are node names."""

    kinds = (NODES, PODS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seen: dict[str, dict[Taint, float]] = {}
        """Node -> its evicting taints, and when they were first seen."""
        self._driver: Controller[str] = Controller("evictions", context, self._sync, kinds=(NODES, PODS))

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        view = delta.entry.view
        if res == PODS:
            moved = delta.old is None or delta.old.view.spec.nodeName != view.spec.nodeName
            if delta.type != "DELETED" and moved and view.spec.nodeName in self._seen:
                self._driver.queue.add(view.spec.nodeName)
            return
        name = view.metadata.name
        taints = evicting(view.spec.taints) if delta.type != "DELETED" else ()
        held = self._seen.pop(name, {})
        if not taints:
            return
        now = self._context.clock.now()
        self._seen[name] = {taint: held.get(taint, now) for taint in taints}
        if self._seen[name] != held:
            self._driver.queue.add(name)

    async def _sync(self, name: str, writer: Writer) -> float | None:
        stored = await self._context.registry.find(NODES, "", name)
        if stored is None:
            return None
        since = self._since(name, stored.obj())
        now = self._context.clock.now()
        gone, later = [], []
        for pod in self._context.informers.of(PODS).cache.find("node", name) if since else ():
            if pod.meta.deletionTimestamp or pod.view.status.phase in FINISHED:
                continue
            stored = await self._context.registry.find(PODS, *pod.key)
            if stored is None:
                continue
            at = due(since, stored.obj()["spec"].get("tolerations") or ())
            if at <= now:
                gone.append(pod)
            elif at < math.inf:
                later.append(at - now)
        for pod in gone[:EVICT_BATCH]:
            text = f"Deleted by the taints of node {name}: " + ", ".join(sorted(t.key for t in since))
            self._context.recorder.event(PODS, pod.meta, "Normal", "TaintManagerEviction", text)
            await writer.delete(PODS, pod.key, pod.meta.uid)
        return 0.0 if len(gone) > EVICT_BATCH else min(later, default=None)

    def _since(self, name: str, node: Object) -> dict[Taint, float]:
        """The node's evicting taints as the store has them, and when each began."""
        now = self._context.clock.now()
        seen = self._seen.get(name, {})
        out: dict[Taint, float] = {}
        for raw in node["spec"].get("taints") or ():
            taint = Taint(raw.get("key", ""), raw.get("value") or "", raw.get("effect", ""))
            if evicting((taint,)):
                added = seconds(raw.get("timeAdded"))
                out[taint] = seen.get(taint, now) if added is None else added
        return out
