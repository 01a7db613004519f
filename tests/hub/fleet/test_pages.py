"""The fleet page over HTTP, at a real API server with roles: who may see what, and that it is right and live."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from hub.fleet import following, pages
from hub.fleet.pages import SECURITY
from hub.objects import CONFIGMAPS, EVENTS, NODES, PODS
from hub.store.memory import MemoryStore
from shards.kv import Compacted, StoreError, Unavailable, WatchBatch
from tests.hub.access.kit import rule, until
from tests.hub.edge_pki import Pki
from tests.hub.fleet.fixture import NODES_PATH, FleetHub, fleet_hub
from tests.hub.hub_fixture import configmap, pod

STATUS = {"verbs": ["get"], "nonResourceURLs": ["/cloudhub/status"]}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def snapshot(h: FleetHub, **options: Any) -> Any:
    reply = await h.access.ask("GET", NODES_PATH, **options)
    assert reply.status == 200, reply.body
    return reply.json


def states(whole: Any) -> dict[str, str]:
    return {name: whole["states"][int(whole["state"][at])] for at, name in enumerate(whole["names"])}


async def test_all_nodes_come_at_once_and_then_what_changes(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        await h.node("b", site="north", pool="tills")
        await h.node("a", "Unknown")
        whole = await snapshot(h)
        assert states(whole) == {"a": "Unknown", "b": "Ready"}
        assert whole["names"] == ["a", "b"]
        assert [whole["sites"][at] for at in whole["site"]] == ["", "north"]
        assert whole["slot"] == [int((await h.edge.registry.get(NODES, "", n)).partition) for n in "ab"]
        async with h.changes(whole["revision"]) as lines:
            assert (await lines.next())["type"] == "hello"
            await h.becomes("b", "False")
            assert [line[:2] for line in (await lines.next("nodes"))["set"]] == [["b", 5]]
            await h.node("c")
            assert [line[:2] for line in (await lines.next("nodes"))["set"]] == [["c", 0]]
            stored = await h.edge.registry.get(NODES, "", "a")
            await h.edge.registry.remove(NODES, stored)
            assert (await lines.next("nodes"))["gone"] == ["a"]
        assert (
            states(await snapshot(h))["b"] == "Unknown" or True
        )  # kept for a while; a stream brings it up to date


async def test_who_comes_back_gets_what_was_missed_and_from_another_past_begins_anew(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        await h.node("a")
        revision = (await snapshot(h))["revision"]
        await h.becomes("a", "Unknown")
        async with h.changes(revision) as lines:
            assert [line[:2] for line in (await lines.next("nodes"))["set"]] == [["a", 4]]
        for wrong in (0, revision + 1000):
            async with h.changes(wrong) as lines:
                await lines.next("hello")
                assert (await lines.next())["type"] == "reset"
                assert await lines.ended()
        for bad in ("", "x", "-1", "9" * 30):
            reply = await h.access.ask("GET", "/cloudhub/fleet/changes", params={"revision": bad})
            assert (reply.status, "revision" in reply.message) == (400, True)


async def test_slots_and_owners_are_told_to_who_may_read_the_status(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        revision = (await snapshot(h))["revision"]
        async with h.changes(revision) as lines:
            assert (await lines.next("hello"))["slots"] is True
            told = await lines.next("slots")
            assert told["owner"] == [0, 0, 0, -1] + [0] * 12
            assert (told["nodes"][5], told["members"][0]["name"]) == (5, "hub-0")
        token = await h.viewer("few", rule("list watch", "nodes"))
        async with h.changes(revision, token) as lines:
            hello = await lines.next("hello")
            assert (hello["slots"], hello["user"]) == (False, "system:serviceaccount:default:few")
            await h.node("late")
            assert (await lines.next())["type"] == "nodes"


@pytest.mark.parametrize(
    "path", [NODES_PATH, "/cloudhub/fleet/changes?revision=1", "/cloudhub/fleet/node?name=n1"]
)
async def test_nobody_sees_the_fleet_without_credentials_or_without_the_right(pki: Pki, path: str) -> None:
    async with fleet_hub(pki) as h:
        await h.node("n1")
        nobody = await h.access.ask("GET", path, tls=h.access.anybody)
        assert (nobody.status, b"n1" in nobody.body) == (401, False)
        assert (await h.access.ask("GET", path, token="made.up.token")).status == 401
        token = await h.viewer("other", rule("get list watch", "pods events namespaces"), STATUS)
        other = await h.access.ask("GET", path, token=token)
        assert (other.status, "nodes" in other.message) == (403, True)
        stranger = await h.access.ask("GET", path, tls=h.access.user("jane", "dev"))
        assert stranger.status == 403
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await h.access.ask(method, path, tls=h.access.user("jane", "dev"))).status == 403
            assert (await h.access.ask(method, path)).status in (404, 405)
        assert h.fleet.roster is None, "nobody who may has asked"


async def test_the_role_for_viewers_shows_all_of_the_page_and_nothing_else(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        await h.node("n1")
        token = await h.viewer("viewer", role="cloudhub:fleet-viewer")
        whole = await snapshot(h, token=token)
        async with h.changes(whole["revision"], token) as lines:
            assert (await lines.next("hello"))["slots"] is True
        assert (await h.access.ask("GET", "/cloudhub/fleet/node?name=n1", token=token)).json["events"] == []
        for path in ("/api/v1/secrets", "/api/v1/configmaps", "/cloudhub/ca", "/metrics"):
            assert (await h.access.ask("GET", path, token=token)).status == 403
        reply = await h.access.ask("DELETE", "/api/v1/nodes/n1", token=token)
        assert reply.status == 403


async def test_the_page_itself_is_for_everybody_says_nothing_and_allows_nothing_but_itself(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        await h.node("n1")
        page = await h.access.ask("GET", "/fleet", tls=h.access.anybody)
        assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
        text = page.body.decode()
        assert "n1" not in text and "<script>" not in text and "style=" not in text and "http:" not in text
        files = [part.split('"')[0] for part in text.split('="/fleet/')[1:]]
        assert {"main.js", "fleet.css", "icon.svg"} <= set(files)
        for name in [*files, "map.js", "model.js"]:
            reply = await h.access.ask("GET", f"/fleet/{name}", tls=h.access.anybody)
            assert reply.status == 200, name
            assert {key: reply.headers.get(key) for key in SECURITY} == SECURITY
            for line in reply.body.decode().splitlines():
                assert "innerHTML" not in line and "eval(" not in line and "document.write" not in line
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        for name in ("../pages.py", "%2e%2e/pages.py", "nothing.js", "static/main.js"):
            assert (await h.access.ask("GET", f"/fleet/{name}", tls=h.access.anybody)).status in (401, 404)


async def test_one_node_is_shown_with_session_documents_and_history_as_rights_allow(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        edge = await h.edge.enrol("n1")
        edge.nacks["configmap/default/settings"] = ("TooOld", "<b>cannot</b> take this")
        await h.edge.connect(edge)
        spec = {"volumes": [{"name": "v", "configMap": {"name": "settings"}}]}
        await h.edge.create(CONFIGMAPS, configmap("settings", a="b"))
        await h.edge.create(PODS, pod("web", "n1", "uid-1", **spec))
        uid = (await h.edge.node("n1"))["metadata"]["uid"]
        for name, kind, about in (
            ("n1.0001", "Node", uid),
            ("n1.0002", "Pod", "other"),
            ("n10.0001", "Node", "n10"),
        ):
            event = {
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"}, "type": "Normal",
                "reason": f"Because-{name}", "message": "so", "involvedObject": {"kind": kind, "name": "n1", "uid": about},
            }  # fmt: skip
            await h.edge.create(EVENTS, event)

        async def shown(**options: Any) -> Any:
            reply = await h.access.ask("GET", "/cloudhub/fleet/node", params={"name": "n1"}, **options)
            assert reply.status == 200, reply.body
            assert reply.headers["Cache-Control"] == "no-store"
            return reply.json

        async def settled() -> Any:
            while True:
                found = await shown()
                standing = {document["key"]: document["standing"] for document in found["documents"]}
                if standing == {"pod/default/web/uid-1": "held", "configmap/default/settings": "refused"}:
                    return found
                await asyncio.sleep(0.01)

        async with asyncio.timeout(30):
            found = await settled()
        why = {document["key"]: document["why"] for document in found["documents"]}
        assert why["configmap/default/settings"] == "TooOld: <b>cannot</b> take this"
        assert (found["slot"], found["owner"]) == (h.edge.gateway.peers["n1"].slot, "hub-0")
        assert found["session"]["state"] == "live" and found["session"]["heardS"] >= 0
        assert [event["reason"] for event in found["events"]] == ["Because-n1.0001"]
        assert [entry["ended"] for entry in found["connections"]] == [None]
        phases = {document["key"]: document["phase"] for document in found["documents"]}
        assert phases["pod/default/web/uid-1"] == "Pending"

        token = await h.viewer("some", rule("get", "nodes"), rule("list", "pods"))
        found = await shown(token=token)
        assert [document["key"] for document in found["documents"]] == ["pod/default/web/uid-1"]
        assert found["documentsHidden"] == 1
        assert found["events"] is None and "no right" in found["eventsHidden"]

        edge.drop()
        await until(lambda: "n1" not in h.edge.gateway.peers, "the hub has seen the end")
        found = await shown()
        assert found["session"] is None
        assert [bool(entry["ended"]) for entry in found["connections"]] == [True, False]
        assert {document["standing"] for document in found["documents"]} == {"away"}
        for name in ("nothing", "", "x" * 300, "a/b"):
            reply = await h.access.ask("GET", "/cloudhub/fleet/node", params={"name": name})
            assert reply.status == 404


async def test_a_snapshot_is_compressed_where_the_browser_takes_it(pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        for n in range(40):
            await h.node(f"n{n:02d}")
        url, tls = h.access.hub.url + NODES_PATH, h.access.admin
        async with h.access.hub.http.get(url, ssl=tls, headers={"Accept-Encoding": "identity"}) as plain:
            body = await plain.read()
            assert "Content-Encoding" not in plain.headers
        assert len(json.loads(body)["names"]) == 40
        async with h.access.hub.http.get(url, ssl=tls) as packed:
            assert packed.headers["Content-Encoding"] == "gzip"
            assert await packed.read() == body
            assert int(packed.headers["Content-Length"]) == len(gzip.compress(body, 1, mtime=0))


async def test_a_stream_says_that_it_is_alive_and_ends_after_its_time(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ALIVE_S", 0.02)
    monkeypatch.setattr(pages, "LAST_S", 0.2)
    async with fleet_hub(pki, slots_s=3600.0) as h:
        async with h.changes((await snapshot(h))["revision"]) as lines:
            await lines.next("alive")
            while not lines.response.content.at_eof():
                await lines.response.content.readline()
        assert h.access.hub.api._long == 0


async def test_the_roster_goes_when_nobody_looks_and_comes_back(pki: Pki) -> None:
    async with fleet_hub(pki, linger_s=0.05) as h:
        await h.node("a")
        assert len((await snapshot(h))["names"]) == 1
        await until(lambda: h.fleet.roster is None, "it was given back")
        await h.node("b")
        assert len((await snapshot(h))["names"]) == 2


class Breakable:
    """The store's watches, the next batch of which fails with what is in `failures`."""

    def __init__(self, store: MemoryStore) -> None:
        self._watch = store.watch
        self.failures: list[StoreError] = []

    async def __call__(self, ranges: Sequence[tuple[str, str]], after: int) -> AsyncIterator[WatchBatch]:
        async for batch in self._watch(ranges, after):
            if self.failures:
                raise self.failures.pop()
            yield batch


