"""One hub process: puts the parts together, starts them in order, and stops them.

Order of a start: lock and store, CA, claims, caches, API and edge port; only then `endpoints.json` says where. A stop
goes the other way and takes at most 10 s.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

from edgelite import __version__
from hub import deletion, errors, kubeconfig
from hub.api.server import ApiServer
from hub.api.server import Config as ApiConfig
from hub.config import HubConfig, is_wildcard, join_address, names_of_this_host, reachable, split_address
from hub.controllers.run import Controllers
from hub.files import write_atomically
from hub.gateway import Gateway
from hub.informer import Informers
from hub.objects import RESOURCES, Keys
from hub.ownership import Ownership
from hub.peers import GatewayConfig
from hub.registry import Object, Registry
from hub.store.base import Store, StoreError
from hub.store.sqlite import SqliteStore
from observability.metrics import Metrics
from security import join, tls
from security.ca import HUB_TTL_S, CertificateAuthority
from security.identity import DEFAULT_TENANT

log = logging.getLogger(__name__)


class CannotListen(OSError):
    """An address that is taken, or that this machine does not have."""


ADMIN = "admin"
ADMIN_GROUP = "system:masters"
COMPACT_EVERY_S = 60.0


class Hub:
    """One replica with its own store: `async with Hub(config)` serves until the block ends."""

    def __init__(self, config: HubConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self._endpoints = os.path.join(config.data_dir, "endpoints.json")

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; raises what made a part fail."""
        config = self.config
        store = await SqliteStore.open(config.data_dir, slots=config.slots)
        try:
            _remove(self._endpoints)
            ca = self._open_ca()
            keys = Keys()
            ownership = await Ownership.claim_all(
                store, keys, "standalone", now=time.time(), random_id=lambda: secrets.token_hex(8)
            )
            registry = Registry(store, keys)
            await deletion.ensure_namespaces(registry)
            await self._serve(store, registry, ownership, ca, stop)
        finally:
            _remove(self._endpoints)
            await store.close()

    async def _serve(
        self,
        store: Store,
        registry: Registry,
        ownership: Ownership,
        ca: CertificateAuthority,
        stop: asyncio.Event,
    ) -> None:
        informers = Informers(store, registry.keys, RESOURCES)
        certificates = Certificates(ca, self.config)
        async with _background() as background:
            background.create_task(informers.run(), name="informers")
            await informers.synced()
            gateway = Gateway(
                registry, informers, ownership, ca, certificates.edge, self._gateway_config(), self.metrics
            )
            api = ApiServer(
                registry,
                informers,
                certificates.api,
                ApiConfig(split_address(self.config.api_address), __version__),
                self.metrics,
                gateway=gateway,
                mint=_minter(ca),
            )
            controllers = Controllers(registry, informers)
            edge_address = await _listen(gateway.start(), "edge_address", self.config.edge_address)
            try:
                api_address = await _listen(api.start(), "api_address", self.config.api_address)
                self._announce(ca, api_address, edge_address)
                background.create_task(controllers.run(), name="controllers")
                background.create_task(certificates.rotate(gateway), name="certificates")
                background.create_task(_compact(store, self.config.history_s), name="compaction")
                await _first(stop.wait(), gateway.wait(), background.failed())
            finally:
                log.info("stopping")
                _remove(self._endpoints)
                await asyncio.gather(api.stop(grace_s=3.0), gateway.stop())

    def _open_ca(self) -> CertificateAuthority:
        directory = os.path.join(self.config.data_dir, "ca")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        ca = CertificateAuthority.open(directory, self.config.trust_domain)
        warning = ca.ending(time.time())
        if warning:
            log.warning(warning)
        return ca

    def _gateway_config(self) -> GatewayConfig:
        host, port = split_address(self.config.edge_address)
        return GatewayConfig(
            host=host,
            port=port,
            advertise=self.config.advertise_edge or None,
            heartbeat_s=self.config.heartbeat_s,
            node_ttl_s=self.config.node_certificate_s,
            clone_retry_s=self.config.clone_backoff_s,
            clone_quiet_s=5 * self.config.clone_backoff_s,
        )

    def _announce(self, ca: CertificateAuthority, api: tuple[str, int], edge: tuple[str, int]) -> None:
        server = "https://" + join_address(reachable(api[0]), api[1])
        cert, key = ca.issue_user(ADMIN, [ADMIN_GROUP], ca.trust_domain, time.time())
        kubeconfig.write(
            os.path.join(self.config.data_dir, "kubeconfig"),
            kubeconfig.Credentials(server, ca.root_pem, cert, key),
        )
        edge_text = self.config.advertise_edge or join_address(reachable(edge[0]), edge[1])
        write_atomically(self._endpoints, orjson.dumps({"api": server, "edge": edge_text}), 0o644)
        log.info("serving the API at %s and edges at %s", server, join_address(*edge))


