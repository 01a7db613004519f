"""The part of one kind that lies in this replica's slots, of a collection that is the whole cluster's.

One reflector hears of everything; what is not ours is dropped when its head has been decoded. Slots that are gained are
listed once more (`catch_up`; several that are gained at once share a list), beside the watch that goes on.

Invariant: between such a list and the watch nothing is lost, raised from the dead or told twice. What the watch told
while the list was under way is younger than the list where its revision is higher (`_dead` keeps what it dropped), and
where the list is the younger one, what the watch has yet to tell of it is skipped (`_floors`).
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from hub import errors
from hub.cache import Entry, HasMeta, Key
from hub.kubernetes.allocator import give_back
from hub.kubernetes.answers import Page, WatchEvent, revision_of
from hub.kubernetes.client import KubeClient, Query
from hub.kubernetes.heads import HeadMeta, collection, slim
from hub.kubernetes.reflector import LIST_PAGE, Reflector, Whole
from hub.mirror import Delta, Mirror
from hub.objects import slot_of_partition
from hub.outage import Outage

log = logging.getLogger(__name__)

V = TypeVar("V", bound=HasMeta)


@dataclass(frozen=True, slots=True)
class Cover:
    """What a list covers. `index`: an index and a value of it under which the mirror has all of that, and which saves a
    look at everything."""

    within: Callable[[Entry[Any]], bool]
    index: tuple[str, str] | None = None


ALL: Final = Cover(lambda entry: True)
Pages = AsyncGenerator[tuple[Page, Cover | None], None]
"""Pages of one or several lists; the last one of each with what that list covers."""
AGAIN_S: Final = 0.25
FILE_AT_ONCE: Final = 100
"""Objects of a list that are filed in one turn: each may become a rendered document, and heartbeats wait."""


@dataclass(eq=False, slots=True)
class _Need:
    slots: frozenset[int]
    done: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class Listed(Generic[V]):
    """What a list has brought: ours, and what is held here and was found to lie elsewhere now."""

    found: dict[Key, Entry[V]] = field(default_factory=dict)
    elsewhere: set[Key] = field(default_factory=set)


class Part(ABC, Generic[V]):
    """See the module. `wanted`: the slots of this replica, its owner's to change."""

    def __init__(
        self,
        client: KubeClient,
        mirror: Mirror[V],
        wanted: Collection[int],
        outage: Outage,
        query: Query | None = None,
        whole: bool | Whole = True,
    ) -> None:
        """`whole`: as of `hub.kubernetes.reflector.Reflector`; where that is not so, `listed` has to be `from_now`."""
        self.mirror = mirror
        self.reached = 0
        """The watch has told all up to here."""
        self.listed_at = 0
        """The API server was at this revision when something was listed, which a silent watch may not know yet."""
        self.own = self.foreign = 0
        """Objects and events that were taken, and those that were dropped."""
        self._client = client
        self._wanted = wanted
        self._outage = outage
        self._path = collection(mirror.resource)
        self._query = dict(query or {})
        self.reflector = Reflector(client, self._path, self, outage, self._query, whole)
        self._needs: list[_Need] = []
        self._asked = asyncio.Event()
        self._listed: Listed[V] = Listed()
        self._served: list[_Need] = []
        self._known = asyncio.Event()
        self._generation = 0
        self._lists = 0
        self._dead: dict[Key, int] = {}
        """While lists are under way: what the watch dropped, and at which revision."""
        self._floors: list[tuple[Cover, int]] = []

    async def run(self) -> None:
        """For ever. Asks for nothing before slots are wanted."""
        await self._asked.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reflector.run(), name=f"watch {self._path}")
            tasks.create_task(self._serve_needs(), name=f"list {self._path}")

    async def catch_up(self, slots: Collection[int]) -> None:
        """Returns once a list that began after this call has been filed for these slots."""
        need = _Need(frozenset(slots), asyncio.get_running_loop().create_future())
        self._needs.append(need)
        self._asked.set()
        try:
            await need.done
        finally:
            if need in self._needs:
                self._needs.remove(need)

    # -- what kinds differ in ----------------------------------------------------------------------------------------

    @abstractmethod
    def _place(self, raw: msgspec.Raw) -> tuple[HeadMeta, str | None]:
        """Whose it is: its head, and its partition where that is ours."""

    @abstractmethod
    def _is_ours(self, entry: Entry[V]) -> bool:
        """Is it ours still? Asked when a list is filed, which takes time."""

    def _collect(self, slots: frozenset[int]) -> Pages:
        """Lists what is in `slots`, and perhaps more."""
        covered = Cover(lambda entry: slot_of_partition(entry.partition) in slots)
        return self._pages(self._query, LIST_PAGE, covered)

    def _put(self, entry: Entry[V], revision: int) -> list[Delta[V]]:
        """Files one object as it was at `revision`."""
        return self.mirror.set_state(entry.key, entry, revision)

    # -- the reflector's sink ------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._listed = Listed()
        self._served = list(self._needs)
        self._known.clear()

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        self._take(items, self._listed)

    async def listed(self, revision: int) -> None:
        self._generation += 1
        listed, self._listed = self._listed, Listed()
        await self._file(listed, revision, ALL)
        self._floors.clear()
        self.reached = revision
        self.mirror.advance((), revision)
        self._known.set()
        self._finish(self._served)
        give_back()

    def from_now(self, revision: int) -> None:
        """The watch begins at `revision`, and nobody has listed what is there: that is done beside it, for whoever waits,
        and where the watch has had a gap, for all that is wanted."""
        if self._generation:
            self._needs.append(_Need(frozenset(self._wanted), asyncio.get_running_loop().create_future()))
            self._asked.set()
        self._generation += 1
        self._listed = Listed()
        self._passed(revision)
        self._known.set()

    def events(self, events: Sequence[WatchEvent]) -> int:
        deltas: list[Delta[V]] = []
        revision = 0
        for event in events:
            revision = self._event(event, deltas)
        self._passed(revision)
        if deltas:
            self.mirror.advance(deltas, revision)
        else:
            # Nobody hears of what is others': that would cost more than dropping it.
            self.mirror.revision = max(self.mirror.revision, revision)
            self.mirror.wake()
        return revision

    def progress(self, revision: int) -> None:
        self._passed(revision)
        self.mirror.advance((), revision)

    def _passed(self, revision: int) -> None:
        self.reached = max(self.reached, revision)
        if self._floors:
            self._floors = [(cover, floor) for cover, floor in self._floors if floor > self.reached]

    def _event(self, event: WatchEvent, deltas: list[Delta[V]]) -> int:
        """Files it; returns its revision."""
        head, partition = self._place(event.object)
        key, revision = head.key, head.revision
        held = self.mirror.cache.get(*key)
        if partition is None or event.type == "DELETED":
            if self._lists:
                self._dead[key] = revision
            if held is None:
                self.foreign += 1
            elif event.type == "DELETED" or held.meta.uid != head.uid:
                # Under another UID it is another object, and the one that was held is gone.
                self.own += 1
                deltas += self.mirror.set_state(key, None, revision)
            return revision
        self.own += 1
        entry = self._made(head, partition, event.object)
        if not self._is_past(entry, revision):
            deltas += self._put(entry, revision)
        return revision

    def _is_past(self, entry: Entry[V], revision: int) -> bool:
        """Has a list told what was after `revision` already?"""
        return any(revision <= floor and cover.within(entry) for cover, floor in self._floors)

    def _take(self, items: Sequence[msgspec.Raw], listed: Listed[V]) -> None:
        """Sorts objects of a list."""
        for raw in items:
            head, partition = self._place(raw)
            if partition is not None:
                self.own += 1
                listed.found[head.key] = self._made(head, partition, raw)
                continue
            self.foreign += 1
            held = self.mirror.cache.get(*head.key)
            if held is not None and held.meta.uid == head.uid:
                listed.elsewhere.add(head.key)

    def _made(self, head: HeadMeta, partition: str, raw: msgspec.Raw) -> Entry[V]:
        held = self.mirror.cache.get(*head.key)
        if held is not None and held.revision == head.revision and held.partition == partition:
            return held
        cache = self.mirror.cache
        return cache.entry(head.key, partition, head.revision, slim(self.mirror.resource, raw))

    # -- lists beside the watch --------------------------------------------------------------------------------------

    async def _serve_needs(self) -> None:
        while True:
            while not self._needs:
                self._asked.clear()
                await self._asked.wait()
            if not self._known.is_set():
                # The reflector lists, or is about to: that serves who asked before it began.
                await self._known.wait()
                continue
            needs = list(self._needs)
            slots = frozenset[int]().union(*(need.slots for need in needs))
            await self._list_beside(lambda slots=slots: self._collect(slots))  # type: ignore[misc]
            self._finish(needs)
            give_back()

    def _finish(self, needs: Sequence[_Need]) -> None:
        for need in needs:
            if need in self._needs:
                self._needs.remove(need)
            if not need.done.done():
                need.done.set_result(None)

    async def _list_beside(self, collect: Callable[[], Pages]) -> None:
        """Files what `collect` lists; tries until it has."""
        async with self._listing():
            while True:
                generation = self._generation
                try:
                    async with aclosing(collect()) as pages:
                        await self._file_all(pages)
                except (errors.Expired, errors.Gone):
                    await asyncio.sleep(AGAIN_S)  # under way; begins anew
                except errors.ApiError as failure:
                    await self._outage.failed(self._path, failure)
                else:
                    self._outage.over(self._path)
                    if generation == self._generation:
                        return

    @asynccontextmanager
    async def _listing(self) -> AsyncIterator[None]:
        self._lists += 1
        try:
            yield
        finally:
            self._lists -= 1
            if not self._lists:
                self._dead.clear()
                self._outage.over(self._path)

    async def _file_all(self, pages: Pages) -> None:
        least, listed = self.reached, Listed[V]()
        async for page, cover in pages:
            self._take(page.items or (), listed)
            if cover is None:
                continue
            revision = revision_of(page.metadata.resourceVersion)
            if revision < least:
                raise errors.ServiceUnavailable(
                    f"the API server lists {self._path} at revision {revision}, its watch was at {least} before"
                )
            for key in [key for key, entry in listed.found.items() if not cover.within(entry)]:
                entry = listed.found.pop(key)
                held = self.mirror.cache.get(*key)
                if held is not None and held.meta.uid == entry.meta.uid:
                    listed.elsewhere.add(key)
            if revision > self.reached:
                self._floors.append((cover, revision))
            await self._file(listed, revision, cover)
            listed = Listed()

    async def _pages(self, query: Query, size: int, covers: Cover) -> Pages:
        async with aclosing(self._client.list(self._path, query, size)) as pages:
            async for page in pages:
                self.listed_at = max(self.listed_at, revision_of(page.metadata.resourceVersion))
                yield page, None if page.metadata.next else covers
                await asyncio.sleep(0)  # a long list must not stall heartbeats

    async def _file(self, listed: Listed[V], revision: int, cover: Cover) -> None:
        """Puts a list of `revision` in place of what is known of what it covers."""
        mirror, found = self.mirror, listed.found
        held = mirror.cache.find(*cover.index) if cover.index else mirror.cache
        gone = [entry for entry in held if entry.key not in found and cover.within(entry)]
        # The watch is behind, and will tell where they lie: they were not deleted.
        mirror.forget_entries([e for e in gone if e.key in listed.elsewhere and e.revision < revision])
        deleted = [e.key for e in gone if e.key not in listed.elsewhere]
        mirror.advance([d for key in deleted for d in mirror.set_state(key, None, revision)], mirror.revision)
        keys = list(found)
        for at in range(0, len(keys), FILE_AT_ONCE):
            deltas: list[Delta[V]] = []
            for key in keys[at : at + FILE_AT_ONCE]:
                entry = found.pop(key)
                if self._is_ours(entry) and self._dead.get(key, 0) < entry.revision:
                    deltas += self._put(entry, revision)
            mirror.advance(deltas, mirror.revision)
            await asyncio.sleep(0)
