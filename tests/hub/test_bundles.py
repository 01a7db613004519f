"""New roots reach connected nodes, who renew at a bounded rate; what they have shown is noted on their Nodes."""

import time
from typing import Any

import pytest

from edgelite import credentials, wire
from hub import bundles
from hub.bundles import AGAIN_S, NOTE_AGAIN_S, REMOVED_S
from hub.reports import certificate_of
from hub.trust import Trust
from security.authorities import Authorities
from security.rotation import Activate, Remove
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, eventually, hub, until
from tests.sim.fleet import SimNode


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks come from the tests."""
    monkeypatch.setattr(bundles, "TICK_S", 1e6)


async def nodes(h: Hub, count: int) -> list[SimNode]:
    made = []
    for n in range(count):
        node = await h.enrol(f"edge-{n}")
        node.trust = trust(h).id
        await h.connect(node)
        made.append(node)
    return made


def trust(h: Hub) -> Trust:
    return h.gateway.bundles._trust


def another_root(h: Hub) -> Authorities:
    """Prepared, and active at once."""
    prepared = trust(h).authorities.begin(time.time())
    return prepared.after(Activate(prepared.held[1].root.id), time.time(), 1000.0)


def say(node: SimNode, cert: str) -> None:
    have = credentials.bundle_id("".join(node.bundle["roots"]))
    node.send(wire.BUNDLE, {"have": have, "cert": credentials.mark_of(cert)})


async def noted(h: Hub, name: str) -> Any:
    return certificate_of((await h.node(name))["metadata"].get("annotations"))


async def test_renewals_are_asked_for_at_a_rate_and_of_nobody_twice(pki: Pki) -> None:
    async with hub(pki, renewals_per_s=2.0) as h:
        fleet = await nodes(h, 5)
        h.gateway.bundles.tick(1.0)
        assert [n.bundles for n in fleet] == [0] * 5, "nothing has changed"
        trust(h).take(another_root(h), 1)
        for expected in (2, 4, 5, 5):
            h.gateway.bundles.tick(1.0)
            await until(lambda: sum(n.asked for n in fleet) >= expected, what=f"{expected} are asked")  # noqa: B023
            assert sum(n.asked for n in fleet) == expected
        assert all(len(n.bundle["roots"]) == 2 for n in fleet), "the bundle came at once"
        for node in fleet:
            say(node, pki.node_cert(node.name))  # installed, and not renewed yet
        await until(
            lambda: all(p.trusts == trust(h).id for p in h.gateway.peers.values()), what="all have said so"
        )
        h.gateway.bundles.tick(1.0)
        h.clock.ahead += AGAIN_S
        h.gateway.bundles.tick(1.0)
        await until(lambda: sum(n.asked for n in fleet) == 7, what="two are asked again after a while")


async def test_a_certificate_counts_once_it_is_installed_and_the_note_is_written_until_it_is_there(
    pki: Pki,
) -> None:
    async with hub(pki) as h:
        (node,) = await nodes(h, 1)
        first = await eventually(lambda: noted(h, node.name))
        trust(h).take(another_root(h), 1)
        h.gateway.bundles.tick(1.0)
        await until(lambda: node.asked, what="the renewal is asked for")
        node.send(wire.RENEW, {"csr": pki.csr_pem})
        await until(lambda: node.renewed, what="RENEWED")
        assert node.renewed is not None
        assert await noted(h, node.name) == first, "what was sent may be lost"
        written, h.gateway.write_node = h.gateway.write_node, lambda *_: None  # type: ignore[method-assign,misc]
        say(node, node.renewed["cert"])
        await until(lambda: h.gateway.peers[node.name].installed, what="it is installed")
        h.gateway.write_node = written  # type: ignore[method-assign]
        assert await noted(h, node.name) == first
        h.clock.ahead += NOTE_AGAIN_S
        h.gateway.bundles.tick(1.0)

        async def new() -> bool:
            found = await noted(h, node.name)
            return bool(found and found.root == trust(h).active_id)

        await eventually(new)
        h.clock.ahead += NOTE_AGAIN_S
        h.gateway.bundles.tick(1.0)
        assert not h.gateway.bundles._notes
        node.connect()  # with the old certificate: it has lost the newer one, and depends on the old root again
        await until(lambda: node.welcome, what="WELCOME")

        async def old() -> bool:
            return bool(await noted(h, node.name) == first)

        await eventually(old)


async def test_nodes_that_do_not_know_bundles_are_left_alone(pki: Pki) -> None:
    async with hub(pki) as h:
        old = await h.enrol("edge-1")
        await h.connect(old)
        trust(h).take(another_root(h), 1)
        for _ in range(3):
            h.gateway.bundles.tick(1.0)
        (new,) = await nodes(h, 1)
        new.send(wire.PING)
        old.send(wire.PING)
        await until(lambda: old.pongs and new.pongs, what="PONG")
        assert old.bundles == 0


async def test_nodes_forget_a_root_only_after_all_replicas_have_stopped_to_show_it(pki: Pki) -> None:
    async with hub(pki) as h:
        (node,) = await nodes(h, 1)
        both = another_root(h)
        trust(h).take(both, 1)
        h.gateway.bundles.tick(1.0)
        await until(lambda: len(node.bundle.get("roots", ())) == 2, what="both roots")
        trust(h).take(both.after(Remove(both.roots[0].id), time.time(), 1000.0), 2)
        h.gateway.bundles.tick(1.0)
        node.send(wire.PING)
        await until(lambda: node.pongs, what="PONG")
        assert len(node.bundle["roots"]) == 2
        h.clock.ahead += REMOVED_S
        h.gateway.bundles.tick(1.0)
        await until(lambda: len(node.bundle["roots"]) == 1, what="the new root alone")