class Certificates:
    """The hub's certificate: 24 hours, renewed at half life without closing a connection."""

    def __init__(self, ca: CertificateAuthority, config: HubConfig) -> None:
        self._ca = ca
        self._dns, self._ips = _names(config)
        cert, key = self._issue()
        self.edge = tls.edge_server_context(cert, key, ca.root_pem)
        self.api: ssl.SSLContext = tls.api_server_context(cert, key, ca.root_pem)

    async def rotate(self, gateway: Gateway) -> None:
        """Renews for ever."""
        while True:
            await asyncio.sleep(HUB_TTL_S / 2)
            cert, key = self._issue()
            gateway.replace_tls(tls.edge_server_context(cert, key, self._ca.root_pem))
            tls.replace_identity(self.api, cert, key)
            log.info("renewed the hub's certificate")

    def _issue(self) -> tuple[str, str]:
        return self._ca.issue_hub("standalone", self._ca.trust_domain, self._dns, self._ips, time.time())


def _names(config: HubConfig) -> tuple[list[str], list[str]]:
    """(DNS names, IP addresses) under which clients reach this hub."""
    hosts = [*names_of_this_host(), "127.0.0.1", "::1", *config.tls_san]
    hosts += [split_address(config.api_address)[0], split_address(config.edge_address)[0]]
    if config.advertise_edge:
        hosts.append(split_address(config.advertise_edge)[0])
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


def _minter(ca: CertificateAuthority) -> Callable[[Object], tuple[Object, str]]:
    """Join tokens for the API: from a JoinToken's spec to (record, text)."""

    def mint(spec: Object) -> tuple[Object, str]:
        request = join.TokenRequest(
            ca.trust_domain,
            ca.root_sha256,
            node=spec.get("node"),
            pool=spec.get("pool"),
            count=spec.get("count", 1),
            site=spec.get("site"),
            tenant=spec.get("tenant") or DEFAULT_TENANT,
            ttl_s=spec.get("ttlSeconds"),
        )
        try:
            return join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
        except join.TokenRequestError as wrong:
            raise errors.BadRequest(str(wrong)) from wrong

    return mint


async def _compact(store: Store, history_s: float) -> None:
    """Forgets history older than `history_s`."""
    past: deque[tuple[float, int]] = deque()
    while True:
        past.append((time.monotonic(), await store.revision()))
        reached = 0
        while past and past[0][0] <= time.monotonic() - history_s:
            reached = past.popleft()[1]
        if reached:
            try:
                await store.compact(reached)
            except StoreError as failure:
                log.warning("compaction is put off: %s", failure)
        await asyncio.sleep(COMPACT_EVERY_S)


async def _listen(starting: Awaitable[tuple[str, int]], setting: str, address: str) -> tuple[str, int]:
    """The address that a part listens at. Raises CannotListen."""
    try:
        return await starting
    except OSError as failure:
        number = failure.errno or 0
        why = os.strerror(number) if number > 0 else failure.strerror or str(failure)
        raise CannotListen(
            f"cannot listen at {address}: {why}; stop what listens there, or set {setting} to another address "
            "(port 0 picks a free one)"
        ) from failure


class _Background:
    """Tasks that run until the hub stops; `failed` raises what ended one of them early."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []
        self._broken = asyncio.Event()

    def create_task(self, job: Any, name: str) -> None:
        task = asyncio.create_task(job, name=name)
        task.add_done_callback(lambda _: self._broken.set())
        self._tasks.append(task)

    async def failed(self) -> None:
        await self._broken.wait()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
                raise RuntimeError(f"{task.get_name()} ended early")

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _background() -> AsyncIterator[_Background]:
    group = _Background()
    try:
        yield group
    finally:
        await group.cancel()


async def _first(*jobs: Any) -> None:
    """Waits for the first of `jobs` to end, cancels the others, raises what it raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
