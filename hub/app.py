"""One hub process: puts the parts together, starts them in order, and stops them.

Order of a start: directory and store, authority, edge port and API, then membership: slots and roles are claimed and
loaded; only then `endpoints.json` says where. A stop goes the other way: what this replica owns is handed over while
it still serves, then all connections are told to go elsewhere.
"""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

import orjson

from edgelite import __version__
from hub import deletion, errors, instruments, kubeconfig
from hub.access.auditlog import AuditFile, AuditLog, read_policy
from hub.access.auditpolicy import Policy as AuditPolicy
from hub.access.authorizer import Authorizer, default_policy
from hub.access.bootstrap import ensure_roles
from hub.access.keydocuments import KeyDocuments
from hub.access.keys import Keys as TokenKeys
from hub.access.keys import open_alone, open_shared
from hub.access.podtokens import PodTokens
from hub.access.roles import Roles as AccessRoles
from hub.access.tokens import Tokens
from hub.api.auditing import Auditor
from hub.api.auth import Authenticator
from hub.api.documents import Document
from hub.api.server import ApiServer
from hub.api.server import Config as ApiConfig
from hub.authority import AuthorityStore, OwnAuthority, SharedAuthority
from hub.background import Background, background, first, leaf
from hub.certificates import Certificates, minter, user_issuer
from hub.config import ConfigError, HubConfig, is_wildcard, join_address, reachable, split_address
from hub.federated import Federated, federation
from hub.files import write_atomically
from hub.fleet.detail import Details
from hub.fleet.follower import Fleet
from hub.fleet.pages import Pages
from hub.fleet.telling import telling
from hub.gateway import Gateway
from hub.keyproviders import KeySettings, key_providers
from hub.listening import listen
from hub.lobby import LobbyLimits
from hub.metricsport import MetricsPort
from hub.objects import Keys
from hub.peers import GatewayConfig
from hub.policies.watching import Policies
from hub.registry import Registry
from hub.relaying import Relay
from hub.revocations import Revocations
from hub.rotation import Rotation, RotationConfig
from hub.source import Attached, OwnSource, Source
from hub.stalls import Stalls
from hub.status import Status
from hub.store.directory import lock_directory
from hub.store.sealing import SealedStore
from hub.telemetry import Telemetry
from hub.transport import TransportLimits
from hub.trust import Trust
from hub.units import Units
from hub.workloads import provided
from observability.metrics import Metrics
from security.join import TTL_S_MAX
from security.revocation import Revoked
from security.sealed import read_key_file
from shards.kv import HistoryLost, Store, StoreError
from shards.member import Member, MemberOptions, MemberTaken, deadline_checked
from shards.ownership import CONTROLLERS, MemberRecord, Ownership

if TYPE_CHECKING:
    from hub.roles import Roles as Controllers
    from hub.spire import SpireTrust

log = logging.getLogger(__name__)

ADMIN = "admin"
ADMIN_GROUP = "system:masters"
COMPACT_EVERY_S = 60.0
FIRST_WRITES_S = 15.0
"""For the first writes of a start, while a store may still be without a leader."""
HANDOVER_S = 20.0


