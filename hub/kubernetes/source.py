"""The source `kubernetes`: a cluster's API server keeps the objects; its scheduler and controllers do their work.

Job: make the parts that read, write and answer for edge nodes, in the order that they need each other, and run them. What
each does is said in its own module.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from hub import errors
from hub.certificates import Certificates
from hub.config import ConfigError, HubConfig, is_wildcard, split_address
from hub.fleet.following import Steps
from hub.gateway import Gateway
from hub.kubelet.access import Access
from hub.kubelet.server import KubeletServer
from hub.kubernetes import joins
from hub.kubernetes.allocator import keep_large_apart
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.events import Events
from hub.kubernetes.fleet import watched
from hub.kubernetes.heads import EDGE_SELECTOR
from hub.kubernetes.history import KubeHistory
from hub.kubernetes.leases import LeaseOptions, Leases, alive_nodes
from hub.kubernetes.nodes import NodeForm
from hub.kubernetes.registry import KubeRegistry, owned_by
from hub.kubernetes.repair import Repair
from hub.kubernetes.share import KubeShare
from hub.kubernetes.tokenrequest import Issuer
from hub.kubernetes.webhook import Webhook, publish_roots
from hub.listening import listen
from hub.objects import DEVICES, NODES, PODS, Keys, Taint
from hub.registry import FenceLost
from hub.rotation import NodeFacts, TokenFacts
from hub.source import Attached, decode_head, facts_of
from observability.logs import about
from observability.metrics import Metrics
from shards.claims import Fence
from shards.kv import Store, Unavailable

log = logging.getLogger(__name__)

CLUSTER_PATH = "/api/v1/namespaces/kube-system"
REVISION_PATH = "/api/v1/nodes"
ROOTS_S = 10.0
"""How often it is looked whether the fleet's roots have changed, which the API server verifies the webhook by."""
SHOW_S = 1.0
"""How often nodes are looked for whose Node may name another replica."""


SHOW_AGAIN_S = 30.0
"""After what the API server refused."""


