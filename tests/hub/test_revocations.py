"""Revoked nodes, tokens and certificates at a real edge port: live sessions, new ones, resumed ones, joins and renewals."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from edgelite import wire
from edgelite.credentials import EnrollError, client_context
from edgelite.desired import digest_of
from hub import errors, revocations
from hub.certpaths import REVOCATIONS_PATH
from hub.objects import REVOCATIONS, REVOKED_AT
from hub.revocations import STALE_S, Revocations
from hub.store.memory import MemoryStore
from security import tls
from security.revocation import Revoked, entry_of
from shards.kv import Unavailable
from tests.hub import serving
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Clock, Hub, hub, until
from tests.hub.test_joining import enrol, token
from tests.hub.test_relaying import buses, relayed, replicas
from tests.sim.fleet import HUB_NAME

KEEP_S = 30 * 86400.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Store(MemoryStore):
    """A store that can be out of reach."""

    away = False

    async def revision(self) -> int:
        if self.away:
            raise Unavailable("no quorum")
        return await super().revision()


class Owner:
    """Owns the role."""

    def fence(self, unit: Any) -> Any:
        return unit


class World:
    """A hub that follows revocations."""

    def __init__(self, h: Hub, clock: Clock) -> None:
        self.hub, self.clock = h, clock
        self.all = Revocations(h.registry, Revoked(), KEEP_S, Owner(), now=clock)
        self.all.attach(h.gateway)

    async def revoke(self, **spec: str) -> str:
        """As the API does; returns once this hub knows."""
        name = f"r{len(self.all.revoked)}-{time.time_ns()}"
        before = len(self.all.revoked)
        stored = await self.hub.create(REVOCATIONS, {
            "apiVersion": "cloudhub.dev/v1alpha1", "kind": "Revocation", "metadata": {"name": name}, "spec": spec,
        })  # fmt: skip
        await until(lambda: len(self.all.revoked) > before, what="the revocation is known")
        return str(stored.obj()["metadata"]["name"])


@contextlib.asynccontextmanager
async def world(pki: Pki) -> AsyncIterator[World]:
    store = Store(slots=16)
    async with hub(pki, store) as h:
        made = World(h, Clock())
        running = asyncio.create_task(made.all.run())
        await made.all.known()
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_revoked_node_is_told_so_and_stays_out_while_others_stay(pki: Pki) -> None:
    async with world(pki) as w:
        one, other = await w.hub.enrol("edge-1"), await w.hub.enrol("edge-2")
        for node in (one, other):
            await w.hub.connect(node)
        name = await w.revoke(node="edge-1", reason="stolen from the shop")
        await until(lambda: one.goaway, what="GOAWAY")
        assert one.goaway is not None
        assert (one.goaway["code"], one.goaway["retry_s"], one.goaway["reason"]) == (
            "revoked",
            None,
            "Revoked",
        )
        assert "stolen from the shop" in one.goaway["message"]
        one.connect()
        await until(lambda: one.goaway, what="GOAWAY at once")
        assert one.welcome is None and one.goaway is not None and one.goaway["code"] == "revoked"
        assert other.welcome is not None and not other.closed
        assert (await w.hub.node("edge-1"))["metadata"]["name"] == "edge-1", "its Node stays"
        # Deleting the entry ends it.
        stored = await w.hub.registry.get(REVOCATIONS, "", name)
        await w.hub.registry.remove(REVOCATIONS, stored)
        await until(lambda: not len(w.all.revoked), what="the entry is gone")
        await w.hub.connect(one)


class Resuming:
    """A node that keeps its TLS session, on blocking sockets."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.address, self.context = address, context
        self.session: ssl.SSLSession | None = None
        self.reused = False
        self.conn = 0

    def hello(self) -> tuple[int, dict[str, Any]]:
        """Connects and says HELLO; the first answer."""
        self.conn += 1
        with (
            socket.create_connection(self.address, timeout=20) as raw,
            self.context.wrap_socket(raw, server_hostname=HUB_NAME, session=self.session) as sock,
        ):
            body = {
                "proto": [1, 1], "inc": "ab" * 16, "boot": 1, "conn": self.conn, "digest": digest_of({}), "features": ["log"],
            }  # fmt: skip
            with contextlib.suppress(OSError):  # it may have been refused already
                sock.sendall(wire.message(wire.HELLO, json.dumps(body).encode()))
            decoder = wire.Decoder()
            while True:
                for kind, _, answer in decoder.feed(sock.recv(65536)):
                    self.session, self.reused = sock.session, bool(sock.session_reused)
                    return kind, json.loads(answer)