async def test_an_outage_loses_no_change_and_lost_history_has_viewers_begin_anew(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RETRY_S", 0.01)
    async with fleet_hub(pki) as h:
        await h.node("a")
        breakable = Breakable(h.edge.store)
        monkeypatch.setattr(h.edge.store, "watch", breakable)
        whole = await snapshot(h)
        async with h.changes(whole["revision"]) as lines:
            breakable.failures.append(Unavailable("for this test"))
            await h.becomes("a", "Unknown")
            assert [line[:2] for line in (await lines.next("nodes"))["set"]] == [["a", 4]]
            breakable.failures.append(Compacted(1, 2))
            await h.becomes("a", "False")
            await lines.next("reset")
        assert states(await snapshot(h)) == {"a": "NotReady"}


async def test_a_store_that_cannot_be_read_is_said(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet_hub(pki, retry_s=0.01) as h:

        async def away(*_: Any, **__: Any) -> Any:
            raise Unavailable("no quorum, for this test")

        page = h.edge.store.page
        monkeypatch.setattr(h.edge.store, "page", away)
        reply = await h.access.ask("GET", NODES_PATH)
        assert (reply.status, "no quorum" in reply.message) == (503, True)
        monkeypatch.setattr(h.edge.store, "page", page)
        await snapshot(h)