class KubeSource:
    """`hub.source.Source`. Made by `open_source`."""

    def __init__(
        self,
        config: HubConfig,
        client: KubeClient,
        store: Store,
        keys: Keys,
        history: KubeHistory,
        metrics: Metrics,
    ) -> None:
        self.elsewhere = client.server
        self.history = history
        self.share = KubeShare(client, store.identity.slots)
        self.objects = KubeRegistry(client, store, keys, NodeForm())
        self.objects.mirrors = {
            PODS: self.share.pods,
            NODES: self.share.nodes,
            DEVICES: self.share.devices,
        }
        self.slots = store.identity.slots
        self._config = config
        self._client = client
        self._keys = keys
        self._metrics = metrics

    async def attach(self, hub: Attached) -> None:
        """Starts the ports that the API server connects to, and what is done for nodes beside their sessions. Raises
        CannotListen, ConfigError."""
        gateway, tasks = hub.gateway, hub.tasks
        self.objects.owns = owned_by(hub.ownership, self._keys)
        events = self.objects.events = Events(self._client)
        gateway.tokens.issue = Issuer(self._client.request)
        await self._start_kubelet(hub)
        if self._config.webhook_address:
            await self._start_webhook(hub)
        repair = Repair(
            self.share.pods, self.share.nodes, gateway.peers.__contains__, gateway.upstream.submit
        )
        repair.start()
        self.objects.wrote = repair.wrote
        leases = Leases(
            self._client,
            self.objects,
            lambda: alive_nodes(gateway),
            gateway.slots.fence,
            gateway.fence_lost,
            LeaseOptions(period_s=self._config.node_lease_s),
        )
        self._metrics.figures("cloudhub.kubernetes", lambda: self._figures(leases, repair, events, gateway))
        tasks.create_task(leases.run(), name="node leases")
        tasks.create_task(self._show_endpoints(gateway), name="endpoints of nodes")

        def trust() -> joins.Trust:
            return joins.Trust(self._config.trust_domain, hub.certificates.root_pem)

        tasks.create_task(joins.keep_published(self._client, trust), name="trust for join tokens")
        tasks.create_task(self.history.run(lambda: revision(self._client)), name="mark of the cluster")

    async def node_facts(self) -> AsyncIterator[NodeFacts]:
        async for page in self._client.list("/api/v1/nodes", {"labelSelector": EDGE_SELECTOR}):
            for raw in page.items or ():
                meta = decode_head(raw).metadata
                yield facts_of(meta.name, meta.annotations)

    def fleet(self) -> Steps:
        return watched(self._client, self.slots)

    async def token_facts(self, now: float) -> AsyncIterator[TokenFacts]:
        """None: the hub may read the tokens that it is shown, and not list them."""
        none: tuple[TokenFacts, ...] = ()
        for fact in none:
            yield fact

    def _figures(self, leases: Leases, repair: Repair, events: Events, gateway: Gateway) -> dict[str, float]:
        return {
            **self.share.stats(),
            **leases.stats(),
            "namespaced_left_out": gateway.desired.spaces.left_out,
            "writes": self.objects.written,
            "conflicts": self.objects.conflicts,
            "events_created": events.created,
            "events_counted": events.counted,
            "events_refused": events.refused,
            "repairs": repair.repairs,
            "tolerations_set": repair.tolerations_set,
            "throttled": self._client.counts.throttled,
        }

    async def _show_endpoints(self, gateway: Gateway) -> None:
        """Has the Node of every node that is alive name this replica, for ever: the API server asks there for logs and
        commands. An agent that comes from another replica reports nothing new that would have its Node written."""
        shown: dict[str, tuple[str, Fence]] = {}
        again_at: dict[str, float] = {}
        now = asyncio.get_running_loop().time
        while True:
            alive = alive_nodes(gateway)
            shown = {name: held for name, held in shown.items() if name in alive}
            again_at = {name: at for name, at in again_at.items() if name in alive}
            for name, node in alive.items():
                fence = gateway.slots.fence(node.slot)
                if fence is None or shown.get(name) == (node.uid, fence) or again_at.get(name, 0.0) > now():
                    continue
                try:
                    await self.objects.mutate(NODES, "", name, lambda obj: obj, uid=node.uid, fence=fence)
                    shown[name] = (node.uid, fence)
                except (errors.ApiError, FenceLost) as failure:
                    again_at[name] = now() + SHOW_AGAIN_S
                    text = "node %s does not name this replica yet: %s"
                    log.info(text, name, failure, extra=about(node=name, slot=node.slot))
            await asyncio.sleep(SHOW_S)

    async def _start_kubelet(self, hub: Attached) -> None:
        config = self._config
        client_ca = _read(config.kubelet_client_ca) if config.kubelet_client_ca else None
        server = KubeletServer(
            self.objects,
            hub.relay or hub.gateway,
            self.share,
            Access(self._client),
            hub.certificates.for_cluster(client_ca),
            split_address(config.kubelet_address),
            metrics=self._metrics,
            usage=hub.gateway.streams.usage,
            elsewhere=hub.relay.open_document if hub.relay is not None else None,
        )
        if hub.relay is not None:
            hub.relay.far.documents = server.document
        address = await listen(server.start(), "kubelet_address", config.kubelet_address)
        self.objects.form = node_form(config, address)
        hub.tasks.create_task(_until_cancelled(server.stop), name="kubelet's face")

    async def _start_webhook(self, hub: Attached) -> None:
        address = self._config.webhook_address
        host, port = split_address(address)
        webhook = Webhook(hub.certificates.for_cluster(None), self.share.is_edge, host=host, port=port)
        await listen(webhook.start(), "webhook_address", address)
        hub.tasks.create_task(_until_cancelled(webhook.stop), name="admission webhook")
        hub.tasks.create_task(self._keep_roots(hub.certificates), name="roots of the webhook")

    async def _keep_roots(self, certificates: Certificates) -> None:
        """Publishes what the API server verifies the webhook by, and again when the fleet's roots have changed."""
        said = ""
        while True:
            wanted = certificates.roots_pem
            try:
                if wanted != said and not await publish_roots(self._client, wanted):
                    log.warning(
                        "no MutatingWebhookConfiguration names this hub's webhook: pods are not made to tolerate"
                    )
                said = wanted
            except errors.ApiError as failure:
                log.warning("the roots of this hub's webhook could not be published: %s", failure.message)
            await asyncio.sleep(ROOTS_S)


async def revision(client: KubeClient) -> int:
    """The API server's present resourceVersion, read through its quorum. Raises ApiError."""
    return int((await client.get(REVISION_PATH, {"limit": 1}))["metadata"]["resourceVersion"])


@contextlib.asynccontextmanager
async def open_source(
    config: HubConfig, store: Store, keys: Keys, metrics: Metrics
) -> AsyncIterator[KubeSource]:
    """Connects and finds out which cluster this is. Raises StoreError when the API server does not answer or refuses."""
    access = (
        KubeConfig.from_file(config.kubeconfig) if config.kubeconfig else KubeConfig.in_cluster(os.environ)
    )
    keep_large_apart()
    async with KubeClient(access) as client:
        try:
            cluster = str((await client.get(CLUSTER_PATH))["metadata"]["uid"])
            head = await revision(client)
        except errors.ApiError as failure:
            raise Unavailable(
                f"the Kubernetes API server at {client.server} cannot be used: {failure.message}"
            ) from failure
        history = await KubeHistory.open(store, keys.root, cluster, head)
        yield KubeSource(config, client, store, keys, history, metrics)


async def _until_cancelled(stop: Callable[[], Awaitable[None]]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await stop()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"kubelet_client_ca: cannot read {path}: {failure}") from failure


def node_form(config: HubConfig, address: tuple[str, int]) -> NodeForm:
    """How Nodes of ours look: the API server reaches them at this hub, whose kubelet port is at `address`."""
    if config.kubelet_advertise:
        host, port = split_address(config.kubelet_advertise)
    else:
        host, port = address
    taints = tuple(Taint(*taint) for taint in config.taints)
    addresses = () if is_wildcard(host) else (("InternalIP", host), ("Hostname", "{node}"))
    return NodeForm(taints, addresses=addresses, kubelet_port=port)
