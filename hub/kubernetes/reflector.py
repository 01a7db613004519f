"""One collection of the API server, listed and then watched for ever, and told to a sink.

The list is a watch that begins with all objects (`sendInitialEvents`) where the server serves that, else it comes in
pages. A watch that ends goes on where it was; only a revision that the server has forgotten (410) is listed anew, and
what the sink holds stays meanwhile. Nothing is lost: what a list does not hold at its revision is gone. Nothing comes
twice but within one revision: sinks compare resourceVersions.

Sources: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import msgspec

from hub import errors
from hub.kubernetes.answers import WatchEvent, bookmark_of, revision_of
from hub.kubernetes.client import KubeClient, Query
from hub.outage import Outage

log = logging.getLogger(__name__)

LIST_PAGE: Final = 500
WATCH_S: Final = 300
"""Shortest life that is asked for a watch; up to twice as long by chance, so that they do not all end together."""
SHORT_S: Final = 1.0
"""A watch that ended earlier is not begun anew at once."""
PAUSE_FIRST_S: Final = 0.25
PAUSE_MAX_S: Final = 30.0
STREAM_S: Final = 300.0
"""How long all objects may take to come by a watch before a list in pages is tried."""
INITIAL_END: Final = "k8s.io/initial-events-end"
Whole = Callable[[int | None], bool]
"""Given how many objects there are (None: the server does not say): is all of it to be told, or only what changes?"""


class Sink(Protocol):
    """Who hears what is in the collection. Called on the loop; what it raises ends the reflector."""

    def begin(self) -> None:
        """A list begins; one that was under way counts for nothing."""

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        """Objects of the list that is under way."""

    async def listed(self, revision: int) -> None:
        """That was all of it, as of `revision`."""

    def events(self, events: Sequence[WatchEvent]) -> int:
        """ADDED, MODIFIED and DELETED in order; returns the last one's revision."""

    def progress(self, revision: int) -> None:
        """All up to `revision` has been told."""


