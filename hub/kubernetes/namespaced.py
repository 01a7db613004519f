"""One kind of an API server, of the namespaces that pods here are in: Services, EndpointSlices.

One watch of the whole cluster's tells what changes; what lies in a namespace that nobody here uses costs its head and is
dropped. A namespace that comes to be used is listed as of then: what was there when a pod was bound is told to it.

Invariants: a namespace is `known` only as of a list that began after it came to be used (or after the watch had a gap), and
unknown is never taken for empty (I9). Between such a list and the watch nothing is lost or raised from the dead. A hub that
may not read the kind (403) says so and goes on without: pods do not wait for it, and nothing is taken away.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from hub import errors
from hub.cache import Entry, Key, by_namespace
from hub.kubernetes.answers import WatchEvent, revision_of
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import HeadMeta, collection, head_of
from hub.kubernetes.reflector import LIST_PAGE, Reflector
from hub.kubernetes.services import kept
from hub.mirror import Delta, Mirror
from hub.objects import SHARED, ObjectView, Resource
from hub.outage import Outage

log = logging.getLogger(__name__)

LISTS_AT_ONCE: Final = 2
"""Namespaces may be large: what is listed at once lies in memory whole, and so does its share of holes afterwards."""
FORBIDDEN_S: Final = 60.0
"""How often a right is asked for that this hub did not have."""
UNKNOWN: Final = -1


class KubeNamespaced(Mirror[ObjectView]):
    """See the module; `hub.spaces.Namespaced`. `foreign`: events that were dropped."""

    def __init__(self, client: KubeClient, res: Resource, outage: Outage) -> None:
        super().__init__(res, {"namespace": by_namespace})
        self._client = client
        self._outage = outage
        self._read_at: dict[str, int] = {}
        """Namespaces that are used -> the revision of their list, or UNKNOWN."""
        self._due: dict[str, int] = {}
        """Namespaces that have to be listed, oldest first, and by which ticket: a list that began before the namespace was
        given up, or before a gap, does not count."""
        self._tickets = 0
        self._dead: dict[Key, int] = {}
        """While lists are under way: what the watch told the deletion of, and at which revision."""
        self._wake = asyncio.Event()
        self._used = asyncio.Event()
        self._began = 0
        """The watch tells all from this revision on; 0: there is none."""
        self._refused = False
        self._on_read: list[Callable[[str], None]] = []
        self.foreign = 0
        self.reflector = Reflector(client, collection(res), self, outage, whole=False)

    # -- what is used ------------------------------------------------------------------------------------------------

    def use(self, namespace: str) -> None:
        """From now on it is followed. It is not used yet."""
        self._read_at[namespace] = UNKNOWN
        self._must_list(namespace)
        self._used.set()

    def release(self, namespace: str) -> None:
        """Nobody uses it any more."""
        del self._read_at[namespace]
        for entry in self.cache.find("namespace", namespace):
            self.cache.drop(entry.key)
        if self._due.pop(namespace, None) is not None:
            self.wake()

    def known(self, namespace: str) -> bool:
        """Is it known what lies there? False for what nobody uses."""
        return self._read_at.get(namespace, UNKNOWN) != UNKNOWN

    def waits(self, namespace: str) -> bool:
        """Will it soon be known, and is not yet?"""
        return namespace in self._read_at and not self.known(namespace) and not self._refused

    def on_read(self, handler: Callable[[str], None]) -> Callable[[], None]:
        """Adds a handler of namespaces that need not be waited for any more; returns what removes it."""
        self._on_read.append(handler)
        return lambda: self._on_read.remove(handler)

    def __len__(self) -> int:
        return len(self.cache)

    async def read(self) -> None:
        """Returns when all has been listed that waits for it now, or cannot be for want of the right."""
        waiting = set(self._due)
        await self.until(lambda: self._refused or waiting.isdisjoint(self._due))

    # -- following the API server ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever. Asks for nothing before a namespace is used."""
        await self._used.wait()
        await self._ask_leave()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._list_due(), name=f"lists of {self.resource.resource}")
            tasks.create_task(self.reflector.run(), name=f"watch {self.resource.resource}")

    def begin(self) -> None:
        self._began = 0

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        raise AssertionError("a reflector that is not whole tells no items")

    async def listed(self, revision: int) -> None:
        self._began = revision
        for namespace in self._read_at:
            self._must_list(namespace)

    def events(self, events: Sequence[WatchEvent]) -> int:
        """Files what lies in a namespace that is used; returns the last event's revision."""
        deltas: list[Delta[ObjectView]] = []
        revision = 0
        for event in events:
            meta = head_of(event.object).metadata
            revision = meta.revision
            read_at = self._read_at.get(meta.namespace)
            if read_at is None:
                self.foreign += 1
                continue
            if event.type == "DELETED" and self._due:
                self._dead[meta.key] = revision
            if revision <= read_at:
                continue  # a list has told what came of it
            entry = None if event.type == "DELETED" else self._made(meta, event.object)
            if entry is None and event.type != "DELETED":
                continue
            deltas += self.set_state(meta.key, entry, revision)
        if deltas:
            self.advance(deltas, revision)
        else:
            self.revision = max(self.revision, revision)
        return revision

    def progress(self, revision: int) -> None:
        """Nobody waits for it: what is listed has its own revision."""

    def _made(self, meta: HeadMeta, raw: msgspec.Raw) -> Entry[ObjectView] | None:
        """None for what cannot be read: what is known of it stays, for one object is no reason to stop following the rest."""
        try:
            small = kept(self.resource, raw)
        except msgspec.DecodeError as wrong:
            log.warning("%s %s/%s is not told to edge nodes: %s", self.resource.resource, *meta.key, wrong)
            return None
        return self.cache.entry(meta.key, SHARED, meta.revision, small)

    # -- lists -------------------------------------------------------------------------------------------------------

    def _must_list(self, namespace: str) -> None:
        self._tickets += 1
        self._due[namespace] = self._tickets
        self._wake.set()

    async def _list_due(self) -> None:
        while True:
            while not self._due or not self._began:
                self._wake.clear()
                await self._wake.wait()
            some = list(self._due.items())[:LISTS_AT_ONCE]
            failures = await asyncio.gather(*(self._list_one(*one) for one in some))
            failure = next(filter(None, failures), None)
            if not self._due:
                self._dead.clear()
            if failure is None:
                self._refused = False
                self._outage.over(self._wake)
            elif isinstance(failure, errors.Forbidden):
                await self._go_without(failure)
            else:
                await self._outage.failed(self._wake, failure)

    async def _ask_leave(self) -> None:
        """Returns once this hub may read the kind."""
        while True:
            try:
                async with aclosing(self._client.list(collection(self.resource), {}, 1)) as pages:
                    await anext(pages)
            except errors.Forbidden as refusal:
                await self._go_without(refusal)
            except errors.ApiError as failure:
                await self._outage.failed(self, failure)
            else:
                self._refused = False
                self._outage.over(self)
                return

    async def _go_without(self, refusal: errors.Forbidden) -> None:
        log.warning(
            "%s are not told to edge nodes: this hub may not list them (%s); give it list and watch, as the chart does",
            self.resource.resource, refusal.message,
        )  # fmt: skip
        self._refused = True
        self._outage.over(self._wake)
        for namespace in list(self._due):
            self._tell_read(namespace)
        self.wake()
        await asyncio.sleep(FORBIDDEN_S)

    async def _list_one(self, namespace: str, ticket: int) -> errors.ApiError | None:
        """Lists one namespace and files it; returns why it could not."""
        found: dict[Key, Entry[ObjectView]] = {}
        revision = 0
        try:
            async with aclosing(
                self._client.list(collection(self.resource, namespace), {}, LIST_PAGE)
            ) as pages:
                async for page in pages:
                    revision = revision_of(page.metadata.resourceVersion)
                    for raw in page.items or ():
                        meta = head_of(raw).metadata
                        entry = self._made(meta, raw) or self.cache.get(*meta.key)
                        if entry is not None:
                            found[meta.key] = entry
                    await asyncio.sleep(0)  # a long list must not stall heartbeats
            if revision < self._began:
                raise errors.ServiceUnavailable(
                    f"the API server lists {self.resource.resource} of {namespace} at revision {revision}, "
                    f"its watch began at {self._began}"
                )
        except errors.ApiError as failure:
            if self._due.get(namespace) == ticket:
                # Last, so that those that can be read do not wait behind those that cannot.
                self._due[namespace] = self._due.pop(namespace)
            return failure
        if self._due.get(namespace) == ticket:
            self._put_list(namespace, found, revision)
        return None

    def _put_list(self, namespace: str, found: dict[Key, Entry[ObjectView]], revision: int) -> None:
        del self._due[namespace]
        self._read_at[namespace] = max(revision, self._read_at[namespace])
        deltas: list[Delta[ObjectView]] = []
        for entry in self.cache.find("namespace", namespace):
            if entry.key not in found:
                deltas += self.set_state(entry.key, None, revision)
        for key, entry in found.items():
            if self._dead.get(key, 0) < entry.revision:
                deltas += self.set_state(key, entry, entry.revision)
        self.advance(deltas, max(self.revision, revision))
        self._tell_read(namespace)

    def _tell_read(self, namespace: str) -> None:
        for handler in list(self._on_read):
            handler(namespace)
