"""Mirror pods: what the API shows of what a node runs from files of its own, over real mTLS with a simulated node."""

from typing import Any

import pytest

from hub.desired import MIRROR
from hub.objects import NAMESPACES, PODS
from hub.registry import Object
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, eventually, hub, pod, until
from tests.sim.fleet import SimNode, running_status

KEY = "static/default/till-edge-1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


def static(uid: str = "u1", name: str = "till-edge-1", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "img:1", "command": ["run"]}]
    meta = {"name": name, "namespace": "default", "labels": {"app": "till"}, "annotations": {}}
    found = {"metadata": meta, "spec": {"containers": containers, **spec}}
    return {"uid": uid, "pod": found, "status": running_status()}


async def connected(h: Hub) -> SimNode:
    space: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    await h.create(NAMESPACES, space)
    edge = await h.enrol("edge-1")
    await h.connect(edge)
    return edge


async def answered(edge: SimNode, key: str, body: Any) -> str:
    n = edge.report("static", key, body)
    await until(lambda: n in edge.stored)
    return edge.stored[n]


async def test_a_static_pod_is_shown_by_a_mirror_that_no_node_is_sent(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        assert await answered(edge, KEY, static()) == ""
        found = await h.pod("till-edge-1")
        assert found is not None
        assert found["metadata"]["annotations"][MIRROR] == "u1"
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Node", "edge-1")
        assert found["spec"]["nodeName"] == "edge-1" and found["status"]["phase"] == "Running"
        assert found["spec"]["containers"][0]["terminationMessagePath"] == "/dev/termination-log"
        await until(lambda: h.share.pods.cache.get("default", "till-edge-1") is not None)
        assert edge.docs == {} and not h.gateway.desired.of("edge-1")


async def test_the_mirror_follows_its_pod_and_goes_with_it(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        assert await answered(edge, KEY, static()) == ""
        first = await h.pod("till-edge-1")
        assert await answered(edge, KEY, {**static(), "status": {"phase": "Failed"}}) == ""
        same = await h.pod("till-edge-1")
        assert first is not None and same is not None
        assert (same["metadata"]["uid"], same["status"]["phase"]) == (first["metadata"]["uid"], "Failed")
        assert await answered(edge, KEY, static("u2")) == ""
        other = await h.pod("till-edge-1")
        assert other is not None and other["metadata"]["uid"] != first["metadata"]["uid"]
        assert await answered(edge, KEY, {"gone": True}) == ""
        assert await h.pod("till-edge-1") is None
        assert await answered(edge, KEY, {"gone": True}) == ""


async def test_a_mirror_that_somebody_deletes_is_made_anew(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        assert await answered(edge, KEY, static()) == ""
        first = await h.pod("till-edge-1")
        assert first is not None

        def mark(obj: Object) -> Object:
            obj["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=30)
            return obj

        await h.registry.mutate(PODS, "default", "till-edge-1", mark)

        async def anew() -> bool:
            found = await h.pod("till-edge-1")
            return found is not None and found["metadata"]["uid"] != first["metadata"]["uid"]

        await eventually(anew)
        found = await h.pod("till-edge-1")
        assert found is not None and "deletionTimestamp" not in found["metadata"]
        assert found["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    ("key", "body", "told"),
    [
        ("static/default/till", static(name="till"), "denied"),
        ("static/default/till-edge-2", static(name="till-edge-2"), "denied"),
        ("static/default/x/till-edge-1", static(), "denied"),
        ("pod/default/till-edge-1", static(), "denied"),
        (KEY, static(name="other-edge-1"), "malformed"),
        (KEY, {}, "malformed"),
        (KEY, static(uid=""), "malformed"),
        (KEY, {"gone": "yes"}, "malformed"),
        (KEY, static(containers=[]), "Invalid"),
        (KEY, static(volumes="x"), "malformed"),
        (KEY, static(volumes=[{"name": "v", "secret": {"secretName": "s"}}]), "denied"),
        (
            KEY,
            static(
                volumes=[{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]
            ),
            "denied",
        ),
        ("static/elsewhere/till-edge-1", None, "namespace"),
    ],
)
async def test_a_node_mirrors_only_what_is_its_own_and_refers_to_nothing(
    pki: Pki, key: str, body: Any, told: str
) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        if body is None:
            body = static()
            body["pod"]["metadata"]["namespace"] = "elsewhere"
        assert told in await answered(edge, key, body)
        assert await h.pod("till-edge-1") is None


async def test_a_pod_that_is_no_mirror_is_not_touched(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        await h.create(PODS, pod("till-edge-1", "edge-1", "user-made"))
        for body in (static(), {"gone": True}):
            assert "mirrors nothing" in await answered(edge, KEY, body)
        found = await h.pod("till-edge-1")
        assert found is not None and found["metadata"]["uid"] == "user-made"


async def test_a_log_of_a_mirror_is_asked_for_under_the_uid_that_the_node_knows(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await connected(h)
        assert await answered(edge, KEY, static()) == ""
        await until(lambda: h.share.pods.cache.get("default", "till-edge-1") is not None)
        found = await h.pod("till-edge-1")
        assert found is not None
        streams = h.gateway.streams
        assert streams._edge_uid("edge-1", found["metadata"]["uid"]) == "u1"
        assert streams._edge_uid("edge-1", "another") == "another"
