"""Joining with the agent's own enrolment code against a real edge port."""

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from edgelite import enroll, wire
from edgelite.credentials import EnrollError
from hub.objects import JOINTOKENS, NODES
from security import join
from tests.hub.edge_pki import TRUST_DOMAIN, Pki
from tests.hub.hub_fixture import Hub, hub, until


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def token(h: Hub, ago_s: float = 0.0, **fields: Any) -> str:
    """Stores a token as the API does; returns its text."""
    request = join.TokenRequest(TRUST_DOMAIN, h.pki.ca.root_sha256, **fields)
    record, text = join.mint(request, time.time() - ago_s, os.urandom(join.ENTROPY_BYTES))
    obj = {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"name": record["id"]},
        "spec": {},
        "status": {"record": record, "redeemed": 0},
    }
    await h.create(JOINTOKENS, obj)
    return text


async def enrol(
    h: Hub, text: str, directory: Path, name: str | None = None, *, again: bool = False, **labels: str
) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        address = f"{h.address[0]}:{h.address[1]}"
        return enroll.join(address, text, name, labels, str(directory), again=again)

    return await asyncio.get_running_loop().run_in_executor(None, run)


async def test_an_agent_joins_and_connects_with_what_it_got(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        facts = await enrol(h, await token(h, node="edge-1", site="shop-7"), tmp_path / "a", rack="3")
        assert facts["node"] == "edge-1"
        node = await h.node("edge-1")
        assert node["metadata"]["labels"]["cloudhub.dev/site"] == "shop-7"
        assert node["metadata"]["labels"]["rack"] == "3"
        from edgelite.credentials import client_context

        edge = h.fleet.node("edge-1", client_context(str(tmp_path / "a")))
        assert (await h.connect(edge))["sync"] == "match"


async def test_a_used_token_a_wrong_and_an_expired_one_are_refused_by_name(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        text = await token(h, node="edge-1")
        await enrol(h, text, tmp_path / "a")
        revision = await h.store.revision()
        with pytest.raises(EnrollError) as used:
            await enrol(h, text, tmp_path / "b")
        assert used.value.code == "TokenUsed"
        old = await token(h, ago_s=7200.0, node="edge-2")
        with pytest.raises(EnrollError) as expired:
            await enrol(h, old, tmp_path / "c")
        assert expired.value.code == "TokenExpired"
        parts = old.split(".")
        with pytest.raises(EnrollError) as wrong:
            await enrol(h, ".".join([parts[0], "0" * 16, *parts[2:]]), tmp_path / "d")
        assert wrong.value.code == "TokenInvalid"
        assert await h.store.revision() == revision + 1, "only the second token itself was stored"


async def test_a_pool_names_its_nodes_and_ends_at_its_count(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        text = await token(h, pool="tills", count=2)
        first = await enrol(h, text, tmp_path / "a")
        second = await enrol(h, text, tmp_path / "b", "till-b")
        assert first["node"].startswith("tills-") and second["node"] == "till-b"
        assert (await h.node("till-b"))["metadata"]["labels"]["cloudhub.dev/pool"] == "tills"
        with pytest.raises(EnrollError) as full:
            await enrol(h, text, tmp_path / "c")
        assert full.value.code == "PoolExhausted"


async def test_a_pool_token_takes_no_existing_node_over(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        stray = h.sim("valued")
        await h.connect(stray)  # comes back unconfirmed after its hub lost its data
        text = await token(h, pool="any", count=5)
        with pytest.raises(EnrollError) as taken:
            await enrol(h, text, tmp_path / "a", "valued")
        assert taken.value.code == "NameTaken"
        stored = await h.registry.page(JOINTOKENS)
        assert stored.items[0].obj()["status"]["redeemed"] == 0


async def test_a_lost_answer_is_repeated_for_the_same_key(pki: Pki) -> None:
    async with hub(pki) as h:
        text = await token(h, node="edge-1")
        body = json.dumps({"token": text, "csr": pki.csr_pem, "name": None, "labels": {}}).encode()
        first = json.loads(await h.gateway.joining.join(body))
        again = json.loads(await h.gateway.joining.join(body))
        assert first["node"] == again["node"] == "edge-1" and "BEGIN CERTIFICATE" in again["cert"]
        nodes = (await h.registry.page(NODES)).items
        assert len(nodes) == 1
        assert "conditions" not in nodes[0].obj().get("status", {}), "only the slot's owner writes a status"


async def test_without_a_certificate_only_join_and_bundle_are_answered(pki: Pki) -> None:
    async with hub(pki) as h:
        for frame, code in (
            (wire.frame(wire.PING), "denied"),
            (wire.frame(wire.JOIN, b"{}"), "protocol"),
            (wire.frame(wire.JOIN, b" " * 20_000), "frame"),
        ):
            stranger = h.fleet.node("stranger", pki.client(None))
            stranger.out = b""
            stranger._hello = lambda s=stranger, f=frame: s.raw(f)  # type: ignore[method-assign]
            stranger.connect()
            await until(lambda s=stranger: s.goaway is not None)  # type: ignore[misc]
            assert stranger.goaway is not None and stranger.goaway["code"] == code


async def test_a_certificate_is_renewed_over_the_channel_for_the_same_name_only(pki: Pki) -> None:
    from cryptography import x509

    async with hub(pki) as h:
        edge = await h.enrol("edge-1", "shop-7")
        await h.connect(edge)
        got: list[bytes] = []
        real = edge._message
        edge._message = lambda k, s, b, a: got.append(b) if k == wire.RENEWED else real(k, s, b, a)  # type: ignore[method-assign]
        edge.send(wire.RENEW, {"csr": pki.csr_pem})
        await until(lambda: got)
        cert = x509.load_pem_x509_certificate(json.loads(got[0])["cert"].encode())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        assert uris == ["spiffe://cloudhub.local/node/default/shop-7/edge-1"]


async def test_forty_machines_that_join_at_once_with_one_token_all_get_in(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub(pki) as h:
        read = h.registry.get
        reads = 0

        async def read_from_a_disk(*which: Any) -> Any:
            nonlocal reads
            reads += which[0] == JOINTOKENS
            stored = await read(*which)
            await asyncio.sleep(0.001)  # time in which others write: what a store in memory never gives
            return stored

        monkeypatch.setattr(h.registry, "get", read_from_a_disk)
        text = await token(h, pool="shop", count=40)
        joins = [h.gateway.joining.join(json.dumps(join_body(text, n)).encode()) for n in range(40)]
        answers = [json.loads(body) for body in await asyncio.gather(*joins)]
        assert len({answer["node"] for answer in answers}) == 40
        assert reads == 40, "machines made each other read the token again"


def join_body(text: str, n: int) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.hub.edge_pki import csr

    return {
        "token": text,
        "csr": csr(ec.generate_private_key(ec.SECP256R1())),
        "name": None,
        "labels": {},
        "info": {},
    }


def ask(h: Hub, body: bytes) -> dict[str, Any]:
    """The body of GOAWAY that answers a JOIN."""
    decoder = wire.Decoder()
    with (
        socket.create_connection(h.address, timeout=30) as raw,
        h.pki.client(None).wrap_socket(raw, server_hostname=f"hub.{TRUST_DOMAIN}") as sock,
    ):
        sock.sendall(wire.frame(wire.JOIN, body))
        while True:
            for kind, _, answer in decoder.feed(sock.recv(65536)):
                assert kind == wire.GOAWAY, wire.NAMES[kind]
                said: dict[str, Any] = json.loads(answer)
                return said


async def test_a_join_that_is_nested_too_deep_is_malformed_and_harms_nobody(pki: Pki) -> None:
    """It is read in a task of its own: what it raises there must not end the hub."""
    async with hub(pki) as h:
        steady = await h.enrol("steady")
        await h.connect(steady)
        for body in (
            b'{"x":' * 2600,
            b'{"token":"x","csr":' + b"[" * 15_000,
            b'{"return":{"chain":' + b'{"x":' * 2500,
        ):
            said = await asyncio.to_thread(ask, h, body)
            assert (said["code"], said["reason"]) == ("protocol", "Malformed"), said
        steady.ping()
        await until(lambda: steady.pongs == 1)


async def test_a_bug_that_a_join_finds_ends_its_connection_and_not_the_hub(
    pki: Pki, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> bytes:
        raise ZeroDivisionError("a bug")

    async with hub(pki) as h:
        monkeypatch.setattr(h.gateway.joining, "join", broken)
        steady = await h.enrol("steady")
        await h.connect(steady)
        assert (await asyncio.to_thread(ask, h, b"{}"))["code"] == "failed"
        assert "join, for a peer at" in caplog.text and "a bug" in caplog.text
        steady.ping()
        await until(lambda: steady.pongs == 1)