@pytest.mark.parametrize("why", ["node", "serial", "expired"])
async def test_a_resumed_tls_session_is_checked_like_a_new_one(pki: Pki, why: str) -> None:
    async with world(pki) as w:
        await w.hub.enrol("edge-1")
        cert = pki.node_cert("edge-1")
        client = Resuming(w.hub.address, tls.client_context(pki.ca.root_pem, cert, pki.key_pem))
        assert (await asyncio.to_thread(client.hello))[0] == wire.WELCOME
        assert (await asyncio.to_thread(client.hello))[0] == wire.WELCOME and client.reused
        if why == "node":
            await w.revoke(node="edge-1")
        elif why == "serial":
            await w.revoke(serial=_serial(cert).upper())
        else:
            w.hub.gateway.wall = lambda: time.time() + 15 * 86400.0
        kind, said = await asyncio.to_thread(client.hello)
        assert client.reused, "the session was not resumed: nothing was tried"
        assert kind == wire.GOAWAY and said["code"] == ("denied" if why == "expired" else "revoked")


def _serial(cert: str) -> str:
    return f"{x509.load_pem_x509_certificate(cert.encode()).serial_number:040x}"


async def test_a_revoked_node_comes_back_with_a_later_token_and_its_old_certificate_does_not(
    pki: Pki, tmp_path: Path
) -> None:
    async with world(pki) as w:
        early = await token(w.hub, ago_s=60, node="edge-1")
        await enrol(w.hub, early, tmp_path / "old")
        unused = await token(w.hub, ago_s=60, node="edge-1")
        await w.revoke(node="edge-1")
        with pytest.raises(EnrollError) as refused:
            await enrol(w.hub, unused, tmp_path / "thief")
        assert refused.value.code == "Revoked" and not refused.value.retryable
        await enrol(w.hub, await token(w.hub, ago_s=-2, node="edge-1"), tmp_path / "new")
        old = w.hub.fleet.node("old", client_context(str(tmp_path / "old")))
        old.connect()
        await until(lambda: old.goaway, what="GOAWAY for the old certificate")
        assert old.goaway is not None and old.goaway["code"] == "revoked"
        new = w.hub.fleet.node("new", client_context(str(tmp_path / "new")))

        async def connects() -> bool:
            # It begins a second after the revocation, in which it is not valid yet.
            new.connect()
            await until(lambda: new.welcome or new.closed, what="an answer")
            return new.welcome is not None

        deadline = time.monotonic() + 20
        while not await connects():
            assert time.monotonic() < deadline, new.goaway
            await asyncio.sleep(0.1)


async def test_a_token_that_is_made_in_the_second_of_a_revocation_counts_by_which_came_first(
    pki: Pki, tmp_path: Path
) -> None:
    async with world(pki) as w, serving.hub(store=w.hub.store) as api:
        await enrol(w.hub, await token(w.hub, ago_s=60, node="edge-1"), tmp_path / "old")
        early = await token(w.hub, node="edge-1")
        body = {"metadata": {"name": "now", "annotations": {REVOKED_AT: "1999"}}, "spec": {"node": "edge-1"}}
        made = await api.created(REVOCATIONS_PATH, body)
        at = made["metadata"]["annotations"][REVOKED_AT]
        assert at.startswith(made["metadata"]["creationTimestamp"][:-1] + "."), "the hub says when"
        await until(lambda: len(w.all.revoked), what="the revocation is known")
        late = await token(w.hub, node="edge-1")
        with pytest.raises(EnrollError) as refused:
            await enrol(w.hub, early, tmp_path / "thief")
        assert refused.value.code == "Revoked"
        await enrol(w.hub, late, tmp_path / "new")