class Reflector:
    """See the module. `revision`: all up to it has been told to the sink; 0 before the first list."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        sink: Sink,
        outage: Outage,
        query: Query | None = None,
        whole: bool | Whole = True,
    ) -> None:
        """Not `whole`: what is there already is not told, only from which revision on changes are (`listed`). A function is
        asked each time that the collection would be listed."""
        self._client = client
        self._path = path
        self._query = dict(query or {})
        self._sink = sink
        self._outage = outage
        self.revision = 0
        self._least = 0
        self._ask = None if isinstance(whole, bool) else whole
        self._whole = whole is True
        self._streams = whole is not False
        """Does the server serve lists by watch, as far as is known?"""
        self._page = LIST_PAGE
        self._short = 0
        self.lists = 0
        self.watches = 0
        """Begun so far."""

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self._once()
        finally:
            self._outage.over(self)

    async def _once(self) -> None:
        try:
            if not self.revision and self._ask is not None:
                self._whole = self._ask(await self._total())
            if not self.revision and not (self._whole and self._streams):
                await self._list()
            await self._watch()
            self._outage.over(self)
        except (errors.Expired, errors.Gone) as gone:
            self._again(gone)
        except errors.ApiError as failure:
            await self._outage.failed(self, failure)
            return
        await self._pause()

    def _again(self, gone: errors.ApiError) -> None:
        """The server has forgotten where this was."""
        log.warning("%s is listed again: %s", self._path, gone.message)
        if not self.revision:
            # A list that is slower than the server's memory: larger parts are fewer.
            self._page = min(self._page * 4, 10_000)
        self.revision = 0
        self._short += 1

    async def _pause(self) -> None:
        """Not at once after a watch that ended at once: a server in trouble is not helped by being asked more."""
        if not self._short:
            return
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** min(self._short - 1, 10))
        await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - spreads load, no secret

    async def _total(self) -> int | None:
        async with aclosing(self._client.list(self._path, self._query, 1)) as pages:
            return (await anext(pages)).total

    async def _list(self) -> None:
        self.lists += 1
        self._sink.begin()
        revision = 0
        async with aclosing(
            self._client.list(self._path, self._query, self._page if self._whole else 1)
        ) as pages:
            async for page in pages:
                revision = revision_of(page.metadata.resourceVersion)
                if not self._whole:
                    break
                self._sink.items(page.items or ())
                await asyncio.sleep(0)  # a long list must not stall heartbeats
        await self._listed(revision)
        self._page = LIST_PAGE

    async def _listed(self, revision: int) -> None:
        if revision < self._least:
            raise errors.ServiceUnavailable(
                f"the API server answers for {self._path} with revision {revision}, it was at {self._least} before: "
                "is it a restored copy?"
            )
        await self._sink.listed(revision)
        self._reached(revision)
        self._outage.over(self)

    def _reached(self, revision: int) -> None:
        self.revision = self._least = max(self._least, revision)

    async def _watch(self) -> None:
        """One watch, which is a list first where nothing is known."""
        began = asyncio.get_running_loop().time()
        self.watches += 1
        life_s = int(WATCH_S * (1 + random.random()))  # noqa: S311 - spreads load, no secret
        query: dict[str, str | int] = {
            **self._query,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": life_s,
        }
        if self.revision:
            await self._follow({**query, "resourceVersion": self.revision})
        else:
            await self._stream(query)
        lived_s = asyncio.get_running_loop().time() - began
        self._short = self._short + 1 if lived_s < SHORT_S else 0

    async def _stream(self, query: dict[str, str | int]) -> None:
        self.lists += 1
        self._sink.begin()
        query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        try:
            async with asyncio.timeout(STREAM_S) as limit:
                async with aclosing(self._client.watch_batches(self._path, query)) as batches:
                    async for events in batches:
                        rest = events if self.revision else await self._initial(events)
                        if self.revision:
                            limit.reschedule(None)
                            self._told(rest)
        except (errors.BadRequest, errors.Unprocessable, errors.Forbidden) as refused:
            # Servers before 1.32 refuse it, unless their feature gate is set.
            log.info("%s is listed in pages: %s", self._path, refused.message)
            self._streams = False
        except TimeoutError as slow:
            self._streams = False
            raise errors.ServiceUnavailable(
                f"{self._path} did not come whole within {STREAM_S:g} s by a watch; it is listed in pages now"
            ) from slow
        if not self.revision and self._streams:
            raise errors.ServiceUnavailable(f"the list of {self._path} was cut off")

    async def _initial(self, events: Sequence[WatchEvent]) -> Sequence[WatchEvent]:
        """Takes objects of the list; returns what came after its end."""
        for at, event in enumerate(events):
            if event.type != "BOOKMARK":
                continue
            meta = bookmark_of(event.object).metadata
            if (meta.annotations or {}).get(INITIAL_END) == "true":
                self._sink.items([e.object for e in events[:at]])
                await self._listed(revision_of(meta.resourceVersion))
                return events[at + 1 :]
        self._sink.items([e.object for e in events if e.type != "BOOKMARK"])
        return ()

    async def _follow(self, query: Query) -> None:
        async with aclosing(self._client.watch_batches(self._path, query)) as batches:
            async for events in batches:
                self._outage.over(self)
                if events:
                    self._told(events)

    def _told(self, events: Sequence[WatchEvent]) -> None:
        changes = [event for event in events if event.type != "BOOKMARK"]
        revision = self._sink.events(changes) if changes else 0
        if len(changes) < len(events):
            marks = (bookmark_of(e.object).metadata for e in events if e.type == "BOOKMARK")
            revision = max(revision, *(revision_of(meta.resourceVersion) for meta in marks))
            self._sink.progress(revision)
        self._reached(max(self.revision, revision))
