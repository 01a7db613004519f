"""Devices of this replica's slots, out of an API server: a Device lies in the slot of its node, as a Pod does.

One watch of the whole cluster; what is another's costs its head. A cluster without the kind (404) has no devices. A hub that
may not read it (403) says so every minute and goes on without: nothing is taken away from nodes then, for what they should have
is unknown (I9).
"""

import asyncio
import logging
from collections.abc import Collection
from contextlib import aclosing
from functools import partial
from typing import Final

import msgspec

from hub import errors
from hub.cache import Entry
from hub.devicedocs import DeviceMirror
from hub.kubernetes.client import KubeClient
from hub.kubernetes.following import Cover, Pages, Part
from hub.kubernetes.heads import HeadMeta, pod_head_of
from hub.kubernetes.reflector import LIST_PAGE
from hub.objects import DeviceView, partition_of_slot, slot_of_partition
from hub.outage import Outage

log = logging.getLogger(__name__)

ABSENT_S: Final = 60.0
"""How often it is asked whether the kind is there, and may be read."""


class Devices(Part[DeviceView]):
    """See the module. `slot_of`: of every edge node, by name; the Nodes' to change."""

    def __init__(
        self,
        client: KubeClient,
        mirror: DeviceMirror,
        wanted: Collection[int],
        outage: Outage,
        slot_of: dict[str, int],
    ) -> None:
        super().__init__(client, mirror, wanted, outage)
        self._devices = mirror
        self._slot_of = slot_of
        self._without = asyncio.Event()
        """It is decided that this goes on without, for now."""

    async def run(self) -> None:
        """For ever."""
        await self._asked.wait()
        await self._ask_leave()
        await super().run()

    async def catch_up(self, slots: Collection[int]) -> None:
        """As of every part; at once where there is nothing to be read."""
        if not self._without.is_set():
            await super().catch_up(slots)

    async def of_node(self, name: str) -> None:
        """Returns once the devices of this node are known as of now or later, or cannot be."""
        decided = [asyncio.ensure_future(event.wait()) for event in (self._known, self._without)]
        try:
            await asyncio.wait(decided, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in decided:
                waiting.cancel()
        if not self._without.is_set():
            await self._list_beside(lambda: self._of_one(name))

    def node_lies(self, name: str, slot: int) -> None:
        """What is known of its devices in another slot is forgotten; nobody hears that they were deleted."""
        partition = partition_of_slot(slot)
        self.mirror.forget_entries(
            [e for e in self.mirror.cache.find("node", name) if e.partition != partition]
        )

    async def _of_one(self, name: str) -> Pages:
        """By the definition's selectable field, else all of them: servers before 1.31 know none."""
        query = {**self._query, "fieldSelector": f"spec.nodeName={name}"}
        covers = Cover(partial(_is_on, name), ("node", name))
        try:
            async with aclosing(self._pages(query, LIST_PAGE, covers)) as pages:
                async for page in pages:
                    yield page
            return
        except errors.BadRequest as refused:
            log.info("devices of one node are found among all: %s", refused.message)
        async with aclosing(self._pages(self._query, LIST_PAGE, covers)) as pages:
            async for page in pages:
                yield page

    async def _ask_leave(self) -> None:
        """Returns once the kind is there and this hub may read it."""
        said = ""
        while True:
            try:
                async with aclosing(self._client.list(self._path, self._query, 1)) as pages:
                    await anext(pages)
            except (errors.Forbidden, errors.NotFound) as refusal:
                forbidden = isinstance(refusal, errors.Forbidden)
                if forbidden or refusal.message != said:
                    log.log(
                        logging.WARNING if forbidden else logging.INFO,
                        "devices are not told to edge nodes: %s", refusal.message,
                    )  # fmt: skip
                said = refusal.message
                self._devices.known = not forbidden
                self._outage.over(self)
                self._without.set()
                self._finish(list(self._needs))
                await asyncio.sleep(ABSENT_S)
            except errors.ApiError as failure:
                await self._outage.failed(self, failure)
            else:
                self._outage.over(self)
                return

    async def listed(self, revision: int) -> None:
        await super().listed(revision)
        self._without.clear()
        self._devices.now_known()

    def _place(self, raw: msgspec.Raw) -> tuple[HeadMeta, str | None]:
        head = pod_head_of(raw)
        slot = self._slot_of.get(head.spec.nodeName)
        if slot is None or slot not in self._wanted:
            return head.metadata, None
        return head.metadata, partition_of_slot(slot)

    def _is_ours(self, entry: Entry[DeviceView]) -> bool:
        slot = slot_of_partition(entry.partition)
        return slot in self._wanted and self._slot_of.get(entry.view.spec.nodeName) == slot


def _is_on(name: str, entry: Entry[DeviceView]) -> bool:
    return entry.view.spec.nodeName == name
