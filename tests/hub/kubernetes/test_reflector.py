"""List and watch of one collection over HTTPS: nothing lost, nothing doubled, whatever the server does with its watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from hub.kubernetes import client as client_module
from hub.kubernetes import reflector as module
from hub.kubernetes.answers import WatchEvent
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import head_of
from hub.kubernetes.reflector import Reflector
from hub.outage import Outage
from tests.hub.hub_fixture import until
from tests.hub.kubernetes.fake_api import FakeApi

DEADLINE_S = 20.0


class Collected:
    """A sink that holds what there is, and fails on what is told twice or out of order."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.listing: dict[str, int] | None = None
        self.lists: list[int] = []
        self.told: list[tuple[str, str]] = []
        self.reached = 0
        self.emptied = False

    def begin(self) -> None:
        self.listing = {}

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        assert self.listing is not None
        for raw in items:
            meta = head_of(raw).metadata
            assert meta.name not in self.listing
            self.listing[meta.name] = meta.revision

    async def listed(self, revision: int) -> None:
        assert self.listing is not None and revision >= self.reached
        self.held, self.listing = self.listing, None
        self.lists.append(revision)
        self.reached = revision

    def events(self, events: Sequence[WatchEvent]) -> int:
        assert self.listing is None
        for event in events:
            meta = head_of(event.object).metadata
            assert meta.revision > self.reached, "told before"
            self.reached = meta.revision
            self.told.append((event.type, meta.name))
            assert (event.type == "ADDED") == (meta.name not in self.held)
            if event.type == "DELETED":
                del self.held[meta.name]
            else:
                self.held[meta.name] = meta.revision
        return self.reached

    def progress(self, revision: int) -> None:
        assert revision >= self.reached
        self.reached = revision


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "hub.outage.FIRST_S": 0.001,
        "hub.outage.MAX_S": 0.01,
        "hub.kubernetes.reflector.LIST_PAGE": 3,
        "hub.kubernetes.reflector.PAUSE_FIRST_S": 0.001,
        "hub.kubernetes.reflector.PAUSE_MAX_S": 0.01,
        "hub.kubernetes.client.PAUSE_MAX_S": 0.001,
    }.items():
        monkeypatch.setattr(name, value)


@contextlib.asynccontextmanager
async def following(client: KubeClient, sink: Collected) -> AsyncIterator[tuple[Reflector, Outage]]:
    outage = Outage("the API server")
    reflector = Reflector(client, "/api/v1/configmaps", sink, outage)
    running = asyncio.create_task(reflector.run())
    try:
        yield reflector, outage
        assert not running.done(), running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert not outage.present, "who has ended does not follow and is not behind"


def write(api: FakeApi, name: str) -> None:
    api.put("configmaps", {"metadata": {"name": name, "namespace": "default"}})


def held(api: FakeApi) -> dict[str, int]:
    objects = api.objects.get("configmaps", {})
    return {name: int(obj["metadata"]["resourceVersion"]) for (_, name), obj in objects.items()}


async def same(api: FakeApi, sink: Collected) -> None:
    await until(lambda: sink.held == held(api), DEADLINE_S, f"{sink.held} == {held(api)}")


@pytest.mark.parametrize("streams", [True, False])
async def test_what_is_there_is_listed_and_then_watched(
    api: FakeApi, client: KubeClient, streams: bool
) -> None:
    api.watch_list = streams
    for i in range(8):
        write(api, f"c{i}")
    sink = Collected()
    async with following(client, sink) as (reflector, _):
        await until(lambda: sink.lists, DEADLINE_S)
        assert sink.held == held(api)
        write(api, "c1")
        write(api, "new")
        api.remove("configmaps", "default", "c2")
        await same(api, sink)
        assert sink.told == [("MODIFIED", "c1"), ("ADDED", "new"), ("DELETED", "c2")]
        assert len(sink.lists) == 1
        pages = [query for verb, _, query in api.asked if verb == "GET"]
        assert len(pages) == (0 if streams else 3)
        assert all(query["limit"] == "3" for query in pages)
        assert reflector.revision == api.revision


async def test_a_watch_that_ends_goes_on_where_bookmarks_have_brought_it(
    api: FakeApi, client: KubeClient
) -> None:
    write(api, "c")
    sink = Collected()
    async with following(client, sink) as (reflector, _):
        await until(lambda: sink.lists, DEADLINE_S)
        for i in range(20):
            api.put("secrets", {"metadata": {"name": f"s{i}", "namespace": "default"}})
        await until(lambda: reflector.revision == api.revision, DEADLINE_S, "the bookmark")
        api.compact()  # what lies before the bookmark is forgotten
        api.cut_watches()
        write(api, "d")
        await same(api, sink)
        assert len(sink.lists) == 1, "not listed again"


async def test_every_watch_closed_at_once_again_and_again_loses_and_doubles_nothing(
    api: FakeApi, client: KubeClient
) -> None:
    api.watch_s = 0.03
    sink = Collected()
    async with following(client, sink) as (reflector, outage):
        await until(lambda: sink.lists, DEADLINE_S)
        for i in range(60):
            write(api, f"c{i % 7}")
            if i % 5 == 4 and ("default", f"c{i % 3}") in api.objects["configmaps"]:
                api.remove("configmaps", "default", f"c{i % 3}")
            await asyncio.sleep(0.005)
        await same(api, sink)
        await until(lambda: reflector.watches >= 5, DEADLINE_S)
        assert len(sink.lists) == 1 and not outage.present


