"""SPIRE as the authority of the edge channel: this replica's SVID and bundles from a Workload API, and the intermediate by
which it signs nodes.

`SpireTrust` takes the place of `hub.trust.Trust` where edges are concerned. The API and its users keep the embedded
authority: SVIDs carry no IP addresses, and a kubeconfig outlives them.

What changes, and what follows:
- a new SVID or bundle: new connections get a new TLS context; those that stand go on.
- the SVID leads to another root than the intermediate (SPIRE activated another authority, or tainted this one), or the
  intermediate's root has left the bundle: another intermediate is asked for at once, and nodes are asked to renew.
- half of the intermediate's life is over: likewise.
While SPIRE is away everything stays in use until it ends. Nothing is stored: each replica asks for its own at its start.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

from cryptography import x509

from hub.background import Background
from hub.config import HubConfig, split_address
from hub.federated import Federated
from security import tls
from security.authorities import bundle_id
from security.identity import HubId, NodeId
from security.spiffe import downstream
from security.spiffe.downstream import Intermediate
from security.spiffe.material import Material, SpiffeError, checked, load, not_after, pem_of, root_of, sha256
from security.spiffe.source import WorkloadSource

log = logging.getLogger(__name__)

START_S: Final = 60.0
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0


async def open_spire(config: HubConfig, federated: Federated, tasks: Background) -> "SpireTrust":
    """What the settings say, ready to serve. Raises SpiffeError when SPIRE gives this replica no identity or authority."""
    wanted = HubId(config.trust_domain, config.replica)
    source = WorkloadSource(config.spiffe_socket, wanted.uri())
    tasks.create_task(source.run(), name="Workload API")
    server = split_address(config.spire_server, "spire_server")
    made = SpireTrust(source, server, wanted, federated, config.node_certificate_s)
    await made.open()
    return made


class SpireTrust:
    """See the module. Made by `open`."""

    def __init__(
        self,
        source: WorkloadSource,
        server: tuple[str, int],
        identity: HubId,
        federated: Federated,
        node_ttl_s: float,
    ) -> None:
        """`server`: the SPIRE server's address; `node_ttl_s`: of node certificates,
        which the intermediate shall outlive."""
        self.source = source
        self.trust_domain, self._replica = identity.trust_domain, identity.replica
        self._server = server
        self._federated = federated
        self._node_ttl_s = node_ttl_s
        self._listeners: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self.material: Material
        self.intermediate: Intermediate
        self._roots: list[str] = []
        self._by_name: dict[str, str] = {}
        self._telling = False
        """Whether names of issuers tell roots apart: not below an authority that SPIRE has its own from."""
        self.id = ""
        """The bundle's short name, as agents say it."""
        self.problem = ""
        """Why the last attempt at an intermediate failed; "" where it did not."""

    async def open(self) -> None:
        """Waits for the first SVID and intermediate; `source.run` runs. Raises SpiffeError."""
        self._take(checked(await self.source.first(START_S), self.trust_domain, self._replica))
        await self._renew()
        self.source.subscribe(self._received)
        self._log()

    # -- what the gateway and joins ask -----------------------------------------------------------------------------

    @property
    def roots(self) -> list[str]:
        """The trust bundle, PEM."""
        return list(self._roots)

    @property
    def root_pem(self) -> str:
        """The root that join tokens name: the one by which whoever joins can verify this hub."""
        return pem_of([self._serving])

    @property
    def root_sha256(self) -> bytes:
        return sha256(self._serving)

    @property
    def active_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the root that nodes' certificates lead to."""
        return sha256(self.intermediate.root).hex()[:16]

    def issuer_of_name(self, name: str) -> str:
        """The same of the root under whose intermediate a certificate was issued; `name`: what `hub.peers.Shown` keeps of
        its issuer. "" for one that is not in the bundle, or has no name of its own."""
        if not self._telling:
            return self.active_id
        return self._by_name.get(name, "")

    def listen(self, changed: Callable[[], None]) -> None:
        """`changed` is called after every change of the bundle or the intermediate."""
        self._listeners.append(changed)

    def issue_node(
        self, csr_pem: str, node: NodeId, now: float, ttl_s: float, not_before: float | None = None
    ) -> str:
        """Chain PEM for a node. Raises BadRequest, CAError."""
        return self.intermediate.issue_node(csr_pem, node, now, ttl_s, not_before)

    def edge_context(self) -> ssl.SSLContext:
        """For the edge port, as of now. Raises SpiffeError, TLSError."""
        svid = self.material.svid
        anchors = self._federated.anchors(self.trust_domain, self.material.own_bundle, self.material.bundles)
        return tls.edge_server_context(svid.chain_pem(), svid.key_pem, anchors)

    def changed(self) -> None:
        """By what edges are verified has changed."""
        self._wake.set()

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self, replace: Callable[[ssl.SSLContext], None]) -> None:
        """For ever: `replace` is given every new context."""
        pause_s = RETRY_MIN_S
        while True:
            wait_s = pause_s
            if not self.problem:
                pause_s = RETRY_MIN_S
                wait_s = max(downstream.renewal_time(self.intermediate) - time.time(), 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            if self._wake.is_set():
                self._wake.clear()
                replace(self.edge_context())
                self._tell()
            if self._stale():
                try:
                    await self._renew()
                    self.problem = ""
                    self._log()
                    self._tell()
                except SpiffeError as failure:
                    self.problem = str(failure)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
                    log.warning("no new authority from SPIRE, trying again in %.0f s: %s", pause_s, failure)

    def _stale(self) -> bool:
        now, held = time.time(), self.intermediate
        return (
            now >= downstream.renewal_time(held)
            or held.root != self._serving
            or held.root not in self.material.own_bundle
        )

    def _received(self, material: Material) -> None:
        """The source has something new. What cannot be used leaves everything as it was."""
        try:
            self._take(checked(material, self.trust_domain, self._replica))
        except SpiffeError as wrong:
            log.error("what the Workload API says now cannot be used, the last state stays: %s", wrong)
            return
        log.info(
            "a new SVID, until %s; the bundle has %d roots",
            downstream.shown_time(not_after(material.svid.chain[0])),
            len(material.own_bundle),
        )
        self._wake.set()

    def _take(self, material: Material) -> None:
        self.material = material
        self._serving = root_of(material.svid.chain, material.own_bundle)
        roots = {der: sha256(der).hex() for der in material.own_bundle}
        self._roots = [pem_of([der]) for der in roots]
        self._by_name = {name_of_issuer(load(der)): known[:16] for der, known in roots.items()}
        self._by_name.pop("", None)
        self.id = bundle_id(list(roots.values()))

    async def _renew(self) -> None:
        # Twice what nodes get, so that a certificate made just before its renewal is not cut short.
        made = await downstream.fetch(self._server, self.material, 2 * self._node_ttl_s)
        self.intermediate = made
        self._telling = self._by_name.get(name_of_issuer(made.certificate)) == self.active_id

    def _tell(self) -> None:
        for changed in self._listeners:
            changed()

    def _log(self) -> None:
        text = "authority below SPIRE's, until %s; nodes' certificates end with it"
        log.info(text, downstream.shown_time(self.intermediate.not_after))


def name_of_issuer(authority: x509.Certificate) -> str:
    """What certificates tell of their root by their issuer's name: SPIRE gives each root a serial number in its subject, and
    authorities below it the same."""
    found = authority.subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)
    return str(found[0].value) if found else ""
