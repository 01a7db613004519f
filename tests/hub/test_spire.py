"""The hub as a downstream authority of a real SPIRE: several replicas, federation, and what goes wrong."""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from spiffe import X509Svid

from edgelite import p256
from hub.federated import Federated
from hub.federation import Federation, parse_map
from hub.peers import shown_in
from hub.spire import SpireTrust
from security import tls
from security.identity import HubId, NodeId, from_peercert
from security.spiffe import downstream
from security.spiffe.material import Material, SpiffeError, pem_of
from security.spiffe.source import WorkloadSource
from tests.security.spiffe.authority import Authority, root
from tests.servers.spire import Spire

TD, FOREIGN = "example.org", "partner.example"
NODE = NodeId(TD, "default", "n1", "n1")
MAP = f"{FOREIGN}=node:till-*"


@pytest.fixture(scope="module")
def partner() -> Authority:
    return root(FOREIGN)


@pytest.fixture(scope="module")
def spire(partner: Authority) -> Iterator[Spire]:
    with Spire(TD) as made:
        made.set_bundle(FOREIGN, pem_of([partner.der]))
        uid = os.getuid()
        for name in ("a", "b"):
            made.entry(
                f"spiffe://{TD}/hub/{name}", uid=uid, dns="hub." + TD, downstream=True, federates_with=FOREIGN
            )
        made.entry(f"spiffe://{TD}/hub/nameless", uid=uid, downstream=True)
        made.entry(f"spiffe://{TD}/hub/below-nobody", uid=uid, dns="hub." + TD)
        made.entry(f"spiffe://{TD}/app/x", uid=uid)
        yield made


@contextlib.asynccontextmanager
async def material(spire: Spire, path: str) -> AsyncIterator[WorkloadSource]:
    """A source that has the SVID of `path`: the agent may know its entry a little later than others."""
    wanted = f"spiffe://{TD}/{path}"
    source = WorkloadSource(spire.agent_socket, wanted)
    running = asyncio.create_task(source.run())
    try:
        async with asyncio.timeout(60):
            while source.current is None or source.current.svid.spiffe_id != wanted:
                await asyncio.sleep(0.02)
        yield source
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def address(spire: Spire) -> tuple[str, int]:
    return "127.0.0.1", spire.port


@contextlib.asynccontextmanager
async def replica(spire: Spire, name: str, mapped: tuple[str, ...] = ()) -> AsyncIterator[SpireTrust]:
    async with material(spire, f"hub/{name}") as source:
        federated = Federated(Federation(TD, parse_map(mapped, TD)), {})
        trust = SpireTrust(source, address(spire), HubId(TD, name), federated, 600.0)
        await trust.open()
        yield trust


def issued(trust: SpireTrust, node: NodeId = NODE) -> tuple[str, str]:
    """(chain PEM, key PEM) of a node."""
    private = p256.generate(os.urandom(48))
    return trust.issue_node(p256.request_pem(private, "x"), node, time.time(), 600.0), p256.private_pem(
        private
    )


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """The server's end after a handshake, over memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname="hub." + TD),
    ]
    left = list(ends)
    while left:
        for end in list(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                left.remove(end)
    return ends[0]


async def test_every_replica_verifies_nodes_that_another_has_signed(spire: Spire) -> None:
    async with replica(spire, "a") as one, replica(spire, "b") as other:
        assert one.intermediate.certificate != other.intermediate.certificate
        assert one.active_id == other.active_id and one.id == other.id
        chain, key = issued(one)
        for server in (one, other):
            client = tls.client_context("".join(server.roots), chain, key)
            peer = handshake(server.edge_context(), client).getpeercert()
            assert from_peercert(peer) == NODE
        # As any SPIFFE library reads it.
        svid = X509Svid.parse(chain.encode(), key.encode())
        assert str(svid.spiffe_id) == NODE.uri() and len(svid.cert_chain) == 2
        # The name of its issuer tells the root, whichever replica has signed.
        peer = handshake(
            other.edge_context(), tls.client_context("".join(other.roots), chain, key)
        ).getpeercert()
        assert peer is not None
        assert other.issuer_of_name(shown_in(peer).issuer) == other.active_id


async def test_nodes_of_a_federated_trust_domain_are_verified_by_the_bundle_that_spire_gives(
    spire: Spire, partner: Authority
) -> None:
    async with replica(spire, "a", (MAP,)) as hub:
        roots = "".join(hub.roots)
        theirs = f"spiffe://{FOREIGN}/node/default/till-1/till-1"
        peer = handshake(hub.edge_context(), tls.client_context(roots, *partner.leaf(theirs))).getpeercert()
        assert from_peercert(peer).uri() == theirs
        chain, key = issued(hub)
        assert (
            from_peercert(handshake(hub.edge_context(), tls.client_context(roots, chain, key)).getpeercert())
            == NODE
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(hub.edge_context(), tls.client_context(roots, *partner.leaf(NODE.uri())))
    async with replica(spire, "a") as hub:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(hub.edge_context(), tls.client_context(roots, *partner.leaf(theirs)))


@pytest.mark.parametrize(
    ("name", "told"),
    [("nameless", "agents check for hub.example.org; make its entry so: .* -dns hub.example.org"),
     ("below-nobody", "PermissionDenied|PERMISSION_DENIED.* the flag -downstream")],
)  # fmt: skip
async def test_what_an_entry_lacks_is_said_with_its_remedy(spire: Spire, name: str, told: str) -> None:
    with pytest.raises(SpiffeError, match=told):
        async with replica(spire, name):
            pass


async def test_no_other_workload_of_the_trust_domain_can_pose_as_the_server(spire: Spire) -> None:
    async with material(spire, "app/x") as other, material(spire, "hub/a") as own:
        assert isinstance(other.current, Material) and isinstance(own.current, Material)
        svid = other.current.svid
        context = tls.edge_server_context(svid.chain_pem(), svid.key_pem, pem_of(own.current.own_bundle))
        context.set_alpn_protocols(["h2"])
        heard = []

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read())
            writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(
                SpiffeError, match=f"names spiffe://{TD}/app/x, not spiffe://{TD}/spire/server"
            ):
                await downstream.fetch(("127.0.0.1", port), own.current, 60.0)
        assert not b"".join(heard), "something was said before the name was checked"


async def test_a_server_that_is_away_is_named(spire: Spire) -> None:
    async with material(spire, "hub/a") as own:
        assert own.current is not None
        with pytest.raises(SpiffeError, match=r"the SPIRE server at 127\.0\.0\.1:1 cannot be reached"):
            await downstream.fetch(("127.0.0.1", 1), own.current, 60.0)
