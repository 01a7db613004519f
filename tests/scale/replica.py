"""One replica of a large fleet in a process of its own, and what each phase of its life costs: `python -m tests.scale.replica SPEC`.

Everything of the hub is the real thing but the transport, and nothing else is in the process but the edge's end of the
links (`tests.scale.links`), which is timed and weighed apart. API and roles are left away. See `tests.scale.share`.
"""

import asyncio
import json
import math
import random
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import uvloop

from edgelite.desired import digest_of
from hub.gateway import Gateway
from hub.keyproviders import KeySettings, key_providers
from hub.objects import PODS, Keys
from hub.peers import GatewayConfig
from hub.registry import Registry
from hub.share import Share
from hub.simulate.node import running_status
from hub.store.etcd import ROOT as CELL
from hub.store.etcd import EtcdStore
from hub.store.sealing import SealedStore
from hub.units import Units
from security.ca import CertificateAuthority
from shards.kv import Put
from shards.member import Member, MemberOptions
from shards.ownership import ROLES, MemberRecord, UnitKeys
from shards.ring import assign
from tests.bench.meter import Meter
from tests.scale.links import EMPTY, Net, collect
from tests.scale.made import NAMESPACE, MadeFleet, node_name, pod_name, uid
from tests.scale.steps import say

HEARTBEAT_S: Final = 30.0
CHANGES_PER_NODE_S: Final = 1e-3
"""Pods that users change: 100 a second of 100,000 nodes. As many change their status."""
LEASE_S: Final = 3600
WRITES_AT_ONCE: Final = 64
WAIT_S: Final = 3600.0


@dataclass(frozen=True)
class Size:
    """Of the whole fleet; `index`: which replica this is."""

    nodes: int
    pods_each: int
    replicas: int
    index: int
    seconds: int

    @property
    def members(self) -> list[MemberRecord]:
        return [MemberRecord(f"r-{n}", f"{n:016x}", started=1.0) for n in range(self.replicas)]

    @property
    def lost(self) -> int:
        """The replica that is taken away."""
        return (self.index + 1) % self.replicas

    def slots(self, slots: int) -> tuple[set[int], set[int]]:
        """(slots that this replica owns, those that it gets when the lost one is gone)."""
        name, gone = f"r-{self.index}", f"r-{self.lost}"
        members = self.members
        ring = assign(members, slots, ROLES).slots
        after = assign([m for m in members if m.id != gone], slots, ROLES).slots
        own = {n for n, owner in enumerate(ring) if owner == name}
        return own, {n for n, owner in enumerate(after) if owner == name} - own

    def fleet(self) -> MadeFleet:
        """As much of the fleet as comes to this replica."""
        whole = MadeFleet(self.nodes, self.pods_each)
        own, gained = self.slots(whole.slots)
        return MadeFleet(self.nodes, self.pods_each, wanted=(own | gained).__contains__)


