"""Replicas whose objects live in a real Kubernetes API server, each behind a proxy of its own, and what really happened.

    with KubeCluster(apiserver=READABLE) as kubernetes, KubeHa(tmp_path, kubernetes) as ha:
        fleet = ha.sims(100)
        ha.replicas[0].kill9()
        judge_cluster(ha, deleted_uids)

`judge_cluster` reads the cluster's etcd, in which every version of every pod lies as JSON, and the proxies, which know
what each replica wrote; the claims are in the replicas' own etcd. None of the product's code stands in between.
"""

import itertools
import random
import re
import secrets
import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from shards.ring import slot_of
from tests.e2e.ha import ROOT, HaCluster, Replica
from tests.e2e.ha_api import AnyReplica
from tests.e2e.history import Verdict, judge, read
from tests.e2e.kube_edge import Account, mint_token
from tests.ports import free_port
from tests.servers.kubeproxy import KubeProxy
from tests.servers.kubernetes import KubeCluster

READABLE: Mapping[str, str] = {"storage-media-type": "application/json"}
REGISTRY = "/registry/"
_STATUS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods/(?P<name>[^/]+)/status$")


class KubeHa(HaCluster):
    """See the module. Clients speak to the API server alone."""

    def __init__(self, root: Path, kubernetes: KubeCluster, **options: Any) -> None:
        self.kubernetes = kubernetes
        self.proxies: list[KubeProxy] = []
        self._account = Account(kubernetes)
        self._context = kubernetes.context("ha-client")
        self.slots = int(options.get("slots", 1024))
        super().__init__(root, **options)

    def add(self, *, wait: bool = True, **settings: Any) -> Replica:
        proxy = KubeProxy(self.kubernetes)
        self.proxies.append(proxy)
        return super().add(
            wait=wait,
            source="kubernetes",
            kubeconfig=proxy.kubeconfig("cloudhub", self._account.token()),
            kubelet_address=f"127.0.0.1:{free_port()}",
            kubelet_client_ca=self.kubernetes.kubelet_client_ca,
            **settings,
        )

    def revoke(self) -> None:
        """The replicas' tokens are refused from now on, and others lie where they have read them."""
        self._account.revoke()
        for proxy in self.proxies:
            proxy.kubeconfig("cloudhub", self._account.token())

    def context(self) -> ssl.SSLContext:
        return self._context

    def client(self, rng: random.Random | None = None) -> AnyReplica:
        """A client of the API server, for one thread."""
        return AnyReplica(
            lambda: [self.kubernetes.port], self._context, rng or random.Random(secrets.randbits(32))
        )

    def token(self, *arguments: str) -> str:
        return mint_token(self.kubernetes, self.replicas[0].kubeconfig, *arguments)

    def close(self) -> None:
        super().close()
        for proxy in self.proxies:
            proxy.close()


def judge_cluster(ha: KubeHa, deleted: Iterable[str]) -> Verdict:
    """Violations, as sentences: a pod's growing number falls, its containers restart, it goes although nobody deleted it
    (`deleted`: the UIDs that were), or a slot's pods are written by a replica whose turn it was not."""
    endpoint = ha.kubernetes.etcd_endpoint
    asked = frozenset(deleted)
    verdict = Verdict()
    last: dict[str, Any] = {}
    nodes: dict[str, str] = {}
    for change in read(endpoint, REGISTRY):
        for path, value in change.events:
            if not path.startswith("pods/"):
                continue
            key = path.removeprefix("pods/")
            verdict.revisions += 1
            if value is None:
                pod = last.pop(key, None)
                if pod is not None:
                    verdict.gone[pod["metadata"]["uid"]] = change.revision
                    if pod["metadata"]["uid"] not in asked:
                        verdict.violation(
                            f"revision {change.revision}: {key} went, which nobody had asked for"
                        )
                continue
            pod = last[key] = orjson.loads(value)
            nodes[key] = pod["spec"].get("nodeName", "")
            _judge_pod(verdict, change.revision, pod)
    _judge_writers(verdict, ha, nodes)
    return verdict


def _judge_pod(verdict: Verdict, revision: int, pod: Any) -> None:
    meta, status = pod["metadata"], pod.get("status", {})
    if restarts := sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or ()):
        verdict.violation(f"revision {revision}: pod {meta['name']} shows {restarts} restarts")
    if status.get("phase") == "Failed" and not meta.get("deletionTimestamp"):
        verdict.violation(f"revision {revision}: pod {meta['name']} is Failed: {status.get('reason')}")
    count = status.get("message", "")
    if count.isdigit():
        seen = verdict.counters.setdefault(meta["uid"], [])
        if seen and count < seen[-1][1]:
            verdict.violation(
                f"revision {revision}: the status of pod {meta['name']} falls from {seen[-1][1]} to {count}"
            )
        if not seen or seen[-1][1] != count:
            seen.append((revision, count))


def _judge_writers(verdict: Verdict, ha: KubeHa, nodes: Mapping[str, str]) -> None:
    """Those of each slot's pods, one after the other, are among its owners in the order of their claims."""
    # Not the verdict's: their revisions are of another etcd than those of pods.
    claims = judge(read(ha.etcd.endpoints[0], ROOT)).claims
    by_revision = sorted(
        (revision, replica.name, path)
        for replica, proxy in zip(ha.replicas, ha.proxies, strict=True)
        for revision, path in proxy.written.items()
    )
    writers: dict[str, list[str]] = {}
    for _, member, path in by_revision:
        found = _STATUS.match(path)
        node = nodes.get(f"{found['namespace']}/{found['name']}", "") if found else ""
        if node:
            verdict.fenced += 1
            writers.setdefault(f"{slot_of(node, ha.slots):04d}", []).append(member)
    for slot, members in writers.items():
        wrote = [member for member, _ in itertools.groupby(members)]
        owned = [claim.writer.split("/")[0] for claim in claims.get(slot, ())]
        if not _within(wrote, owned):
            verdict.violation(f"slot {slot} was written by {wrote}, it was owned by {owned}")


def _within(some: Sequence[str], whole: Sequence[str]) -> bool:
    """Is `some` what is left of `whole` when items are struck out?"""
    rest = iter(whole)
    return all(item in rest for item in some)
