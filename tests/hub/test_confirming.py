"""What `cloudhub confirm --all` says of the nodes that are not among those that wait for it."""

import asyncio
import uuid
from argparse import Namespace
from typing import Any

import pytest

from hub import reports
from hub.client import ClientRefused
from hub.confirming import confirm, not_among_all
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import hub, until

FOREIGN = {"store": str(uuid.uuid4()), "gen": 1, "slot": 0, "epoch": 1, "id": "0123456789abcdef"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def test_a_node_that_is_held_back_counts_until_its_node_says_so(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        edge.claim, edge.revision = dict(FOREIGN), 7
        write, gate = h.store.txn, asyncio.Event()

        async def slowly(*args: Any) -> Any:
            await gate.wait()
            return await write(*args)

        h.store.txn = slowly  # type: ignore[method-assign]
        assert h.gateway.greeting.untold() == 0
        assert (await h.connect(edge))["sync"] == "hold"
        assert h.gateway.greeting.untold() == 1
        gate.set()
        await until(lambda: h.gateway.greeting.untold() == 0, what="its Node says so")
        assert (await h.node("edge-1"))["metadata"]["annotations"][reports.PARTED] == FOREIGN["id"]
        edge.drop()
        await until(lambda: "edge-1" not in h.gateway.peers)
        assert h.gateway.greeting.untold() == 0 and not h.gateway.greeting._held


def member(connected: int, untold: int = 0) -> dict[str, Any]:
    return {"connected": connected, "heldUntold": untold}


def node(name: str, ready: str = "True", **annotations: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}]
    return {"metadata": {"name": name, "annotations": annotations}, "status": {"conditions": conditions}}


def test_who_is_on_the_way_and_who_is_away_is_counted_over_all_replicas() -> None:
    nodes = [node(f"n{i}") for i in range(9)]
    assert list(not_among_all({"members": [member(5), member(4)]}, nodes)) == []
    told = list(not_among_all({"members": [member(5, 2), member(2, 1)]}, nodes))
    assert told[0].startswith("3 nodes held back and on the way to say so")
    assert told[1].startswith("2 nodes of 9 not connected")
    # A replica of an earlier release says nothing of the ones, and there may be fewer Nodes by now than connections.
    assert list(not_among_all({"members": [{"connected": 10}]}, nodes)) == []


def test_in_a_cluster_edge_nodes_that_are_not_ready_are_counted_and_others_are_nobodys_business() -> None:
    edge = {reports.ENROLLED: "{}"}
    nodes = [
        node("control-plane", "False"),
        node("edge-1", "True", **edge),
        node("edge-2", "Unknown", **edge),
        node("edge-3", "False", **edge, **{reports.PARTED: "waits, and is confirmed"}),
    ]
    assert [line.partition(":")[0] for line in not_among_all(None, nodes)] == ["1 node not Ready"]


class Api:
    """Answers from a table, and keeps what was patched."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.patched = answers, []  # type: ignore[var-annotated]

    async def get(self, path: str) -> Any:
        if isinstance(self.answers[path], Exception):
            raise self.answers[path]
        return self.answers[path]

    async def patch(self, path: str, body: Any) -> Any:
        self.patched.append((path, body["metadata"]["annotations"][reports.CONFIRMED]))


@pytest.mark.parametrize("code", [403, 404, 503])
async def test_who_may_not_see_the_hubs_status_may_confirm_all_the_same(code: int) -> None:
    nodes = {"items": [node("edge-1", "False", **{reports.PARTED: "c1"})]}
    api: Any = Api({"/cloudhub/status": ClientRefused("no", code), "/api/v1/nodes": nodes})
    if code == 503:  # no wrong count where it could be had a moment later
        with pytest.raises(ClientRefused):
            await confirm(api, Namespace(node=None))
        return
    assert await confirm(api, Namespace(node=None)) == 0
    assert api.patched == [("/api/v1/nodes/edge-1", "c1")]