class Costs:
    """What passes in this process but for the edge's end, and in etcd."""

    def __init__(self, etcd_pid: int) -> None:
        self.net: Net | None = None
        self._etcd = Meter(etcd_pid)
        self._own = psutil.Process()
        self.found: dict[str, dict[str, Any]] = {}

    def rss(self) -> int:
        return int(self._own.memory_info().rss)

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Seconds, CPU seconds (of the process, of etcd), growth of its memory in bytes. The caller may add to it."""
        found = self.found[name] = {}
        away_s = self.net.away_s if self.net is not None else 0.0
        cpu_s, etcd_s, rss, began = time.process_time(), self._etcd.cpu_s(), self.rss(), time.monotonic()
        yield found
        away_s = (self.net.away_s if self.net is not None else 0.0) - away_s
        found |= {
            "seconds": round(time.monotonic() - began, 3),
            "cpu s": round(time.process_time() - cpu_s - away_s, 4),
            "edge's end cpu s": round(away_s, 4),
            "etcd cpu s": round(self._etcd.cpu_s() - etcd_s, 3),
            "rss bytes": self.rss() - rss,
        }
        say(f"{name}: {found}")


class Replica:
    """One replica in this process, without API and roles."""

    def __init__(self, size: Size, store: SealedStore, directory: Path) -> None:
        keys = Keys()
        self.size = size
        self.store = store
        self.registry = Registry(store, keys)
        self.share = Share(store, keys)
        self.units = Units()
        record = size.members[size.index]
        self.member = Member(store, keys.root, record, self.units, MemberOptions(ttl_s=60.0))
        authority = CertificateAuthority.open(str(directory))
        # Nobody connects to the port; no node falls silent while others are looked at.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        config = GatewayConfig(host="127.0.0.1", port=0, heartbeat_s=600.0)
        self.gateway = Gateway(self.registry, self.share, self.member, authority, context, config)
        self.units.attach(self.gateway, None, None)
        self.leases: dict[int, int] = {}

    async def register_others(self) -> None:
        """The other replicas' records, under leases that only `lose` ends."""
        keys = UnitKeys(CELL)
        for n, record in enumerate(self.size.members):
            if n != self.size.index:
                lease = self.leases[n] = await self.store.grant(LEASE_S)
                await self.store.txn([], [Put(keys.member(record.id), msgspec.json.encode(record), lease)])

    async def lose(self, n: int) -> None:
        """A replica is gone, and its lease has ended."""
        await self.store.revoke(self.leases.pop(n))

    async def until_serving(self, slots: set[int]) -> None:
        while not slots <= self.gateway.slots.serving:
            await asyncio.sleep(0.005)


