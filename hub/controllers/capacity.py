"""What nodes offer and what the pods bound to them take: the scheduler's compact table. [pure]

Job: kept up to date pod by pod and node by node, so that no decision scans all pods. A pod that the scheduler has
bound counts at once ("assumed"), before the cache shows it.
Invariant: a pod counts on exactly one node; a node's sums equal the sums over its pods.
Units: cpu in millicores, memory and storage in bytes, others in whole units.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hub.api import quantity
from hub.controllers.taints import effective
from hub.objects import NodeView, Taint

Amounts = dict[str, int]
HostPort = tuple[str, str, int]
"""(protocol, address, port); the address 0.0.0.0 is every address."""
PODS_MAX_DEFAULT = 110
SCORE_CPU_DEFAULT = 100
SCORE_MEMORY_DEFAULT = 200 << 20
"""What a container without requests counts for in scores, so that such pods spread too (as in kube-scheduler)."""


class _Resources(msgspec.Struct, gc=False):
    requests: dict[str, str] | None = None


class _Port(msgspec.Struct, gc=False):
    hostPort: int = 0
    hostIP: str = ""
    protocol: str = "TCP"


class _Container(msgspec.Struct):
    resources: _Resources | None = None
    ports: tuple[_Port, ...] | None = None
    restartPolicy: str | None = None


class _Spec(msgspec.Struct):
    containers: tuple[_Container, ...] | None = None
    initContainers: tuple[_Container, ...] | None = None
    overhead: dict[str, str] | None = None
    resources: _Resources | None = None


class _Pod(msgspec.Struct):
    spec: _Spec


_decode = msgspec.json.Decoder(_Pod).decode


@dataclass(frozen=True, slots=True)
class Load:
    """What one pod takes from its node. `scored` is (cpu, memory) with the defaults for scores filled in."""

    requests: Amounts
    ports: frozenset[HostPort]
    scored: tuple[int, int]


def amount(resource: str, text: str) -> int:
    """A quantity in this table's units; one that cannot be read counts as 0 (validation refuses those)."""
    try:
        return quantity.milli(text) if resource == "cpu" else quantity.whole(text)
    except ValueError:
        return 0


def amounts(quantities: Mapping[str, str] | None) -> Amounts:
    return {name: amount(name, str(text)) for name, text in (quantities or {}).items()}


def _add(to: Amounts, more: Mapping[str, int], sign: int = 1) -> None:
    for name, value in more.items():
        to[name] = to.get(name, 0) + sign * value


def _most(to: Amounts, other: Mapping[str, int]) -> None:
    for name, value in other.items():
        to[name] = max(to.get(name, 0), value)


def _requests(container: _Container) -> Amounts:
    return amounts(container.resources.requests if container.resources else None)


def load_of(raw: bytes) -> Load:
    """From a Pod's JSON. Containers and sidecars add up; an init container runs beside the sidecars before it, so the
    greatest of these sums counts; overhead comes on top."""
    spec = _decode(raw).spec
    total: Amounts = {}
    scored_cpu = scored_memory = 0
    for container in spec.containers or ():
        wanted = _requests(container)
        _add(total, wanted)
        scored_cpu += wanted.get("cpu", SCORE_CPU_DEFAULT)
        scored_memory += wanted.get("memory", SCORE_MEMORY_DEFAULT)
    sidecars: Amounts = {}
    peak: Amounts = {}
    for container in spec.initContainers or ():
        wanted = _requests(container)
        if container.restartPolicy == "Always":
            _add(sidecars, wanted)
            _most(peak, sidecars)
        else:
            _add(wanted, sidecars)
            _most(peak, wanted)
    _add(total, sidecars)
    _most(total, peak)
    if spec.resources:
        total.update(amounts(spec.resources.requests))
    _add(total, amounts(spec.overhead))
    ports = frozenset(
        (port.protocol, port.hostIP or "0.0.0.0", port.hostPort)  # noqa: S104 - compared, not bound
        for container in (*(spec.containers or ()), *(spec.initContainers or ()))
        for port in container.ports or ()
        if port.hostPort
    )
    scored = (max(scored_cpu, total.get("cpu", 0)), max(scored_memory, total.get("memory", 0)))
    return Load({k: v for k, v in total.items() if v}, ports, scored)


