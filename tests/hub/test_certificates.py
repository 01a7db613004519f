"""The API's listener while the fleet's root is rotated: it keeps its context, and new connections meet the newest roots."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hub.certificates import Certificates
from hub.config import HubConfig
from hub.trust import Trust
from security import tls
from security.authorities import Authorities
from security.ca import CertificateAuthority
from security.rotation import Activate, Remove
from tests.hub.hub_fixture import until

DOMAIN = "cloudhub.local"


class Gateway:
    """Notes the context for new connections of nodes."""

    def __init__(self) -> None:
        self.contexts: list[ssl.SSLContext] = []

    def replace_tls(self, context: ssl.SSLContext) -> None:
        self.contexts.append(context)


class Api:
    """A listener on the API's context, which says who came."""

    def __init__(self, trust: Trust, certificates: Certificates) -> None:
        self.trust, self.certificates = trust, certificates
        self.gateway = Gateway()
        self.port = 0

    async def change(self, authorities: Authorities) -> None:
        seen = len(self.gateway.contexts)
        self.trust.take(authorities, self.trust.revision + 1)
        await until(lambda: len(self.gateway.contexts) > seen, what="the new contexts")

    async def open(
        self, roots: str, user: tuple[str, str], name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = tls.client_context(roots, *user)
        if name is None:  # as for an address: no name is sent
            context.check_hostname = False
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name)

    async def ask(self, roots: str, user: tuple[str, str], name: str | None = "localhost") -> str:
        """What the listener says to who shows this certificate. Raises ssl.SSLError, ConnectionError."""
        reader, writer = await self.open(roots, user, name)
        try:
            writer.write(b"?\n")
            said = (await reader.readline()).decode().strip()
            if not said:
                raise ConnectionError("closed")
            return said
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def api(tmp_path: Path, authorities: Authorities) -> AsyncIterator[Api]:
    trust = Trust(authorities)
    made = Api(trust, Certificates(trust, HubConfig(str(tmp_path))))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            peer = writer.get_extra_info("peercert") or {}
            issuer = dict(pair for rdn in peer.get("issuer", ()) for pair in rdn)
            writer.write(issuer.get("commonName", "nobody").encode() + b"\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=made.certificates.api)
    made.port = server.sockets[0].getsockname()[1]
    gateway: Any = made.gateway
    renewing = asyncio.create_task(made.certificates.rotate(gateway))
    try:
        yield made
    finally:
        renewing.cancel()
        server.close()
        await asyncio.gather(renewing, server.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_new_connections_meet_the_newest_roots_and_old_ones_stay(tmp_path: Path, name: str) -> None:
    now = time.time()
    start = Authorities.alone(CertificateAuthority.create(DOMAIN, now))
    old = start.active
    prepared = start.begin(now)
    new = prepared.held[1].ca
    users = {ca.name: ca.issue_user("u", [], DOMAIN, now) for ca in (old, new)}
    both = old.root_pem + new.root_pem
    async with api(tmp_path, start) as a:
        assert await a.ask(old.root_pem, users[old.name], name) == old.name
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await a.ask(old.root_pem, users[new.name], name)
        reader, writer = await a.open(old.root_pem, users[old.name], name)

        await a.change(prepared)
        assert await a.ask(old.root_pem, users[new.name], name) == new.name, "trusted before it signs"
        active = prepared.after(Activate(prepared.held[1].root.id), now, 1000.0)
        await a.change(active)
        assert await a.ask(old.root_pem, users[old.name], name) == old.name, "the oldest root signs the hub's"

        await a.change(active.after(Remove(active.held[0].root.id), now, 1000.0))
        assert await a.ask(new.root_pem, users[new.name], name) == new.name
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await a.ask(both, users[old.name], name)
        with pytest.raises(ssl.SSLCertVerificationError):
            await a.ask(old.root_pem, users[new.name], name)
        writer.write(b"?\n")
        assert (await reader.readline()).decode().strip() == old.name, "a live connection stays"
        writer.close()


async def test_a_set_that_is_only_read_again_changes_nothing(tmp_path: Path) -> None:
    start = Authorities.alone(CertificateAuthority.create(DOMAIN, time.time()))
    trust = Trust(start, 5)
    heard: list[int] = []
    trust.listen(lambda: heard.append(1))
    trust.take(Authorities(start.held), 6)
    trust.take(start.begin(time.time()), 4)
    assert not heard and trust.revision == 6 and len(trust.roots) == 1
    trust.take(start.begin(time.time()), 7)
    assert heard == [1] and len(trust.roots) == 2