class Measured:
    """The phases of one replica's life."""

    def __init__(self, replica: Replica, costs: Costs) -> None:
        self.replica, self.costs, self.size = replica, costs, replica.size
        self.gateway = replica.gateway
        self.net = costs.net = Net(replica.gateway)
        self.own, self.gained = self.size.slots(replica.store.identity.slots)
        by_slot = self.size.fleet().numbers()
        self.mine = [n for slot in sorted(self.own) for n in by_slot[slot]]
        self.theirs = [n for slot in sorted(self.gained) for n in by_slot[slot]]
        self._rng = random.Random(1)

    async def run(self, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> dict[str, Any]:
        """The member is registered; `spawn` runs it from here on."""
        nodes, pods = len(self.mine), len(self.mine) * self.size.pods_each
        with self.costs.phase("load") as found:
            spawn(self.replica.member.run())
            await self.replica.until_serving(self.own)
            found |= {"slots": len(self.own), "nodes": nodes, "pods": pods}
        assert len(self.replica.share.pods.cache) == pods
        collect()
        with self.costs.phase("connect"):
            await self.net.connect(self.mine, lambda n: bytes.fromhex(EMPTY))
            await self._settled()
        assert (self.net.synced, self.net.acknowledged) == (nodes, pods)
        with self.costs.phase("run") as found:
            found |= await self._simulated()
        with self.costs.phase("come back") as found:
            held = self.net.cut(self.mine)
            await self.net.connect(self.mine, held.__getitem__)
            found["journals that were not simulated"] = self.net.resent - nodes
            await self._settled()
        with self.costs.phase("take over") as found:
            found |= await self._take_over()
        return self.costs.found

    async def _settled(self) -> None:
        """Everything is written, and nothing is on its way."""
        await self.net.quiet()
        settled = asyncio.ensure_future(self.gateway.upstream.settled())
        await self.net.until(settled.done)
        await self.net.quiet()

    async def _simulated(self) -> dict[str, Any]:
        """Seconds of a fleet's life, one after the other as fast as they go: heartbeats, pods that users change, statuses."""
        links = [self.net.links[n] for n in self.mine]
        every, at = math.ceil(len(links) / HEARTBEAT_S), 0
        each = max(1, round(len(links) * CHANGES_PER_NODE_S))
        changed = [(n, k) for n in self.mine for k in range(self.size.pods_each)]
        changed = self._rng.sample(changed, min(len(changed), each * self.size.seconds))
        beats = sent = 0
        before = self.net.acknowledged, self.net.stored, self.net.pongs
        for second in range(self.size.seconds):
            for _ in range(every):
                self.net.beat(links[at % len(links)])
                at += 1
                if not at % 64:
                    await self.net.quiet()
            beats += every
            some = changed[second * each : (second + 1) * each]
            for n, k in some:
                status = {**running_status(), "message": f"{second}"}
                self.net.report(self.net.links[n], f"pod/{NAMESPACE}/{pod_name(n, k)}/{uid(n, k)}", status)
                sent += 1
            for first in range(0, len(some), WRITES_AT_ONCE):
                writes = (self._change(n, k, second) for n, k in some[first : first + WRITES_AT_ONCE])
                await asyncio.gather(*writes)
                await self.net.quiet()
        wanted = before[0] + sent, before[1] + sent, before[2] + beats
        await self.net.until(
            lambda: (
                (self.net.acknowledged, self.net.stored, self.net.pongs) >= wanted
                and self.net.acknowledged >= wanted[0]
                and self.net.stored >= wanted[1]
            )
        )
        return {"simulated s": self.size.seconds, "heartbeats": beats, "changes": sent, "statuses": sent}

    async def _change(self, n: int, k: int, second: int) -> None:
        def apply(obj: dict[str, Any]) -> dict[str, Any]:
            obj["metadata"]["annotations"]["changed"] = str(second)
            return obj

        await self.replica.registry.mutate(PODS, NAMESPACE, pod_name(n, k), apply)

    async def _take_over(self) -> dict[str, Any]:
        """Another replica's lease has ended: until its slots that come here are served, and until their nodes are."""
        began = time.monotonic()
        await self.replica.lose(self.size.lost)
        await self.replica.until_serving(self.gained)
        served_s = time.monotonic() - began
        # What the node's last owner has sent is what this one would send.
        docs, away_s = self.gateway.desired, time.thread_time()
        held = {
            n: bytes.fromhex(digest_of({k: d.version for k, d in docs.of(node_name(n)).items()}))
            for n in self.theirs
        }
        self.net.away_s += time.thread_time() - away_s
        resent, began = self.net.resent, time.monotonic()
        await self.net.connect(self.theirs, held.__getitem__)
        assert self.net.resent == resent, "a node that missed nothing was sent something"
        return {
            "slots": len(self.gained),
            "nodes": len(self.theirs),
            "pods": len(self.theirs) * self.size.pods_each,
            "until served s": round(served_s, 3),
            "until nodes are welcomed s": round(time.monotonic() - began, 3),
        }


async def measure(size: Size, endpoints: list[str], etcd_pid: int, directory: Path) -> dict[str, Any]:
    """All phases of one replica. Raises what any part does."""
    costs = Costs(etcd_pid)
    async with AsyncExitStack() as stack:
        inner = await EtcdStore.open(endpoints)
        stack.push_async_callback(inner.close)
        settings = KeySettings("", str(directory / "replicas.key"), "")
        providers = await stack.enter_async_context(key_providers(settings))
        replica = Replica(size, await SealedStore.open(inner, Keys(), providers), directory / "ca")
        await replica.register_others()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(replica.share.run(), name="share")]
            await replica.gateway.start()
            collect()
            idle = costs.rss()
            measured = Measured(replica, costs)
            await replica.member.start()
            try:
                async with asyncio.timeout(WAIT_S):
                    found = await measured.run(lambda job: running.append(tasks.create_task(job)))
            finally:
                await replica.gateway.stop()
                for task in running:
                    task.cancel()
    return {"idle bytes": idle, "link bytes": measured.net.link_bytes(), "phases": found}


def main(spec: dict[str, Any]) -> None:
    """Prints the figures, one JSON document."""
    endpoints, pid, directory = spec.pop("endpoints"), spec.pop("etcd"), Path(spec.pop("directory"))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(Size(**spec), endpoints, pid, directory))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
