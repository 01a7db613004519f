"""The hub's own certificate, renewed while it serves, and what the authority makes for the API's users."""

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hub import errors, jointokens
from hub.config import HubConfig, is_wildcard, names_of_this_host, split_address
from hub.federated import Federated
from hub.gateway import Gateway
from hub.registry import Object
from hub.trust import EdgeTrust, Trust
from security import join, tls
from security.ca import HUB_TTL_S, CAError
from security.identity import IdentityError
from security.spiffe.material import read_bundle

if TYPE_CHECKING:
    from hub.spire import SpireTrust

log = logging.getLogger(__name__)

RENEW_MIN_S = 60.0
"""Between two renewals by the clock, when the authority itself is about to end."""


class Certificates:
    """The hub's certificate: 24 hours, renewed at half life, and with what it trusts whenever the fleet's roots change;
    no connection is closed by that.

    `edge` is for the gateway, which takes another context for new connections. `api` cannot be changed once a listener
    has it, and no context forgets a root; so it stands in front, and hands every handshake to the newest one."""

    def __init__(self, trust: Trust, config: HubConfig, federated: Federated | None = None) -> None:
        self._trust = trust
        self._federated = federated
        self.of_edges: Trust | SpireTrust = trust
        """Whose root join tokens name."""
        self._replica, self._algorithm = config.replica, config.hub_key_algorithm
        self._dns, self._ips = _names(config)
        self._kept: list[ssl.SSLContext] = []
        self._changed = asyncio.Event()
        self.ends = 0.0
        """When the hub's certificate ends; unix seconds."""
        cert, key = self._issue()
        self.edge = self._edge_context(cert, key)
        self._behind = self.api = tls.api_server_context(cert, key, trust.bundle_pem)
        self.api.sni_callback = self._hand_over
        trust.listen(self._changed.set)

    @property
    def roots_pem(self) -> str:
        """What whoever connects to this hub verifies its certificate by, at any time of a rotation."""
        return self._trust.bundle_pem

    @property
    def root_pem(self) -> str:
        """The root that join tokens name."""
        return self.of_edges.root_pem

    def for_cluster(self, client_ca_pem: str | None) -> ssl.SSLContext:
        """For a port that a Kubernetes API server connects to; kept up to date. `client_ca_pem`: who may show a certificate
        there, None: nobody."""
        cert, key = self._issue()
        context = tls.kubelet_server_context(cert, key, client_ca_pem)
        self._kept.append(context)
        return context

    def changed(self) -> None:
        """What edges are verified by has changed."""
        self._changed.set()

    async def rotate(self, gateway: Gateway | None) -> None:
        """Renews for ever. Without `gateway` the edge port has its certificates from elsewhere."""
        while True:
            left_s = self.ends - HUB_TTL_S / 2 - time.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left_s, RENEW_MIN_S)):
                    await self._changed.wait()
            self._changed.clear()
            cert, key = self._issue()
            if gateway is not None:
                gateway.replace_tls(self._edge_context(cert, key))
            self._behind = tls.api_server_context(cert, key, self._trust.bundle_pem)
            for context in self._kept:
                tls.replace_identity(context, cert, key)
            log.info("renewed the hub's certificate")

    def _edge_context(self, cert: str, key: str) -> ssl.SSLContext:
        anchors = self._trust.bundle_pem
        if self._federated is not None:
            roots = read_bundle(anchors.encode(), "the fleet's roots")
            anchors = self._federated.anchors(self._trust.trust_domain, roots)
        return tls.edge_server_context(cert, key, anchors)

    def _hand_over(
        self, connection: "ssl.SSLSocket | ssl.SSLObject", name: str | None, context: ssl.SSLContext
    ) -> None:
        """Called in every handshake on `api`, with or without a name."""
        connection.context = self._behind

    def _issue(self) -> tuple[str, str]:
        now = time.time()
        cert, key = self._trust.issue_hub(self._replica, self._dns, self._ips, now, self._algorithm)
        self.ends = min(now + HUB_TTL_S, self._trust.authorities.serving.not_after)
        return cert, key


def _names(config: HubConfig) -> tuple[list[str], list[str]]:
    """(DNS names, IP addresses) under which clients reach this hub."""
    hosts = [*names_of_this_host(), "127.0.0.1", "::1", *config.tls_san]
    hosts += [split_address(config.api_address)[0], split_address(config.edge_address)[0]]
    advertised = [*config.advertise_edge.split(","), config.replica_edge, config.kubelet_advertise]
    hosts += [split_address(address)[0] for address in advertised if address not in ("", "none")]
    dns: list[str] = []
    ips: list[str] = []
    for host in hosts:
        if is_wildcard(host):
            continue
        try:
            ips.append(str(ipaddress.ip_address(host)))
        except ValueError:
            dns.append(host)
    return dns, ips


def user_issuer(trust: Trust) -> Callable[[str, list[str], float], tuple[str, str, str]]:
    """Certificates of users for the API: from name, groups and seconds to (certificate, key, roots)."""

    def issue(name: str, groups: list[str], ttl_s: float) -> tuple[str, str, str]:
        try:
            ca = trust.authorities.active
            certificate, key = ca.issue_user(name, groups, trust.trust_domain, time.time(), ttl_s)
        except (CAError, IdentityError) as wrong:
            raise errors.BadRequest(str(wrong)) from wrong
        return certificate, key, trust.bundle_pem

    return issue


def minter(trust: EdgeTrust) -> Callable[[Object], tuple[Object, str]]:
    """Join tokens for the API: from a JoinToken's spec to (record, text)."""

    def mint(spec: Object) -> tuple[Object, str]:
        try:
            request = jointokens.request(spec, trust.trust_domain, trust.root_sha256)
            return join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
        except join.TokenRequestError as wrong:
            raise errors.BadRequest(str(wrong)) from wrong

    return mint
