"""A client that has the fake API server in its own process, and is as unkind as a real one may be: watches lag, and a
read of `NotOlderThan` is answered from anywhere between then and now. Beside it the same runs over HTTPS."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import orjson

from hub import errors
from hub.kubernetes.answers import ListMeta, Page, WatchEvent, resource_of
from tests.hub.kubernetes.fake_api import INITIAL_END, FakeApi, Object, bookmark, event_of, names_of, selected

Query = dict[str, Any]


class DirectClient:
    """As much of KubeClient as what follows an API server uses."""

    def __init__(self, api: FakeApi, seed: int) -> None:
        self.api = api
        self.random = random.Random(seed)
        self.lists: list[tuple[str, Query]] = []
        self.open: list[tuple[str, Query]] = []
        self.hold: asyncio.Event | None = None
        """Reads of one object wait for it."""

    async def _turns(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            await asyncio.sleep(0)
        if self.api.down:
            raise errors.ServiceUnavailable("no route")
        if self.api.throttle:
            self.api.throttle -= 1
            raise errors.TooManyRequests()

    async def request(self, method: str, path: str, *, query: Query) -> tuple[int, bytes]:
        assert method == "GET"
        if self.hold is not None:
            await self.hold.wait()
        pages = [page async for page in self.list(path, query, 0)]
        meta = {"resourceVersion": pages[0].metadata.resourceVersion}
        items = [orjson.loads(bytes(item)) for item in pages[0].items or ()]
        return 200, orjson.dumps({"metadata": meta, "items": items})

    async def list(self, path: str, query: Query, page: int) -> AsyncGenerator[Page, None]:
        await self._turns()
        self.lists.append((path, query))
        resource, namespace = resource_of(path), names_of(path)[0]
        revision = self.api.revision
        if query.get("resourceVersionMatch") == "NotOlderThan":
            least = int(query["resourceVersion"])
            assert least <= revision
            revision = self.random.randint(max(least, 100), revision)
        state = self.api.state_at(resource, revision)
        items = [item(o) for o in state.values() if selected(o, namespace, query)]
        parts = [items[i : i + page] for i in range(0, len(items), page)] if page else [items]
        for i, part in enumerate(parts or [[]]):
            if i:
                await self._turns()
                if revision < self.api.oldest:
                    raise errors.Expired("the continue token is too old")
            await self._turns()
            rest = sum(map(len, parts[i + 1 :]))
            # Servers may not say how many there are, and do not where they are asked for some of them.
            tells = (
                rest and not query.keys() & {"labelSelector", "fieldSelector"} and self.random.random() < 0.7
            )
            yield Page(ListMeta(str(revision), "more" if rest else "", rest if tells else None), part)

    async def watch_batches(self, path: str, query: Query) -> AsyncGenerator[Sequence[WatchEvent], None]:
        await self._turns()
        resource, namespace = resource_of(path), names_of(path)[0]
        cut, at = self.api.cut, int(query.get("resourceVersion") or 0)
        if query.get("sendInitialEvents"):
            if not self.api.watch_list:
                raise errors.Unprocessable("sendInitialEvents: Forbidden")
            at = self.api.revision
            for obj in self.api.state_at(resource, at).values():
                if selected(obj, namespace, query):
                    yield [WatchEvent("ADDED", item(obj))]
                    await self._turns()
            yield [WatchEvent("BOOKMARK", item(bookmark(at, {INITIAL_END: "true"})))]
        assert at
        yield ()
        if at < self.api.oldest:
            raise errors.Expired(f"too old: {at}")
        self.open.append((path, query))
        try:
            while not cut.is_set():
                await self._turns()
                until = self.random.randint(at, self.api.revision)
                batch = [
                    WatchEvent(found[0], item(found[1]))
                    for revision, kind, obj, old in self.api.history
                    if at < revision <= until
                    and kind == resource
                    and (found := event_of(revision, obj, old, namespace, query))
                ]
                if until > at and self.random.random() < 0.3:
                    batch.append(WatchEvent("BOOKMARK", item(bookmark(until, {}))))
                at = until
                if batch:
                    yield batch
        finally:
            self.open.remove((path, query))


def item(obj: Object) -> msgspec.Raw:
    return msgspec.Raw(orjson.dumps(obj))
