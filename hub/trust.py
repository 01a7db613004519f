"""What this replica issues by and whom it trusts at this moment, kept up to date with the stored set of authorities.

Invariant: a new set is taken whole, in one turn of the event loop, and whoever listens has taken it when `take` returns.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from hub.authority import AuthorityStore
from security.algorithms import P256
from security.authorities import Authorities
from security.identity import NodeId
from shards.kv import HistoryLost, StoreError

log = logging.getLogger(__name__)

RETRY_S = 1.0


class Issuer(Protocol):
    """What the gateway and joins ask of whoever issues: this module's Trust, or one `security.ca.CertificateAuthority`."""

    @property
    def roots(self) -> list[str]:
        """The trust bundle, PEM."""
        ...

    @property
    def trust_domain(self) -> str: ...

    def issue_node(
        self, csr_pem: str, node: NodeId, now: float, ttl_s: float, not_before: float | None = None
    ) -> str: ...


class EdgeTrust(Issuer, Protocol):
    """What brings nodes their bundles asks besides: Trust, or `hub.spire.SpireTrust`."""

    id: str
    """The bundle's short name."""

    @property
    def root_sha256(self) -> bytes:
        """Of the root that join tokens name."""
        ...

    @property
    def active_id(self) -> str: ...

    def issuer_of_name(self, name: str) -> str: ...

    def listen(self, changed: Callable[[], None]) -> None: ...


class Trust:
    """`Issuer` over a set of authorities, which changes."""

    def __init__(self, authorities: Authorities, revision: int = 0) -> None:
        self.authorities = authorities
        self.revision = revision
        self._listeners: list[Callable[[], None]] = []
        self._roots: list[str] = []
        self._by_name: dict[str, str] = {}
        self.id = ""
        """The bundle's short name."""
        self._index()

    def listen(self, changed: Callable[[], None]) -> None:
        """`changed` is called after every change."""
        self._listeners.append(changed)

    def take(self, authorities: Authorities, revision: int) -> None:
        """The stored set was this one at `revision`; what is older than what is known here changes nothing."""
        if revision < self.revision:
            return
        self.revision = revision
        before, self.authorities = self.authorities, authorities
        if authorities.roots == before.roots:
            return  # read again: contexts and kubeconfigs stay
        self._index()
        log.info("the fleet's roots are now: %s (were: %s)", _named(authorities), _named(before))
        for changed in self._listeners:
            changed()

    async def follow(self, store: AuthorityStore) -> None:
        """Takes every change, for ever. Raises what `AuthorityStore.read` does when the set cannot be used: made by a newer
        release, sealed under another key file."""
        while True:
            await store.changed(self.revision)
            try:
                self.take(*await store.read(time.time()))
            except HistoryLost:
                raise
            except StoreError as failure:
                log.info("the authorities cannot be read now: %s", failure)
                await asyncio.sleep(RETRY_S)

    def _index(self) -> None:
        held = self.authorities.held
        self._roots = [one.ca.root_pem for one in held]
        self._by_name = {one.ca.name: one.root.id[:16] for one in held}
        self.id = self.authorities.id

    @property
    def roots(self) -> list[str]:
        return list(self._roots)

    @property
    def bundle_pem(self) -> str:
        """The trust bundle as one PEM text."""
        return "".join(self._roots)

    @property
    def trust_domain(self) -> str:
        return self.authorities.trust_domain

    @property
    def root_pem(self) -> str:
        """The root that join tokens name, and that hubs' certificates come from."""
        return self.authorities.serving.root_pem

    @property
    def root_sha256(self) -> bytes:
        """SHA-256 of its DER; 32 bytes."""
        return self.authorities.serving.root_sha256

    @property
    def active_id(self) -> str:
        """The first 16 hex digits of the active root's id."""
        return self.authorities.active.root_sha256.hex()[:16]

    def issuer_of_name(self, name: str) -> str:
        """The first 16 hex digits of the id of the root of that name, which a verified certificate gives as its issuer; ""
        for one that is not in the set any more."""
        return self._by_name.get(name, "")

    def issue_hub(
        self,
        replica: str,
        dns_names: Sequence[str],
        ips: Sequence[str],
        now: float,
        algorithm: str = P256,
    ) -> tuple[str, str]:
        """As `CertificateAuthority.issue_hub`: by the oldest root, which nodes know that were away for long."""
        serving = self.authorities.serving
        return serving.issue_hub(replica, self.trust_domain, dns_names, ips, now, algorithm)

    def issue_node(
        self, csr_pem: str, node: NodeId, now: float, ttl_s: float, not_before: float | None = None
    ) -> str:
        """As `CertificateAuthority.issue_node`, by the active root."""
        return self.authorities.active.issue_node(csr_pem, node, now, ttl_s, not_before)

    def issue_user(self, name: str, groups: Sequence[str], now: float) -> tuple[str, str]:
        """As `CertificateAuthority.issue_user`, by the active root."""
        return self.authorities.active.issue_user(name, groups, self.trust_domain, now)


def _named(authorities: Authorities) -> str:
    return ", ".join(f"{root.id[:16]} {root.phase}" for root in authorities.roots)
