import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from hub import fanout
from hub.fanout import AT_ONCE, PORTION_S, Fanout
from hub.objects import CONFIGMAPS, PODS
from hub.registry import Object
from hub.session import LastSet
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import configmap, hub, pod, until

STEP_S = 0.001
"""What one session takes here."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Peer(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Nodes:
    """A gateway with nodes whose sessions take STEP_S of its own clock each. `served`: what they were asked for, in order;
    `stale`: who was asked without the inline check right before."""

    def __init__(self, count: int) -> None:
        self.clock = 0.0
        self.served: list[str] = []
        self.stale: list[str] = []
        self.checked: Any = None
        self.desired = SimpleNamespace(settled=True)
        self.peers = {f"n{i}": self.peer(f"n{i}") for i in range(count)}
        self.fanout = Fanout(self, LastSet(), lambda: self.clock)  # type: ignore[arg-type]

    def peer(self, name: str) -> Any:
        made = Peer(session=SimpleNamespace(changed=lambda key: None), conn=None)

        def pump() -> tuple[()]:
            self.clock += STEP_S
            self.served.append(name)
            if self.checked is not made:
                self.stale.append(name)
            return ()

        made.session.pump = pump
        return made

    def check(self, peer: Any) -> None:
        self.checked = peer

    def change(self, *names: str) -> None:
        for name in names:
            self.fanout.changed(name, "configmap/d/c")
        self.fanout.advanced()


async def test_a_change_for_all_is_served_in_portions_between_which_the_loop_goes_on() -> None:
    nodes = Nodes(300)
    portions: list[int] = []
    nodes.change(*nodes.peers)
    while len(nodes.served) < 300:
        portions.append(len(nodes.served) - sum(portions))
        await asyncio.sleep(0)
        assert len(portions) <= 20
    assert max(portions) <= PORTION_S / STEP_S + AT_ONCE
    assert sorted(nodes.served) == sorted(nodes.peers)
    assert nodes.stale == [], "without the inline check"


async def test_who_changes_again_before_its_portion_is_served_once_and_afterwards_again() -> None:
    nodes = Nodes(200)
    nodes.change(*nodes.peers)
    waiting = set(nodes.peers) - set(nodes.served)
    nodes.change(*nodes.peers)
    while nodes.fanout._ready:
        await asyncio.sleep(0)
    assert all(nodes.served.count(name) == (1 if name in waiting else 2) for name in nodes.peers)


async def test_whoever_fails_keeps_none_of_the_others_waiting() -> None:
    nodes = Nodes(100)

    def fail() -> None:
        raise RuntimeError("ten of them are broken")

    for i in range(10):
        nodes.peers[f"n{i}"].session.pump = fail
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    with contextlib.suppress(RuntimeError):  # wherever in the portions it comes
        nodes.change(*nodes.peers)
    await until(lambda: len(nodes.served) == 90)
    assert not nodes.fanout._serving


async def test_what_is_not_settled_waits_until_it_is_or_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "SETTLE_S", 0.01)
    nodes = Nodes(3)
    nodes.desired.settled = False
    nodes.change("n0")
    assert nodes.served == []
    nodes.desired.settled = True
    nodes.change("n1")
    assert sorted(nodes.served) == ["n0", "n1"]
    nodes.desired.settled = False
    nodes.change("n2")
    await until(lambda: "n2" in nodes.served)


async def test_what_this_hub_loses_between_two_portions_is_sent_nothing_in_the_second(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{i}" for i in range(4)]
    async with hub(pki) as h:
        nodes = [await h.enrol(name) for name in names]
        await h.create(CONFIGMAPS, configmap("c", colour="red"))
        for node in nodes:
            await h.connect(node)
            from_c = {"envFrom": [{"configMapRef": {"name": "c"}}]}
            containers = [{"name": "main", "image": "none", **from_c}]
            await h.create(PODS, pod(f"p-{node.name}", node.name, containers=containers))
        await until(lambda: all(len(node.docs) == 2 for node in nodes))

        # Each is a portion of its own, and after the second nothing is this hub's any more: nobody has told the gateway.
        monkeypatch.setattr(fanout, "AT_ONCE", 1)
        monkeypatch.setattr(fanout, "PORTION_S", -1.0)
        serve, served = Fanout._serve_until, []

        def portion(self: Fanout, until: float) -> None:
            if len(served) == 2:
                for slot in range(h.gateway.ownership.slots):
                    h.gateway.ownership.fence_lost(slot)
            served.append(until)
            serve(self, until)

        monkeypatch.setattr(Fanout, "_serve_until", portion)

        def recolour(obj: Object) -> Object:
            obj["data"]["colour"] = "blue"
            return obj

        await h.registry.mutate(CONFIGMAPS, "default", "c", recolour)
        await until(lambda: len(served) == 4)
        for node in nodes:
            node.ping()  # what was sent before its answer has arrived with it
        await until(lambda: all(node.pongs for node in nodes))
        assert sum(b"blue" in node.bodies["configmap/default/c"] for node in nodes) == 2
