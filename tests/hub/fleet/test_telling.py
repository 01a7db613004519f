"""A node's session and documents are shown by any replica: what the owner alone knows comes over the bus."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hub import errors
from hub.access.authorizer import Authorizer, default_policy
from hub.fleet.detail import Details
from hub.fleet.telling import telling
from hub.objects import CONFIGMAPS, PODS, SECRETS
from security.rbac import MASTERS, User
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import configmap, pod, until
from tests.hub.test_relaying import DEADLINE_S, Replica, buses, replicas

ADMIN = User("admin", (MASTERS,))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


def details(replica: Replica, *, bus: bool = True) -> Details:
    authorizer = Authorizer(default_policy())
    elsewhere = replica.relay.open_document if bus else None
    return Details(replica.hub.registry, replica.gateway, authorizer, replica.hub.registry, elsewhere)


async def of_an_older_release(_node: str, _path: str) -> AsyncIterator[bytes]:
    """What a kubelet's face answers to a path that it does not know."""
    raise errors.NotFound.no_such_path()
    yield b""


async def test_another_replica_shows_what_the_owner_tells(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await a.hub.enrol("n1")
        await a.hub.connect(edge)
        await a.hub.create(CONFIGMAPS, configmap("settings", a="b"))
        await a.hub.create(
            PODS, pod("web", "n1", "uid-1", volumes=[{"name": "v", "configMap": {"name": "settings"}}])
        )
        await until(lambda: edge.acks >= 2, DEADLINE_S)
        a.relay.far.documents = of_an_older_release
        assert "older release" in (await details(b).of("n1", ADMIN))["unknown"]

        a.relay.far.documents = telling(a.gateway, None)
        peer = a.gateway.peers["n1"]
        assert peer.session is not None
        standing = peer.session.standing
        await until(lambda: {standing(key)[0] for key in a.gateway.desired.of("n1")} == {"held"}, DEADLINE_S)
        here, there = await details(a).of("n1", ADMIN), await details(b).of("n1", ADMIN)
        assert {document["standing"] for document in there["documents"]} == {"held"}
        assert there["documents"] == here["documents"] and len(here["documents"]) == 2
        assert there["session"]["address"] == here["session"]["address"]
        assert there["connections"] == here["connections"] != []
        assert (there["owner"], there["epoch"]) == ("hub-0", here["epoch"])


async def test_a_replica_that_cannot_ask_the_owner_says_why_and_shows_the_rest(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        await a.hub.enrol("n1")
        found = await details(b, bus=False).of("n1", ADMIN)
        assert "no bus" in found["unknown"] and found["name"] == "n1" and "documents" not in found
        two[1].cut()  # type: ignore[attr-defined]
        found = await details(b).of("n1", ADMIN)
        assert "hub-0" in found["unknown"] and found["state"] == "New"


async def test_documents_of_objects_that_a_user_may_not_list_are_counted_and_not_named(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, _b):
        secret = {**configmap("hidden"), "kind": "Secret", "type": "Opaque", "data": {"a": "Yg=="}}
        await a.hub.create(SECRETS, secret)
        await a.hub.enrol("n1")
        await a.hub.create(
            PODS, pod("web", "n1", "uid-1", volumes=[{"name": "v", "secret": {"secretName": "hidden"}}])
        )
        async with asyncio.timeout(DEADLINE_S):
            while len(a.gateway.desired.of("n1")) < 2:
                await asyncio.sleep(0.01)
        assert len((await details(a).of("n1", ADMIN))["documents"]) == 2
        found = await details(a).of("n1", User("jane", ()))
        assert (found["documents"], found["documentsHidden"], found["documentsInAll"]) == ([], 2, 2)
        assert "hidden" not in str(found)