async def test_a_watch_that_ends_at_once_is_not_begun_in_a_loop(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.watch_s = 0.0001
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, *rest: object) -> None:
        if seconds > 1e-6:
            pauses.append(seconds)
        await sleep(min(seconds, 0.001))

    monkeypatch.setattr(module, "PAUSE_FIRST_S", 0.25)
    monkeypatch.setattr(module, "PAUSE_MAX_S", 30.0)
    api.watch_list = False
    sink = Collected()
    async with following(client, sink):
        await until(lambda: sink.lists, DEADLINE_S)
        monkeypatch.setattr(module.asyncio, "sleep", note)
        await until(lambda: len([p for p in pauses if p > 0.1]) >= 9, DEADLINE_S)
        monkeypatch.undo()
    grown = [p for p in pauses if p > 0.1]
    assert max(grown) <= 30.0 and max(grown) > 10.0, grown


async def test_a_forgotten_revision_is_listed_again_and_nothing_is_emptied_meanwhile(
    api: FakeApi, client: KubeClient
) -> None:
    for i in range(5):
        write(api, f"c{i}")
    sink = Collected()
    async with following(client, sink) as (_, outage):
        await until(lambda: sink.lists, DEADLINE_S)
        api.down = True
        api.cut_watches()
        await until(lambda: outage.present, DEADLINE_S)
        api.remove("configmaps", "default", "c0")
        write(api, "later")
        api.compact()
        assert len(sink.held) == 5
        api.down = False
        await same(api, sink)
        await until(lambda: not outage.present, DEADLINE_S)
        assert len(sink.lists) == 2 and sink.told == []


async def test_a_watch_that_is_accepted_again_is_no_outage_though_it_has_nothing_to_tell(
    api: FakeApi, client: KubeClient
) -> None:
    api.bookmark_s = 1000.0
    sink = Collected()
    async with following(client, sink) as (_, outage):
        await until(lambda: sink.lists, DEADLINE_S)
        api.down = True
        api.cut_watches()
        await until(lambda: outage.present, DEADLINE_S)
        api.down = False
        await until(lambda: not outage.present, DEADLINE_S)
        assert len(sink.lists) == 1


async def test_a_list_whose_revision_is_forgotten_under_way_begins_anew(
    api: FakeApi, client: KubeClient
) -> None:
    api.watch_list = False
    for i in range(30):
        write(api, f"c{i}")
    sink, gone = Collected(), 0

    def forget() -> None:
        nonlocal gone
        if gone < 2:
            gone += 1
            write(api, f"c{gone}")
            api.compact()

    api.before_page = forget
    async with following(client, sink):
        await same(api, sink)
        assert gone == 2 and len(sink.lists) == 1
        limits = [query["limit"] for verb, _, query in api.asked if verb == "GET" and "continue" not in query]
        assert limits == ["3", "12", "48"], "larger parts are fewer"


async def test_a_storm_of_429_ends_in_the_same_state(api: FakeApi, client: KubeClient) -> None:
    write(api, "c")
    api.throttle = 4 * client_module.RETRIES
    sink = Collected()
    async with following(client, sink) as (_, outage):
        await same(api, sink)
        api.throttle = 4 * client_module.RETRIES
        api.cut_watches()
        write(api, "d")
        await same(api, sink)
        await until(lambda: not outage.present, DEADLINE_S)
        assert len(sink.lists) == 1


async def test_a_server_that_lies_before_what_was_seen_is_not_believed(
    api: FakeApi, client: KubeClient, caplog: pytest.LogCaptureFixture
) -> None:
    write(api, "c")
    sink = Collected()
    async with following(client, sink) as (_, outage):
        await until(lambda: sink.lists, DEADLINE_S)
        api.remove("configmaps", "default", "c")
        await same(api, sink)
        api.revision, api.oldest = 50, 10_000  # a backup of long ago, and so a watch of now is refused
        api.history.clear()
        api.cut_watches()
        await until(lambda: "is it a restored copy?" in caplog.text, DEADLINE_S)
        assert outage.present and sink.held == {} and len(sink.lists) == 1


async def test_what_is_not_followed_whole_is_told_from_now_on(api: FakeApi, client: KubeClient) -> None:
    for i in range(5):
        write(api, f"c{i}")
    sink = Collected()
    sink.held = {}
    reflector = Reflector(client, "/api/v1/configmaps", sink, Outage(), whole=False)
    running = asyncio.create_task(reflector.run())
    try:
        await until(lambda: sink.lists, DEADLINE_S)
        write(api, "new")
        await until(lambda: sink.told == [("ADDED", "new")], DEADLINE_S)
        assert [query["limit"] for verb, _, query in api.asked if verb == "GET"] == ["1"]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_whoever_is_asked_decides_at_each_list_whether_it_is_told_all(
    api: FakeApi, client: KubeClient
) -> None:
    for i in range(5):
        write(api, f"c{i}")
    asked: list[int | None] = []

    def whole(total: int | None) -> bool:
        asked.append(total)
        return len(asked) > 1

    sink = Collected()
    reflector = Reflector(client, "/api/v1/configmaps", sink, Outage(), whole=whole)
    running = asyncio.create_task(reflector.run())
    try:
        await until(lambda: sink.lists and api.watching.get("configmaps"), DEADLINE_S)
        assert sink.held == {} and reflector.revision == api.revision
        write(api, "new")
        await until(lambda: sink.told == [("ADDED", "new")], DEADLINE_S)
        write(api, "missed")
        api.compact()
        api.cut_watches()
        await same(api, sink)
        assert asked == [5, 7]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
