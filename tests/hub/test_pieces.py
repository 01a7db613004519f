"""Pieces of a release, from a node's question to its answer, over real mTLS with a simulated node."""

from typing import Any

import pytest

from edgelite.updateplan import parse
from hub.objects import CONFIGMAPS, NODES
from hub.pieces import PIECE_BYTES_MAX
from hub.registry import Object
from hub.releases import ANNOTATION, CHUNK_BYTES, LABEL, annotation, configmaps, release
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, until
from tests.sim.fleet import SimNode

DATA = bytes(range(251)) * 2500
SAID = release(DATA, "0.2.0", 7)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def placed(h: Hub, name: str = "edge-1", labelled: bool = True) -> SimNode:
    """A connected node that wants the release."""
    if name == "edge-1":
        for made in configmaps("default", "edgelite-0.2.0", SAID, DATA):
            if not labelled:
                del made["metadata"]["labels"][LABEL]
            await h.create(CONFIGMAPS, made)
    edge = await h.enrol(name)
    await h.connect(edge)
    await wants(h, name, annotation("default", "edgelite-0.2.0", SAID))
    await until(lambda: "agent/update" in edge.docs)
    return edge


async def wants(h: Hub, name: str, text: str | None) -> None:
    def change(node: Object) -> Object:
        node["metadata"]["annotations"] = {**(node["metadata"].get("annotations") or {}), ANNOTATION: text}
        if text is None:
            del node["metadata"]["annotations"][ANNOTATION]
        return node

    await h.registry.mutate(NODES, "", name, change)


async def ask(edge: SimNode, at: int, size: int = 1 << 20, **changes: Any) -> str:
    """The hub's answer: "" or why not."""
    n = edge.report("piece", "agent/update", {"sha": SAID["sha256"], "at": at, "len": size, **changes})
    await until(lambda: n in edge.stored)
    return edge.stored[n]


def piece(edge: SimNode, at: int) -> bytes:
    return edge.bodies[f"piece/{SAID['sha256'][:16]}/{at}"]


async def test_a_node_gets_its_release_piece_by_piece_over_the_cuts_of_the_chunks(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await placed(h)
        assert parse(edge.bodies["agent/update"])["sha256"] == SAID["sha256"]
        assert b"from" not in edge.bodies["agent/update"]
        got = b""
        while len(got) < len(DATA):
            assert await ask(edge, len(got)) == ""
            part = piece(edge, len(got))
            assert 0 < len(part) <= PIECE_BYTES_MAX
            got += part
        assert len(DATA) > CHUNK_BYTES
        assert got == DATA
        assert list(h.gateway.desired.of("edge-1")) == ["agent/update"], (
            "pieces are no part of what is desired"
        )


async def test_a_node_gets_what_its_node_wants_and_nothing_else(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await placed(h)
        assert await ask(edge, 0, sha="0" * 64) == "obsolete"
        assert await ask(edge, len(DATA)) == "obsolete"
        assert "malformed" in await ask(edge, -1)
        other = await h.enrol("edge-2")
        await h.connect(other)
        assert await ask(other, 0) == "obsolete"
        await wants(h, "edge-1", None)
        await until(lambda: "agent/update" not in edge.docs)
        assert await ask(edge, 0) == "obsolete"
        assert not [key for key in (*edge.bodies, *other.bodies) if key.startswith("piece/")]


async def test_a_config_map_that_is_no_release_is_not_read_out(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await placed(h, labelled=False)
        assert "not found" in await ask(edge, 0)


async def test_what_is_missing_is_told_and_a_small_node_gets_small_pieces(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await placed(h)
        assert await ask(edge, 5, 100) == ""
        assert piece(edge, 5) == DATA[5:105]
        stored = await h.registry.get(CONFIGMAPS, "default", "edgelite-0.2.0-1")
        await h.registry.remove(CONFIGMAPS, stored)
        assert "edgelite-0.2.0-1" in await ask(edge, CHUNK_BYTES)
