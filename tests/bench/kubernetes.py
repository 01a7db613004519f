"""`make bench ARGS=kubernetes`: what a cluster's pods cost a replica that owns a tenth of them.

An API server of prepared bytes in one process; in another a `KubeShare` with the documents that follow from it, over
HTTPS: memory and CPU of list and sync (by the nodes' names; where the server does not say how many pods there are, all of
them streamed and in pages), CPU of a pod's event that is another's and of one that is
ours, and memory while every watch is closed each second. Every namespace has Services with ten endpoints each.
"""

import asyncio
import contextlib
import gc
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
from aiohttp import ClientSession, web

from hub.desired import Desired
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.share import KubeShare
from security import tls
from shards.ring import slot_of
from tests.bench.report import emit
from tests.hub.edge_pki import Pki
from tests.hub.kubernetes.fake_api import INITIAL_END, kubeconfig

PODS = int(os.environ.get("BENCH_PODS", "50000"))
PODS_PER_NODE = 25
NAMESPACES = 20
SERVICES = int(os.environ.get("BENCH_SERVICES", "50"))
"""Of each namespace, with an EndpointSlice each."""
SLOTS = 1024
OURS = range(0, SLOTS, 10)
EVENTS = int(os.environ.get("BENCH_EVENTS", "20000"))
CLOSE_S = int(os.environ.get("BENCH_CLOSE_S", "60"))
WAYS = ("named", "paged", "streamed")
FIRST = 1000
"""The revision of the first list; object i has FIRST - 1."""


def pod(i: int, revision: int) -> bytes:
    """About 5 KB, a third of it managed fields, as those of a Deployment are."""
    name, namespace, node = f"till-{i:05d}-7f9c5d6b8-x2k4q", f"shop-{i % NAMESPACES}", i // PODS_PER_NODE
    fields = {
        f"f:field-{k}": {".": {}, "f:name": {}, "f:value": {}, f'k:{{"name":"{k}"}}': {}} for k in range(18)
    }
    env = [{"name": f"SETTING_{k}", "value": f"value-{k}-{i}"} for k in range(20)]
    container = {
        "name": "till",
        "image": "registry.example/till:1.2.3",
        "env": env,
        "envFrom": [{"configMapRef": {"name": f"till-{i % 5}"}}],
        "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": 8080, "scheme": "HTTP"},
            "timeoutSeconds": 1,
            "periodSeconds": 10,
        },
        "volumeMounts": [
            {"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
        ],
    }
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    conditions = [
        {"type": t, "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for t in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    return orjson.dumps(
        {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"00000000-0000-4000-8000-{i:012d}",
                "resourceVersion": str(revision),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "till", "pod-template-hash": "7f9c5d6b8"},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"till-{i}", "uid": f"u{i}"}
                ],
                "managedFields": [
                    {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields}
                ],
            },
            "spec": {
                "nodeName": f"edge-{node:05d}",
                "containers": [container],
                "serviceAccountName": "default",
                "schedulerName": "default-scheduler",
                "volumes": [{"name": "api", "projected": {"sources": sources, "defaultMode": 420}}],
                "tolerations": [
                    {"key": f"node.kubernetes.io/{k}", "operator": "Exists", "effect": "NoExecute"}
                    for k in ("not-ready", "unreachable")
                ],
            },
            "status": {
                "phase": "Running",
                "conditions": conditions,
                "podIP": "10.0.0.1",
                "containerStatuses": [{"name": "till", "ready": True, "restartCount": revision}],
            },
        }
    )


def node(i: int) -> bytes:
    meta = {
        "name": f"edge-{i:05d}",
        "uid": f"node-{i}",
        "resourceVersion": str(FIRST - 1),
        "labels": {"cloudhub.dev/edge": "true", "kubernetes.io/hostname": f"edge-{i:05d}"},
    }
    status = {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}],
        "nodeInfo": {"osImage": "Linux", "kubeletVersion": "v1.34.0-cloudhub"},
    }
    return orjson.dumps({"kind": "Node", "apiVersion": "v1", "metadata": meta, "status": status})


def config(namespace: str, name: str) -> bytes:
    meta = {"name": name, "namespace": namespace, "uid": "c", "resourceVersion": str(FIRST - 1)}
    return orjson.dumps({"metadata": meta, "data": {"text": "x" * 1000}})


def service(namespace: str, i: int, address: str = "") -> bytes:
    meta = {"name": f"service-{i}", "namespace": namespace, "uid": f"s{i}", "resourceVersion": str(FIRST - 1)}
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    spec = {
        "clusterIP": address or f"10.0.0.{i}",
        "type": "ClusterIP",
        "ports": ports,
        "selector": {"app": f"a{i}"},
    }
    return orjson.dumps({"metadata": meta, "spec": spec})


