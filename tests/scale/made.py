"""A fleet that is there already: Nodes and running Pods as they lie in a store, as the source of a restore.

Every object is one template with its names filled in. The template went through the API's own defaults and the hub's own
merging of reports, so that it is as large as it would be, and a simulated node that reports the same changes nothing.
Everything follows from the sizes: the same fleet is made again byte for byte, so that a restore that was cut off goes on.
"""

import hashlib
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from hub import reports
from hub.api import defaults
from hub.objects import NODES, PODS, Keys, Resource, partition_of_slot
from hub.simulate import load
from hub.simulate.node import node_report, running_status
from hub.simulate.repeated import STAMP_NAME
from hub.transfer import Item
from security.frames import decode_node
from security.identity import DEFAULT_TENANT, NodeId
from shards.kv import FORMAT_VERSION, StoreIdentity
from shards.ring import SLOTS_DEFAULT, slot_of

NAMESPACE: Final = "default"
MADE_AT: Final = 1_790_000_000
"""Unix seconds, for all: what is made twice has to be equal."""
MADE: Final = "2026-09-21T14:13:20Z"
_NODE, _POD, _UID = b"node-to-be", b"pod-to-be", b"uid-to-be"


def node_name(n: int) -> str:
    return f"sim-{n}"


def pod_name(n: int, k: int) -> str:
    return f"sim-{n}-{k}"


def uid(n: int, k: int = 0xFFFF) -> str:
    """Of pod k of node n; without k of the node itself."""
    return f"{n:08x}-{k:04x}-4000-8000-{zlib.crc32(b'%d/%d' % (n, k)):012x}"


@dataclass(frozen=True)
class MadeFleet:
    """`nodes` Nodes with `pods_each` Pods. `wanted`: of which slots; what lies in others is left out."""

    nodes: int
    pods_each: int
    slots: int = SLOTS_DEFAULT
    wanted: Callable[[int], bool] = field(default=lambda slot: True)

    @property
    def identity(self) -> StoreIdentity:
        name = f"scale {self.nodes} {self.pods_each} {self.slots}"
        return StoreIdentity(str(uuid.uuid5(uuid.NAMESPACE_URL, name)), 1, FORMAT_VERSION, self.slots)

    @property
    def label(self) -> str:
        chosen = bytes(self.wanted(slot) for slot in range(self.slots))
        return f"made fleet {self.nodes} x {self.pods_each}, slots {hashlib.sha256(chosen).hexdigest()[:16]}"

    def numbers(self) -> dict[int, list[int]]:
        """Of the nodes, by slot."""
        found: dict[int, list[int]] = {slot: [] for slot in range(self.slots) if self.wanted(slot)}
        for n in range(self.nodes):
            at = slot_of(node_name(n), self.slots)
            if at in found:
                found[at].append(n)
        return found

    async def items(self, after: str = "") -> AsyncIterator[Item]:
        """As `hub.transfer.Source` has it."""
        for key, value in self._items():
            if key > after:
                yield key, value

    def _items(self) -> Iterator[Item]:
        """All keys in their order: index of Nodes, of Pods; Nodes, Pods by slot."""
        keys, by_slot = Keys.at(""), self.numbers()
        chosen = sorted((node_name(n), n, partition_of_slot(s)) for s, held in by_slot.items() for n in held)
        for name, n, partition in chosen:
            yield keys.name(NODES, "", name), _index(partition, uid(n))
        pods = sorted(
            (pod_name(n, k), n, k, partition) for _, n, partition in chosen for k in range(self.pods_each)
        )
        for name, n, k, partition in pods:
            yield keys.name(PODS, NAMESPACE, name), _index(partition, uid(n, k))
        node, pod = node_bytes(), pod_bytes()
        for slot, held in by_slot.items():
            for name, n in sorted((node_name(n), n) for n in held):
                body = node.replace(_NODE, name.encode()).replace(_UID, uid(n).encode())
                yield keys.object(NODES, partition_of_slot(slot), "", name), body
        for slot, held in by_slot.items():
            mine = sorted((pod_name(n, k), n, k) for n in held for k in range(self.pods_each))
            for name, n, k in mine:
                body = pod.replace(_NODE, node_name(n).encode()).replace(_POD, name.encode())
                body = body.replace(_UID, uid(n, k).encode())
                yield keys.object(PODS, partition_of_slot(slot), NAMESPACE, name), body


def _index(partition: str, of: str) -> bytes:
    return orjson.dumps({"p": partition, "u": of})


def node_bytes() -> bytes:
    """A Node that was connected a moment ago, with its name and UID to be filled in."""
    name = _NODE.decode()
    obj = reports.new_node(NodeId("cloudhub.local", DEFAULT_TENANT, name, name))
    _own(NODES, obj, "")
    obj = reports.merge_node(obj, decode_node(orjson.dumps(node_report())))
    return orjson.dumps(reports.connected(obj, MADE) or obj)


def pod_bytes() -> bytes:
    """A Pod that runs, with the names of itself and its node and its UID to be filled in."""
    obj = load.pod(_POD.decode(), _NODE.decode(), "sim")
    obj["metadata"]["annotations"][STAMP_NAME] = str(MADE_AT * 10**9)
    obj["metadata"]["namespace"] = NAMESPACE
    _own(PODS, obj, NAMESPACE)
    merged = reports.merge_pod(_NODE.decode(), running_status(("main",), MADE_AT))(obj)
    return orjson.dumps(merged)


def _own(res: Resource, obj: dict[str, Any], namespace: str) -> None:
    """What the API adds to what a user sends."""
    meta = obj["metadata"]
    meta["uid"], meta["creationTimestamp"] = _UID.decode(), MADE
    if namespace:
        meta["generation"] = 1
    defaults.apply(res, obj)
