"""Pods that name a node before its Node exists: once it does, they move to where it lies.

Such a pod is created in the shared partition, since the slot follows from the Node's site, and only what lies in the
node's own partition is ever sent to it.
"""

from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.cache import Entry
from hub.controllers.controller import Context, Controller, ObjectKey, Writer
from hub.informer import Delta
from hub.objects import NODES, PODS, SHARED, PodView, Resource


class Placement:
    """Keys are pods."""

    kinds = (NODES, PODS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[ObjectKey] = Controller(
            "pod-placement", context, self._sync, kinds=(NODES, PODS)
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == PODS and delta.type != "DELETED" and _is_astray(delta.entry):
            self._driver.queue.add(delta.entry.key)
        elif res == NODES and delta.type == "ADDED":
            for pod in self._context.informers.of(PODS).cache.find("node", delta.entry.meta.name):
                if _is_astray(pod):
                    self._driver.queue.add(pod.key)

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        pod: Entry[PodView] | None = self._context.informers.of(PODS).cache.get(*key)
        if pod is None or not _is_astray(pod):
            return None
        if self._context.informers.of(NODES).cache.get("", pod.view.spec.nodeName) is None:
            return None  # looked at again when it is there
        try:
            await writer.place(key, pod.meta.uid)
        except errors.NotFound:
            return None
        return None


def _is_astray(pod: Entry[PodView]) -> bool:
    return bool(pod.view.spec.nodeName) and pod.partition == SHARED
