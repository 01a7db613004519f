"""ConfigMaps and Secrets that pods of this replica refer to, in an API server: those and no others.

They are followed by at most `watches_max` watches (`hub.kubernetes.watchplan`), each of which tells only what changes;
what is used for the first time, or comes under another watch, is read by name. What no watch covers is read every
POLL_S, or as often as POLLS_PER_S allows where it is much. Unknown is never taken for absent (I9): absent is only what
a read has shown to be so, or a watch's DELETED.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from hub import errors
from hub.cache import Entry, Key
from hub.kubernetes import watchplan
from hub.kubernetes.answers import WatchEvent, page_of, revision_of
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import collection, head_of, slim
from hub.kubernetes.reflector import Reflector
from hub.mirror import Delta
from hub.objects import SHARED, ObjectView, Resource
from hub.outage import Outage
from hub.references import UNKNOWN, References
from shards.kv import Unavailable

log = logging.getLogger(__name__)

WATCHES_MAX: Final = 200
PLAN_S: Final = 0.05
"""How long what comes to be used is gathered before watches are begun or ended: pods come many at a time."""
TIDY_S: Final = 10.0
"""Watches of what nothing uses any more end after as long at most."""
READS_AT_ONCE: Final = 8
"""Each has a connection of its own: a handshake, and 0.3 MB for as long as it is kept."""
POLL_S: Final = 60.0
POLLS_PER_S: Final = 20


class _Follower:
    """One watch. `began`: the revision from which on it tells what changes, 0 before it is known."""

    def __init__(self, owner: "KubeReferences", client: KubeClient, watch: Key, outage: Outage) -> None:
        self.watch = watch
        self.began = 0
        self.task: asyncio.Task[None] | None = None
        self._owner = owner
        namespace, name = watch
        query = {"fieldSelector": f"metadata.name={name}"} if name else {}
        path = collection(owner.resource, namespace)
        self.reflector = Reflector(client, path, self, outage, query, whole=False)

    def begin(self) -> None:
        self.began = 0

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        raise AssertionError("a reflector that is not whole tells no items")

    async def listed(self, revision: int) -> None:
        self.began = revision
        self._owner.begins(self)

    def events(self, events: Sequence[WatchEvent]) -> int:
        return self._owner.take(events)

    def progress(self, revision: int) -> None:
        """Nobody waits for it: what is read has its own revision."""


class KubeReferences(References):
    """See the module. `polled`: how many are read again and again. There is no order between kinds in an API server, so
    `watched` is only what has been heard of."""

    reads_at_once = READS_AT_ONCE

    def __init__(
        self, client: KubeClient, res: Resource, outage: Outage | None = None, watches_max: int = WATCHES_MAX
    ) -> None:
        super().__init__(res, outage)
        self._client = client
        self._watches_max = watches_max
        self._followers: dict[Key, _Follower] = {}
        self._covered: dict[Key, Key | None] = {}
        self._changed = asyncio.Event()
        self._ended = 0
        self._loose = False
        """May there be watches of what nothing uses any more?"""
        self._polls: dict[Key, float] = {}
        """What no watch covers, longest unread first, and when it was read last."""

    @property
    def watches(self) -> int:
        """Open, or being opened."""
        return len(self._followers)

    @property
    def watches_begun(self) -> int:
        """Since the start."""
        return self._ended + sum(follower.reflector.watches for follower in self._followers.values())

    @property
    def polled(self) -> int:
        return len(self._polls)

    def use(self, key: Key) -> None:
        if key not in self._covered:
            namespace, name = key
            for watch in (("", name), (namespace, ""), key):
                if watch in self._followers:
                    self._covered[key] = watch
                    break
            else:
                self._changed.set()
        super().use(key)

    def release(self, key: Key) -> None:
        super().release(key)
        self._covered.pop(key, None)
        self._polls.pop(key, None)
        self._loose = True

    # -- watches --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(), name=f"references to {self.resource.resource}: polls")
            while True:
                try:
                    async with asyncio.timeout(TIDY_S):
                        await self._changed.wait()
                    await asyncio.sleep(PLAN_S)
                except TimeoutError:
                    if not self._loose:
                        continue
                self._changed.clear()
                self._loose = False
                self._arrange(tasks)

    def _arrange(self, tasks: asyncio.TaskGroup) -> None:
        """Begins and ends watches for what is used now."""
        before = self._covered
        self._covered = watchplan.plan(self._read_at.keys(), self._followers.keys(), self._watches_max)
        wanted = watchplan.watches_of(self._covered.values())
        for gone in self._followers.keys() - wanted:
            ended = self._followers.pop(gone)
            assert ended.task is not None
            ended.task.cancel()
            self._ended += ended.reflector.watches
        for new in sorted(wanted - self._followers.keys()):
            follower = self._followers[new] = _Follower(self, self._client, new, self._outage)
            follower.task = tasks.create_task(follower.reflector.run(), name=f"watch {new}")
        now = asyncio.get_running_loop().time()
        for key, watch in self._covered.items():
            if watch is None:
                self._polls.setdefault(key, now)
            else:
                self._polls.pop(key, None)
                if before.get(key, watch) != watch and self._followers[watch].began:
                    # Another told of it until now; this one has passed over what changed.
                    self._must_read(key)
        self._wake.set()

    def begins(self, follower: _Follower) -> None:
        """This one tells all from its revision on: what it covers is read once more."""
        for key, watch in self._covered.items():
            if watch == follower.watch and key in self._read_at:
                self._must_read(key)
        self._wake.set()

    def take(self, events: Sequence[WatchEvent]) -> int:
        """Files what is used; returns the last event's revision."""
        deltas: list[Delta[ObjectView]] = []
        revision = 0
        for event in events:
            meta = head_of(event.object).metadata
            revision = meta.revision
            read_at = self._read_at.get(meta.key)
            if read_at is None or read_at >= revision:
                continue
            self._read_at[meta.key] = revision
            entry = None if event.type == "DELETED" else self._made(meta.key, revision, event.object)
            deltas += self.set_state(meta.key, entry, revision)
            if read_at == UNKNOWN and entry is None:
                self._tell_absent(meta.key)
        self.watched = max(self.watched, revision)
        if deltas:
            self.advance(deltas, revision)
        return revision

    def _made(self, key: Key, revision: int, raw: msgspec.Raw) -> Entry[ObjectView]:
        return self.cache.entry(key, SHARED, revision, slim(self.resource, raw))

    # -- reads ----------------------------------------------------------------------------------------------------

    def _may_read(self, key: Key) -> bool:
        watch = self._covered.get(key, key)
        if watch is None:
            return True
        follower = self._followers.get(watch)
        return key in self._covered and follower is not None and follower.began > 0

    async def _fetch(self, key: Key) -> tuple[Entry[ObjectView] | None, int]:
        """Listed by its name: other than a get, that tells the revision at which it does not exist."""
        namespace, name = key
        query = {"fieldSelector": f"metadata.name={name}"}
        try:
            _, raw = await self._client.request("GET", collection(self.resource, namespace), query=query)
            page = page_of(raw)
            revision = revision_of(page.metadata.resourceVersion)
        except (errors.ApiError, msgspec.DecodeError) as failure:
            raise Unavailable(f"{self.resource.resource} {namespace}/{name}: {failure}") from failure
        for item in page.items or ():
            meta = head_of(item).metadata
            return self._made(key, meta.revision, item), revision
        return None, revision

    async def _poll(self) -> None:
        """Has what no watch covers read again, longest unread first: every POLL_S, or POLLS_PER_S of them a second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for key in list(self._polls)[:POLLS_PER_S]:
                if loop.time() - self._polls[key] < POLL_S:
                    break
                del self._polls[key]
                self._polls[key] = loop.time()
                if key in self._read_at:
                    self._must_read(key)