def endpoint_slice(namespace: str, i: int, endpoints: int = 10) -> bytes:
    labels = {"kubernetes.io/service-name": f"service-{i}"}
    meta = {"name": f"service-{i}-x2k4q", "namespace": namespace, "uid": f"e{i}"}
    found = [
        {
            "addresses": [f"10.1.{i}.{k}"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"cloud-{k}",
            "targetRef": {"kind": "Pod", "name": f"a{i}-{k}", "namespace": namespace, "uid": f"p{i}-{k}"},
            "zone": "a",
        }
        for k in range(endpoints)
    ]
    return orjson.dumps(
        {
            "metadata": {**meta, "resourceVersion": str(FIRST - 1), "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": found,
        }
    )


class Server:
    """Prepared bytes, and a way to have events told (`POST /bench`)."""

    def __init__(self) -> None:
        self.objects = {
            "pods": [pod(i, FIRST - 1) for i in range(PODS)],
            "nodes": [node(i) for i in range(PODS // PODS_PER_NODE)],
        }
        self.revision = FIRST
        self.stream = True
        self.counts = True
        self.close_s: float | None = None
        self.watchers: dict[str, list[web.StreamResponse]] = {"pods": [], "nodes": []}
        self.changed = asyncio.Event()

    async def command(self, request: web.Request) -> web.Response:
        """{"stream": b} how lists come; {"counts": b} is it said how many pods there are; {"close_s": s} how long watches live; {"event": [pod indexes]} tells them."""
        order = await request.json()
        self.stream = order.get("stream", self.stream)
        self.counts = order.get("counts", self.counts)
        if "close_s" in order:
            self.close_s = order["close_s"]
            self.changed.set()
            self.changed = asyncio.Event()
        for i in order.get("event", ()):
            self.revision += 1
            self.objects["pods"][i] = pod(i, self.revision)
            line = b'{"type":"MODIFIED","object":' + self.objects["pods"][i] + b"}\n"
            for response in list(self.watchers["pods"]):
                try:
                    await response.write(line)
                except ConnectionError:
                    self.watchers["pods"].remove(response)
        return web.json_response({"revision": self.revision})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        parts, query = request.path.strip("/").split("/"), request.query
        resource = parts[-1]
        if "watch" in query:
            return await self.watch(request, resource)
        if resource in ("configmaps", "secrets"):
            name = query.get("fieldSelector", "").removeprefix("metadata.name=")
            return self.page([config(parts[3], name)] if name and len(parts) > 3 else [], "")
        if resource in ("services", "endpointslices"):
            make = service if resource == "services" else endpoint_slice
            namespace = parts[-2] if parts[-3] == "namespaces" else ""
            return self.page([make(namespace, i) for i in range(SERVICES)] if namespace else [], "")
        if name := query.get("fieldSelector", "").removeprefix("spec.nodeName=edge-"):
            first = int(name) * PODS_PER_NODE
            return self.page(self.objects[resource][first : first + PODS_PER_NODE], "")
        at, limit = int(query.get("continue", 0)), int(query.get("limit", PODS))
        items = self.objects[resource][at : at + limit]
        rest = len(self.objects[resource]) - at - len(items)
        return self.page(items, str(at + limit) if rest else "", rest)

    def page(self, items: list[bytes], more: str, rest: int = 0) -> web.Response:
        about: dict[str, str | int] = {"resourceVersion": str(self.revision), "continue": more}
        meta = orjson.dumps({**about, "remainingItemCount": rest} if rest and self.counts else about)
        body = b'{"kind":"List","metadata":' + meta + b',"items":[' + b",".join(items) + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        initial = "sendInitialEvents" in request.query
        if initial and not self.stream:
            status = {"kind": "Status", "code": 422, "reason": "Invalid", "message": "sendInitialEvents"}
            return web.json_response(status, status=422)
        response = web.StreamResponse()
        await response.prepare(request)
        if initial:
            items = self.objects[resource]
            for at in range(0, len(items), 100):
                lines = (b'{"type":"ADDED","object":' + one + b"}\n" for one in items[at : at + 100])
                await response.write(b"".join(lines))
            meta = {"resourceVersion": str(self.revision), "annotations": {INITIAL_END: "true"}}
            mark = {"type": "BOOKMARK", "object": {"metadata": meta}}
            await response.write(orjson.dumps(mark) + b"\n")
        watchers = self.watchers.setdefault(resource, [])
        watchers.append(response)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.close_s):
                        await self.changed.wait()
                        continue
                return response
        finally:
            if response in watchers:
                watchers.remove(response)


async def run_server(directory: str) -> None:
    pki = Pki(directory)
    server = Server()
    app = web.Application()
    app.router.add_post("/bench", server.command)
    app.router.add_route("GET", "/{path:.*}", server.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = tls.api_server_context(pki.hub_cert, pki.hub_key, pki.ca.root_pem)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    kubeconfig(f"{directory}/config", url, pki.ca.root_pem)
    print(url, flush=True)
    await asyncio.Event().wait()


class Replica:
    """The process that is measured."""

    def __init__(self, client: KubeClient) -> None:
        self.share = KubeShare(client, SLOTS)
        self.changes = 0
        self.desired = Desired(
            self.share.pods,
            self.share.configmaps,
            self.share.secrets,
            self._changed,
            lambda: None,
            namespaced=self.share.namespaced,
        )

    def _changed(self, node: str, key: str) -> None:
        self.changes += 1


def cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def rss_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


async def measure(directory: str, way: str) -> dict[str, float]:
    """`way`: how lists come, one of WAYS."""
    config = KubeConfig.from_file(f"{directory}/config")
    found: dict[str, float] = {"rss_before": rss_mb()}
    context = ssl.create_default_context(cadata=config.access().root_pem)
    async with ClientSession(config.access().server) as session:

        async def command(**order: Any) -> int:
            async with session.post("/bench", json=order, ssl=context) as response:
                return int((await response.json())["revision"])

        await command(stream=way != "paged", counts=way == "named", close_s=None)
        async with KubeClient(config) as client:
            replica = Replica(client)
            replica.desired.start()
            running = asyncio.create_task(replica.share.run())
            cpu, began = cpu_s(), time.monotonic()
            await replica.share.load(OURS, 0)
            found[f"{way}_cpu"] = cpu_s() - cpu
            found[f"{way}_s"] = time.monotonic() - began
            found[f"{way}_rss"] = rss_mb()
            found["pods"] = len(replica.share.pods.cache)
            found["nodes"] = len(replica.share.nodes.cache)
            found["spaced"] = sum(len(kind) for kind in replica.share.namespaced)
            if way == "named":
                await events(replica, command, found)
                await closed(replica, command, found)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    return found


async def events(replica: Replica, command: Any, found: dict[str, float]) -> None:
    """CPU per event, others' and ours."""
    ours = [i for i in range(PODS) if slot_of(f"edge-{i // PODS_PER_NODE:05d}", SLOTS) in OURS]
    mine = set(ours)
    others = [i for i in range(PODS) if i not in mine]
    for name, indexes in (("foreign", others), ("own", ours)):
        await command(event=[indexes[0]])
        order = [indexes[k % len(indexes)] for k in range(EVENTS)]
        cpu = cpu_s()
        for at in range(0, EVENTS, 1000):
            revision = await command(event=order[at : at + 1000])
        while replica.share.pods.revision < revision:
            await asyncio.sleep(0.01)
        found[f"{name}_us"] = (cpu_s() - cpu) / EVENTS * 1e6


async def closed(replica: Replica, command: Any, found: dict[str, float]) -> None:
    """Memory while every watch lives for a second."""
    await command(close_s=1.0)
    await asyncio.sleep(5)
    found["closed_rss_before"] = rss_mb()
    cpu, began, watches = cpu_s(), time.monotonic(), replica.share.watches_begun
    await asyncio.sleep(CLOSE_S)
    found["closed_rss_after"] = rss_mb()
    found["closed_cpu"] = (cpu_s() - cpu) / (time.monotonic() - began) * 100
    found["closed_watches"] = replica.share.watches_begun - watches


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", "tests.bench.kubernetes"]
        server = subprocess.Popen([*command, "serve", directory], cwd=root, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert server.stdout.readline(), "the API server of the bench did not start"
            found: dict[str, float] = {}
            for way in WAYS:
                argv = [*command, "measure", directory, way]
                done = subprocess.run(argv, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
                found |= json.loads(done.stdout)
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
    report(found)


def report(found: dict[str, float]) -> None:
    def out(metric: str, value: float, unit: str, target: float | None = None) -> None:
        emit("kubernetes", metric, value, unit, target)

    out("pods in the cluster", PODS, "")
    out("pods of the replica", found["pods"], "")
    out("nodes of the replica", found["nodes"], "")
    out("Services and EndpointSlices of the replica", found["spaced"], "")
    out("memory before", found["rss_before"], "MB")
    out(
        "CPU of each of others' pods in a list",
        (found["streamed_cpu"] - found["named_cpu"]) / (PODS - found["pods"]) * 1e6,
        "us CPU",
    )
    for way in WAYS:
        out(f"list and sync, {way}", found[f"{way}_cpu"], "s CPU", 5.0)
        out(f"list and sync, {way}, elapsed", found[f"{way}_s"], "s")
        out(f"memory after, {way}", found[f"{way}_rss"], "MB", 120.0)
    out("event of another's pod", found["foreign_us"], "us CPU")
    out("event of an own pod", found["own_us"], "us CPU")
    out("watches begun while each lives 1 s", found["closed_watches"], "")
    out("memory then, first", found["closed_rss_before"], "MB")
    out(f"memory then, after {CLOSE_S} s", found["closed_rss_after"], "MB", found["closed_rss_before"] + 5)
    out("CPU then", found["closed_cpu"], "%")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(run_server(sys.argv[2]))
    else:
        import uvloop

        print(json.dumps(uvloop.run(measure(sys.argv[2], sys.argv[3]))))
