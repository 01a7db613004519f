"""A fleet that lies in the store: Nodes, their Pods and ConfigMaps, written past the API in a few seconds.

Every object is a copy, under another name and UID, of one that went through the API, so that it is as large as it would be
there. No node is behind them: let heartbeats be long, so that they stay Ready.
"""

import asyncio
import copy
import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from hub.objects import CONFIGMAPS, NODES, PODS, SHARED, Keys, Resource, partition_of_slot
from hub.store.etcd import EtcdStore
from shards.kv import Put
from shards.ring import slot_of
from tests.e2e.ha import HaCluster

OPS_MAX = 120
NODE = "/api/v1/nodes"
PODS_PATH = "/api/v1/namespaces/default/pods"
CONFIGMAPS_PATH = "/api/v1/namespaces/default/configmaps"
Object = dict[str, Any]


def store_fleet(ha: HaCluster, nodes: int, pods_each: int) -> None:
    """`nodes` Nodes named stored-<n>, each with `pods_each` Pods that run and a ConfigMap that they all use."""
    asyncio.run(_store(ha.etcd.endpoints, _templates(ha), nodes, pods_each))


def _templates(ha: HaCluster) -> tuple[Object, Object, Object]:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "Connected", "lastTransitionTime": now}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "template", "labels": {"zone": "north"}}}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "template"},
        "data": {f"setting-{n}": f"value {n} of this till" for n in range(24)},
    }
    made = [ha.send("POST", NODE, node), ha.send("POST", CONFIGMAPS_PATH, config)]
    pod = ha.send("POST", PODS_PATH, _pod())
    for path, name in ((NODE, "template"), (CONFIGMAPS_PATH, "template"), (PODS_PATH, "template")):
        ha.send("DELETE", f"{path}/{name}", {"gracePeriodSeconds": 0})
    room = {"cpu": "4", "memory": "4Gi", "pods": "110"}
    made[0]["status"] = {
        "capacity": room,
        "allocatable": room,
        "nodeInfo": {"operatingSystem": "linux", "architecture": "amd64", "kubeletVersion": "bench"},
        "conditions": [ready],
    }
    pod["status"] = {
        "phase": "Running",
        "startTime": now,
        "conditions": [{**ready, "type": t} for t in ("Initialized", "Ready", "ContainersReady", "PodScheduled")],
        "containerStatuses": [
            {"name": "main", "ready": True, "started": True, "restartCount": 0, "image": "none", "imageID": "",
             "state": {"running": {"startedAt": now}}}
        ],
    }  # fmt: skip
    return made[0], made[1], pod


def _pod() -> Object:
    labels = {"cloudhub.dev/runtime": "process", "app": "till", "version": "1.14.2", "team": "stores"}
    main = {
        "name": "main",
        "command": ["/bin/sh", "-c", "exec /opt/till/bin/till --settings /settings --port 8080"],
        "env": [{"name": f"TILL_SETTING_{n}", "value": f"value {n}"} for n in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "volumeMounts": [{"name": "settings", "mountPath": "settings"}],
    }
    spec = {"containers": [main], "volumes": [{"name": "settings", "configMap": {"name": "none"}}]}
    metadata = {"name": "template", "labels": labels, "annotations": {"example.com/owner": "stores"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def _store(
    endpoints: Sequence[str], templates: tuple[Object, Object, Object], nodes: int, pods_each: int
) -> None:
    store = await EtcdStore.open(endpoints)
    try:
        batch: list[Put] = []
        for put in _puts(templates, store.identity.slots, nodes, pods_each):
            batch.append(put)
            if len(batch) == OPS_MAX:
                await store.txn([], batch)
                batch = []
        if batch:
            await store.txn([], batch)
    finally:
        await store.close()


def _puts(templates: tuple[Object, Object, Object], slots: int, nodes: int, pods_each: int) -> Iterator[Put]:
    node, config, pod = (copy.deepcopy(t) for t in templates)
    for n in range(nodes):
        name = f"stored-{n}"
        partition = partition_of_slot(slot_of(name, slots))
        yield from _object(NODES, partition, node, name)
        yield from _object(CONFIGMAPS, SHARED, config, name)
        pod["spec"]["nodeName"] = name
        pod["spec"]["volumes"][0]["configMap"]["name"] = name
        for k in range(pods_each):
            yield from _object(PODS, partition, pod, f"{name}-{k}")


def _object(res: Resource, partition: str, obj: Object, name: str) -> Iterator[Put]:
    meta = obj["metadata"]
    meta["name"], meta["uid"] = name, str(uuid.uuid4())
    meta.pop("resourceVersion", None)
    keys, namespace = Keys(), meta.get("namespace", "")
    yield Put(keys.name(res, namespace, name), orjson.dumps({"p": partition, "u": meta["uid"]}))
    yield Put(keys.object(res, partition, namespace, name), orjson.dumps(obj))