@dataclass(slots=True)
class Room:
    """One node: what it is, what it offers, what is taken. `known` is False while only pods are known of it."""

    name: str
    known: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    allocatable: Amounts = field(default_factory=dict)
    requested: Amounts = field(default_factory=dict)
    scored_cpu: int = 0
    scored_memory: int = 0
    pods: int = 0
    ports: Counter[HostPort] = field(default_factory=Counter)

    def take(self, load: Load, sign: int = 1) -> None:
        _add(self.requested, load.requests, sign)
        self.pods += sign
        self.scored_cpu += sign * load.scored[0]
        self.scored_memory += sign * load.scored[1]
        for port in load.ports:
            self.ports[port] += sign
            if self.ports[port] <= 0:
                del self.ports[port]

    def port_conflict(self, wanted: Iterable[HostPort]) -> bool:
        everywhere = "0.0.0.0"  # noqa: S104 - compared, not bound
        for protocol, address, port in wanted:
            for held_protocol, held_address, held_port in self.ports:
                if (protocol, port) == (held_protocol, held_port) and (
                    address == held_address or everywhere in (address, held_address)
                ):
                    return True
        return False


def _offers(view: NodeView) -> tuple[Any, ...]:
    """What of a node decides whether a pod fits."""
    return (view.metadata.labels, effective(view), view.spec.unschedulable, view.status.allocatable)


class Capacity:
    """All nodes. `rooms` has the known ones and those that only pods speak of; `nodes()` the known ones."""

    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}
        self._known: dict[str, Room] = {}
        self._views: dict[str, NodeView] = {}
        self._pods: dict[str, tuple[str, Load]] = {}

    def nodes(self) -> Iterable[Room]:
        return self._known.values()

    def known(self, name: str) -> Room | None:
        return self._known.get(name)

    @property
    def nodes_count(self) -> int:
        return len(self._known)

    def set_node(self, view: NodeView) -> bool:
        """True when the node offers something else than before."""
        name = view.metadata.name
        held = self._views.get(name)
        self._views[name] = view
        if held is not None and _offers(held) == _offers(view):
            return False
        room = self._room(name)
        room.known = True
        room.labels = view.metadata.labels or {}
        room.taints = effective(view)
        room.unschedulable = view.spec.unschedulable
        room.allocatable = amounts(view.status.allocatable)
        self._known[name] = room
        return True

    def drop_node(self, name: str) -> None:
        self._views.pop(name, None)
        self._known.pop(name, None)
        room = self.rooms.get(name)
        if room is not None:
            room.known = False
            self._prune(room)

    def node_of(self, uid: str) -> str | None:
        """The node on which the pod counts."""
        held = self._pods.get(uid)
        return held[0] if held else None

    def add_pod(self, uid: str, node: str, load: Load) -> None:
        """The pod counts on `node`, and on no other; counting it twice changes nothing."""
        held = self._pods.get(uid)
        if held is not None:
            if held[0] == node:
                return
            self.drop_pod(uid)
        self._pods[uid] = (node, load)
        self._room(node).take(load)

    def drop_pod(self, uid: str) -> bool:
        """The pod takes nothing any more; False when it took nothing."""
        held = self._pods.pop(uid, None)
        if held is None:
            return False
        room = self.rooms[held[0]]
        room.take(held[1], -1)
        self._prune(room)
        return True

    def _room(self, name: str) -> Room:
        return self.rooms.setdefault(name, Room(name))

    def _prune(self, room: Room) -> None:
        if not room.known and room.pods == 0:
            del self.rooms[room.name]
