"""Devices that do not lie where their Node does move there: those made before it, and those whose Node was made anew with
another site. Only what lies in a node's own partition is ever sent to it.
"""

from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.controllers.controller import Context, Controller, ObjectKey, Writer
from hub.informer import Delta
from hub.objects import DEVICES, NODES, Resource


class DevicePlacement:
    """Keys are devices."""

    kinds = (NODES, DEVICES)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[ObjectKey] = Controller(
            "device-placement", context, self._sync, kinds=self.kinds
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == DEVICES and delta.type == "ADDED":
            self._driver.queue.add(delta.entry.key)
        elif res == NODES and delta.type == "ADDED":
            node = delta.entry.meta.name
            # A Node appears seldom, and there are few devices beside pods: no index for it.
            for device in self._context.informers.of(DEVICES).cache:
                if device.view.spec.nodeName == node:
                    self._driver.queue.add(device.key)

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        device = self._context.informers.of(DEVICES).cache.get(*key)
        if device is None:
            return None
        node = self._context.informers.of(NODES).cache.get("", device.view.spec.nodeName)
        if node is None or node.partition == device.partition:
            return None  # looked at again when the Node is there
        try:
            await writer.place(key, device.meta.uid, DEVICES)
        except errors.NotFound:
            return None
        return None