class Hub:
    """One replica: `await Hub(config).serve(stop)`."""

    def __init__(self, config: HubConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.telemetry = Telemetry(config, self.metrics)
        instruments.publish_process(self.metrics, __version__)
        self._endpoints = os.path.join(config.data_dir, "endpoints.json")

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; raises what made a part fail."""
        keys = Keys()
        async with self.telemetry.exporting(__version__), self._store(keys) as store, self._metrics_port():
            _remove(self._endpoints)
            authority, trust = await self._authority(store, keys)
            registry = Registry(store, keys)
            registry.took = self.telemetry.took
            try:
                async with self._source(registry) as source:
                    await self._serve(registry, source, authority, trust, stop)
            except BaseExceptionGroup as group:
                told = leaf(group, HistoryLost) or leaf(group, MemberTaken)
                if told is None:
                    raise
                raise told from None  # it says what to do, and tells more than the tasks that met it
            finally:
                _remove(self._endpoints)

    @contextlib.asynccontextmanager
    async def _store(self, keys: Keys) -> AsyncIterator[Store]:
        config = self.config
        alone = "" if config.etcd else config.data_dir
        where = KeySettings(alone, config.key_file, config.kms_socket)
        if config.etcd:
            read_key_file(
                config.key_file
            )  # says what a replica without it lacks; of the store nothing is known yet
        async with self._inner_store() as inner, key_providers(where) as providers:
            yield await SealedStore.open(inner, keys, providers)

    @contextlib.asynccontextmanager
    async def _inner_store(self) -> AsyncIterator[Store]:
        config = self.config
        if not config.etcd:
            # Of no use to replicas, as grpc and nats, 14 MB, are not to a lone hub.
            from hub.store.sqlite import SqliteStore

            alone = await SqliteStore.open(config.data_dir, slots=config.slots)
            try:
                yield alone
            finally:
                await alone.close()
            return
        from hub.store.etcd import EtcdStore
        from shards.etcd.client import read_tls

        lock = lock_directory(config.data_dir)
        try:
            tls = read_tls(config.etcd_ca, config.etcd_cert, config.etcd_key)
            shared = await EtcdStore.open(config.etcd, slots=config.slots, tls=tls)
            try:
                yield shared
            finally:
                await shared.close()
        finally:
            os.close(lock)

    @contextlib.asynccontextmanager
    async def _metrics_port(self) -> AsyncIterator[None]:
        address = self.config.metrics_address
        if not address:
            yield
            return
        port = MetricsPort(self.metrics, split_address(address))
        await listen(port.start(), "metrics_address", address)
        try:
            yield
        finally:
            await port.stop()

    async def _authority(self, store: Store, keys: Keys) -> tuple[AuthorityStore, Trust]:
        config, now = self.config, time.time()
        authority: AuthorityStore
        source = config.ca_key_source
        if config.etcd:
            secret = partial(read_key_file, config.key_file)
            authority = SharedAuthority(store, keys.root, secret, config.trust_domain, source)
        else:
            directory = os.path.join(config.data_dir, "ca")
            os.makedirs(directory, mode=0o700, exist_ok=True)
            authority = OwnAuthority(directory, config.trust_domain, source)
        trust = Trust(*await authority.read(now))
        active = trust.authorities.active
        if config.ca_key and not active.key_reference:
            log.warning(
                "the authority's key is kept by the hub and not in a token: `cloudhub ca rotate` moves to it"
            )
        warning = active.ending(now)
        if warning:
            log.warning("%s; `cloudhub ca rotate` makes a new one", warning)
        return authority, trust

    async def _token_keys(self, store: Store, keys: Keys) -> TokenKeys:
        """Beside the authority, in the store or in the data directory."""
        if self.config.etcd:
            return await open_shared(store, keys.root, lambda: read_key_file(self.config.key_file))
        return await open_alone(os.path.join(self.config.data_dir, "ca"))

    @contextlib.asynccontextmanager
    async def _source(self, registry: Registry) -> AsyncIterator[Source]:
        if self.config.source == "own":
            await _ensure(registry)
            from hub.roles import fleet_kin  # for the reason given at `_controllers`

            yield OwnSource(registry, fleet_kin())
            return
        from hub.kubernetes.source import open_source  # its parts are no use to others

        async with open_source(self.config, registry.store, registry.keys, self.metrics) as source:
            yield source

    async def _serve(
        self,
        registry: Registry,
        source: Source,
        authority: AuthorityStore,
        trust: Trust,
        stop: asyncio.Event,
    ) -> None:
        config, store = self.config, registry.store
        federated = federation(config)
        certificates = Certificates(trust, config, federated)
        units = Units()
        # Of objects that live elsewhere the API server there judges every write, also those that are made for nodes.
        policies = None if source.elsewhere else Policies(store, registry.keys)
        member = self._member(store, registry, units)
        async with background() as tasks, provided(config, trust, federated):
            if policies is not None:
                tasks.create_task(policies.run(), name="policies")
                self.metrics.figures("cloudhub.policies", policies.figures)
                await first(policies.synced(), stop.wait(), tasks.failed())
            spire = await self._spire(federated, tasks)
            of_edges: SpireTrust | Trust = spire or trust
            certificates.of_edges = of_edges
            gateway = Gateway(
                source.objects,
                source.share,
                member,
                of_edges,
                spire.edge_context() if spire else certificates.edge,
                self._gateway_config(),
                self.metrics,
                history=source.history,
                policies=policies,
                federation=federated.federation,
            )
            revocations = Revocations(registry, Revoked(), self._revocations_s(), member)
            revocations.attach(gateway)
            roles = _controllers(registry, member, source) if isinstance(source, OwnSource) else None
            relay = self._relay(gateway, store, member, tasks)
            units.attach(gateway, roles, relay)
            instruments.publish(
                instruments.Parts(gateway, member, trust, certificates, revocations, roles, relay),
                self.metrics,
            )
            tasks.create_task(self._stalls(), name="stalls")
            self.telemetry.attach(gateway)
            tasks.create_task(self.telemetry.run(), name="telemetry")
            started = asyncio.Event()
            status = Status(store, registry.keys.root, member, gateway, relay, trust, certificates)
            rotation = Rotation(authority, trust, member, status, source, self._rotation_config())
            authorizer, tokens, key_documents = await self._access(registry, source, trust, tasks)
            if tokens is not None:
                gateway.tokens.issue = PodTokens(tokens, time.time)
            audit = self._audit()
            auditor = audit and Auditor(*audit)
            if policies is not None and auditor is not None:
                policies.audit = auditor.judged
            authorizer = authorizer or Authorizer(default_policy())
            fleet = Fleet(source.fleet, store.identity.slots, status.document)
            api = ApiServer(
                registry,
                certificates.api,
                ApiConfig(split_address(config.api_address), __version__, source.elsewhere),
                self.metrics,
                gateway=relay or gateway,
                mint=minter(of_edges),
                issue_user=user_issuer(trust),
                ready={"start": lambda: None if started.is_set() else "slots are being claimed and loaded"},
                status=status.document,
                documents=key_documents | self._documents(spire, rotation, status, source),
                policies=policies,
                authorizer=authorizer,
                tokens=tokens,
                identify=Authenticator(tokens, revocations.check_user, trust.trust_domain).user,
                auditor=auditor,
                tracer=self.telemetry.tracer,
                fleet=_fleet_page(fleet, registry, source, gateway, relay, authorizer),
            )
            tasks.create_task(fleet.run(), name="fleet page")
            tasks.create_task(source.share.run(), name="share")
            tasks.create_task(revocations.run(), name="revocations")
            await first(revocations.known(), stop.wait(), tasks.failed())
            edge = await listen(gateway.start(), "edge_address", config.edge_address)
            running: asyncio.Task[None] | None = None
            try:
                address = await listen(api.start(), "api_address", config.api_address)
                own_edge = self._own_edge(edge)
                gateway.advertise(own_edge)
                member.advertise(own_edge, join_address(reachable(address[0]), address[1]))
                await source.attach(Attached(gateway, member, relay, certificates, tasks))
                if relay is not None:
                    relay.far.documents = telling(gateway, relay.far.documents)
                await member.start()
                if roles is not None:
                    tasks.create_task(roles.run(), name="roles")
                running = tasks.create_task(member.run(), name="member", ends=stop)
                tasks.create_task(status.run(), name="status")
                tasks.create_task(certificates.rotate(None if spire else gateway), name="certificates")
                if spire is not None:
                    tasks.create_task(spire.run(gateway.replace_tls), name="SPIRE")
                federated.listen(spire.changed if spire else certificates.changed)
                tasks.create_task(federated.run(), name="federated bundles")
                tasks.create_task(trust.follow(authority), name="authorities")
                tasks.create_task(rotation.run(), name="rotation")
                tasks.create_task(_compact(store, member, config.history_s), name="compaction")
                await first(member.settled(), stop.wait(), gateway.wait(), tasks.failed())
                if not stop.is_set():
                    started.set()
                    # What was loaded and stays, views and caches, goes without the collector: each has its count of
                    # references, and a look at all of it would stop the loop for a tenth of a second, during a storm.
                    gc.freeze()
                    self._announce(trust, address, edge)
                    trust.listen(lambda: self._announce(trust, address, edge))
                await first(stop.wait(), gateway.wait(), tasks.failed())
            finally:
                log.info("stopping")
                _remove(self._endpoints)
                api.drain()
                await _hand_over(member, running)
                log.info("handed over, closing connections")
                await asyncio.gather(api.stop(grace_s=3.0), gateway.stop())
                if audit is not None:
                    await asyncio.to_thread(audit[1].stop)

    async def _access(
        self, registry: Registry, source: Source, trust: Trust, tasks: Background
    ) -> tuple[Authorizer | None, Tokens | None, dict[tuple[str, str], Document]]:
        """Roles and tokens as this replica knows them, loaded, and what the API answers about their keys; nothing of these where
        the objects live elsewhere."""
        if source.elsewhere:
            return None, None, {}
        keys = await self._token_keys(registry.store, registry.keys)
        tasks.create_task(keys.follow(), name="keys of service account tokens")
        roles = AccessRoles(registry.store, registry.keys)
        tasks.create_task(roles.run(), name="roles of users")
        await first(roles.synced(), tasks.failed())
        tokens = Tokens(keys, registry, roles, trust.trust_domain)
        return Authorizer(roles.policy), tokens, KeyDocuments(keys, time.time).documents()

    def _audit(self) -> tuple[AuditPolicy, AuditLog] | None:
        """The audit log, started. Raises ConfigError, OSError."""
        config = self.config
        if not config.audit_policy:
            return None
        policy = read_policy(config.audit_policy)
        path = config.audit_log or os.path.join(config.data_dir, "audit.log")
        records = self.metrics.counter("cloudhub.audit.records")
        file = AuditFile(path, config.audit_log_mb << 20, config.audit_log_files)
        audit = AuditLog(file, records.series("written"), records.series("lost"))
        try:
            audit.start()
        except OSError as failure:
            raise ConfigError(f"audit_log: cannot open {path}: {failure.strerror}") from failure
        return policy, audit

    def _documents(
        self, spire: "SpireTrust | None", rotation: Rotation, status: Status, source: Source
    ) -> dict[tuple[str, str], Document]:
        """What the API answers about the authority of nodes."""
        if spire is None:
            return rotation.documents()
        from hub import spirestatus

        spirestatus.publish(spire, self.metrics)
        return spirestatus.documents(spire, status, source, rotation.documents())

    async def _spire(self, federated: Federated, tasks: Background) -> "SpireTrust | None":
        if not self.config.spire_server:
            return None
        from hub.spire import open_spire  # grpc takes 14 MB, which most hubs need not have

        return await open_spire(self.config, federated, tasks)

    async def _stalls(self) -> None:
        """Measures how long the loop stands still, for metrics."""
        stalls = Stalls()
        self.metrics.read("cloudhub.loop.lateness", stalls.distribution)
        self.metrics.figures("cloudhub.loop", stalls.figures)
        await stalls.run()

    def _member(self, store: Store, registry: Registry, units: Units) -> Member:
        config = self.config
        record = MemberRecord(
            config.replica,
            secrets.token_hex(8),
            weight=config.weight,
            bus=bool(config.nats),
            version=__version__,
            started=time.time(),
        )
        checked = deadline_checked(os.environ)
        options = MemberOptions(ttl_s=config.lease_ttl_s, stop_s=HANDOVER_S, check_deadline=checked)
        return Member(store, registry.keys.root, record, units, options)

    def _relay(self, gateway: Gateway, store: Store, member: Member, tasks: Background) -> Relay | None:
        config = self.config
        if not config.nats:
            return None
        from shards.nats import NatsBus, NatsConfig

        bus = NatsBus(
            NatsConfig(
                config.nats,
                config.nats_ca or None,
                config.nats_cert or None,
                config.nats_key or None,
                config.replica,
            )
        )
        relay = Relay(gateway, bus, store.identity.uuid, member.record.incarnation)
        gateway.routing.relays = relay
        tasks.create_task(bus.run(), name="NATS")
        tasks.create_task(relay.run(), name="relay")
        return relay

    def _own_edge(self, edge: tuple[str, int]) -> str:
        """Where edges reach this very replica, "" for nowhere."""
        config = self.config
        if config.replica_edge:
            return "" if config.replica_edge == "none" else config.replica_edge
        return "" if is_wildcard(edge[0]) else join_address(*edge)

    def _gateway_config(self) -> GatewayConfig:
        host, port = split_address(self.config.edge_address)
        return GatewayConfig(
            host=host,
            port=port,
            advertise=self.config.advertise_edge or None,
            heartbeat_s=self.config.heartbeat_s,
            node_ttl_s=self.config.node_certificate_s,
            return_s=self.config.node_return_s,
            renewals_per_s=self.config.renewals_per_s,
            clone_retry_s=self.config.clone_backoff_s,
            clone_quiet_s=5 * self.config.clone_backoff_s,
            rates=self.config.rates,
            transport=TransportLimits(lobby=LobbyLimits(handshakes_s=self.config.handshakes_s)),
        )

    def _revocations_s(self) -> float:
        """After this long, whatever a revocation of a node or a token refuses has ended."""
        return max(self.config.node_certificate_s + self.config.node_return_s, TTL_S_MAX)

    def _rotation_config(self) -> RotationConfig:
        return RotationConfig(self.config.node_certificate_s, self.config.node_return_s)

    def _announce(self, trust: Trust, api: tuple[str, int], edge: tuple[str, int]) -> None:
        server = "https://" + join_address(reachable(api[0]), api[1])
        cert, key = trust.issue_user(ADMIN, [ADMIN_GROUP], time.time())
        kubeconfig.write(
            os.path.join(self.config.data_dir, "kubeconfig"),
            kubeconfig.Credentials(server, trust.bundle_pem, cert, key),
        )
        edge_text = self.config.advertise_edge or join_address(reachable(edge[0]), edge[1])
        write_atomically(self._endpoints, orjson.dumps({"api": server, "edge": edge_text}), 0o644)
        log.info("serving the API at %s and edges at %s", server, join_address(*edge))


def _controllers(registry: Registry, member: Member, source: OwnSource) -> "Controllers":
    from hub.roles import Roles  # 30 modules, of no use where a cluster has its own scheduler and controllers

    return Roles(registry, member, kin=source.kin)


def _fleet_page(
    fleet: Fleet,
    registry: Registry,
    source: Source,
    gateway: Gateway,
    relay: Relay | None,
    authorizer: Authorizer,
) -> Pages:
    details = Details(
        source.objects,
        gateway,
        authorizer,
        None if source.elsewhere else registry,
        relay.open_document if relay is not None else None,
    )
    return Pages(fleet, details, authorizer)


async def _hand_over(member: Member, running: "asyncio.Task[None] | None") -> None:
    """Drains and releases what is owned, within HANDOVER_S, while nodes and clients are still served."""
    if running is None or running.done():
        return
    member.stop()
    _, late = await asyncio.wait([running], timeout=HANDOVER_S + 5.0)
    if late:
        log.warning("the hand-over did not end; the others take over when the lease ends")


async def _ensure(registry: Registry) -> None:
    """Makes what every fleet has: namespaces, the default roles."""
    deadline = time.monotonic() + FIRST_WRITES_S
    while True:
        try:
            await deletion.ensure_namespaces(registry)
            await ensure_roles(registry)
            return
        except errors.ServiceUnavailable as failure:
            if time.monotonic() > deadline:
                raise StoreError(f"the store cannot be written: {failure.message}") from failure
            await asyncio.sleep(0.2)


async def _compact(store: Store, ownership: Ownership, history_s: float) -> None:
    """Forgets history older than `history_s`; of several replicas the one that runs the controllers does it."""
    past: deque[tuple[float, int]] = deque()
    while True:
        try:
            past.append((time.monotonic(), await store.revision()))
            reached = 0
            while past and past[0][0] <= time.monotonic() - history_s:
                reached = past.popleft()[1]
            if reached and ownership.fence(CONTROLLERS) is not None:
                await store.compact(reached)
        except HistoryLost:
            raise
        except StoreError as failure:
            log.warning("compaction is put off: %s", failure)
        await asyncio.sleep(COMPACT_EVERY_S)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