async def test_a_revoked_token_admits_nobody_and_refuses_whom_it_admitted(pki: Pki, tmp_path: Path) -> None:
    async with world(pki) as w:
        text = await token(w.hub, pool="shop", count=3)
        facts = await enrol(w.hub, text, tmp_path / "one")
        inside = w.hub.fleet.node(facts["node"], client_context(str(tmp_path / "one")))
        await w.hub.connect(inside)
        other = await w.hub.enrol("edge-2")
        await w.hub.connect(other)
        await w.revoke(token=text.split(".")[1])
        await until(lambda: inside.goaway, what="GOAWAY")
        assert inside.goaway is not None and inside.goaway["code"] == "revoked" and not other.closed
        inside.connect()
        await until(lambda: inside.goaway, what="GOAWAY again")
        with pytest.raises(EnrollError) as refused:
            await enrol(w.hub, text, tmp_path / "two")
        assert refused.value.code == "TokenRevoked"


async def test_a_replica_that_cannot_tell_who_is_revoked_admits_nobody_and_keeps_whom_it_has(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "PROVE_S", 0.05)
    async with world(pki) as w:
        here, late = await w.hub.enrol("edge-1"), await w.hub.enrol("edge-2")
        await w.hub.connect(here)
        assert isinstance(w.hub.store, Store)
        w.hub.store.away = True
        w.clock.ahead += STALE_S + 1
        assert not w.all.fresh()
        late.connect()
        await until(lambda: late.goaway, what="GOAWAY")
        assert late.goaway is not None and late.goaway["code"] == "overload" and late.goaway["retry_s"] > 0
        assert not here.closed
        w.hub.store.away = False
        await until(w.all.fresh, what="the view is current again")
        await w.hub.connect(late)
        assert not here.closed


async def test_an_entry_ends_when_what_it_refuses_has_ended(pki: Pki) -> None:
    async with world(pki) as w:
        await w.revoke(node="edge-1")
        await w.revoke(serial="abcdef")
        w.all._wall = lambda: time.time() + KEEP_S + 2 * 86400
        await w.all.tidy()
        await until(lambda: len(w.all.revoked) == 1, what="the node's entry is gone")
        assert w.all.revoked.serial("abcdef"), "a user's certificate may last for a year"


async def test_a_revoked_user_certificate_is_nobodys(pki: Pki) -> None:
    async with world(pki) as w:
        w.all.check_user({"serialNumber": "0ABC"})
        await w.revoke(serial="abc")
        with pytest.raises(errors.Unauthorized):
            w.all.check_user({"serialNumber": "0ABC"})
        w.all.check_user({"serialNumber": "0ABD"})
        w.all.check_user(None)


@pytest.mark.parametrize("kind", ["node", "serial"])
async def test_the_owner_refuses_a_revoked_node_that_another_replica_relays(pki: Pki, kind: str) -> None:
    async with buses("local") as (made, _), replicas(pki, made) as (a, b):
        edge = await relayed(a, b)
        shown = a.gateway.peers["edge-1"].shown
        assert shown.serial and shown.issuer == pki.ca.name and shown.begins > 0
        value = "edge-1" if kind == "node" else shown.serial
        a.gateway.revoked.put("r", entry_of(kind, value, time.time()))
        edge.connect(b.address)
        await until(lambda: edge.goaway, what="GOAWAY over the relay")
        assert edge.welcome is None and edge.goaway is not None and edge.goaway["code"] == "revoked"
