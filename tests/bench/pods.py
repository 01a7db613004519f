"""What a lone hub's caches hold for a pod: the share's, with the documents made of it, and those of both roles.

    make bench ARGS=pods      # 6,000 pods, each on a node of its own: RSS of the process, and by `tracemalloc`
    python -m tests.bench.pods 20000 2>/dev/null   # another number, without the lines that hold the most

The caches are the real ones, fed by hand with what a pod's creation and its first status make of it: no store, no API and no
connection is counted. CPU and instructions are those of one such event in all caches, documents included.
"""

import gc
import os
import subprocess
import sys
import tracemalloc
import uuid
from typing import Any

import orjson

from hub.api import defaults
from hub.api.kinds import kind_of
from hub.cache import by_node, by_owner
from hub.controllers.run import CREWS
from hub.desired import Desired
from hub.mirror import Mirror
from hub.objects import PODS, Keys
from hub.roles import fleet_kin
from hub.share import Share
from hub.simulate.load import pod
from hub.simulate.node import running_status
from hub.store.memory import MemoryStore
from shards.kv import Event, KeyValue
from shards.ownership import CONTROLLERS, SCHEDULER
from tests.bench.meter import Instructions, Meter
from tests.bench.report import emit

COUNT = 6_000
WARM = 300
"""Pods before those that are counted: of them caches learn, and some are all that the first of a sort takes."""
SLOTS = 1024


class Caches:
    """Of one process, without its watches. `alike`: they share entries, as in a hub; `documents`: those of nodes are made."""

    def __init__(self, roles: tuple[str, ...], *, alike: bool, documents: bool = True) -> None:
        kin = fleet_kin() if alike else {}
        self._keys = Keys()
        self._share = Share(MemoryStore(), self._keys, kin)
        pods = self._share.pods
        self.desired = Desired(
            pods, self._share.configmaps, self._share.secrets, lambda node, key: None, lambda: None
        )
        if documents:
            self.desired.start()
        self._mirrors: list[Mirror[Any]] = [pods]
        for role in roles:
            crew = CREWS[role]
            indexers = {"owner": by_owner, "node": by_node} if crew.owners else {"node": by_node}
            mirror: Mirror[Any] = Mirror(PODS, indexers, crew.thin[PODS], kin=kin.get(PODS))
            if mirror.kin is not None:
                mirror.kin.join(mirror.cache)
            self._mirrors.append(mirror)
        self._revision = 0

    def fill(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.feed(self.events(number))

    def events(self, number: int) -> list[Event]:
        """A pod comes, and then its first status."""
        obj = pod(f"n-{number}-0", f"n-{number}", "bench", ["shared"])
        meta = {"namespace": "default", "uid": str(uuid.uuid4()), "creationTimestamp": "2026-11-21T18:00:00Z"}
        obj["metadata"] |= meta
        defaults.apply(kind_of(PODS).schema, obj)
        key = self._keys.object(PODS, f"{number % SLOTS:04d}", "default", f"n-{number}-0")
        made = []
        for status in ({}, running_status(["main"])):
            obj["status"] |= status
            self._revision += 1
            raw = bytes(memoryview(orjson.dumps(obj)))
            made.append(Event(key, KeyValue(key, raw, self._revision, self._revision), None))
        return made

    def feed(self, events: list[Event]) -> None:
        for event in events:
            assert event.kv is not None
            revision = event.kv.mod_revision
            for mirror in self._mirrors:
                mirror.advance(mirror.apply((event,), revision), revision)


def resident(name: str, caches: Caches, count: int) -> None:
    """What the caches take of the process, and of its time."""
    caches.fill(0, WARM)
    events = [event for number in range(count) for event in caches.events(WARM + number)]
    gc.collect()
    instructions, meter = Instructions(os.getpid()), Meter(os.getpid())
    instructions.start()
    began_s, rss_kb = meter.cpu_s(), meter.rss_kb()
    caches.feed(events)
    emit("pods", f"cpu_per_event_{name}", (meter.cpu_s() - began_s) * 1e6 / len(events), "us")
    counted = instructions.stop()
    if counted is not None:
        emit("pods", f"instructions_per_event_{name}", counted / 1e3 / len(events), "k")
    gc.collect()
    emit("pods", f"rss_per_pod_{name}_at_{count}", (meter.rss_kb() - rss_kb) * 1024 / count, "B")


def traced(name: str, caches: Caches, count: int) -> None:
    """What the caches have asked for, and the lines that did."""
    caches.fill(0, WARM)
    gc.collect()
    tracemalloc.start(1)
    before = tracemalloc.get_traced_memory()[0]
    caches.fill(WARM, count)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    emit("pods", f"bytes_per_pod_{name}_at_{count}", held / count, "B")
    for line in tracemalloc.take_snapshot().statistics("lineno")[:20]:
        where = "/".join(str(line.traceback[0]).split("/")[-3:])
        print(f"{line.size / count:8.0f} B {line.count / count:5.1f}  {where}", file=sys.stderr)


HOW = {"resident": resident, "traced": traced}
MEASURES = {
    "share": lambda: Caches((), alike=True),
    "share_and_roles_without_documents": lambda: Caches(
        (SCHEDULER, CONTROLLERS), alike=True, documents=False
    ),
    "share_and_roles_apart": lambda: Caches((SCHEDULER, CONTROLLERS), alike=False),
    "share_and_roles": lambda: Caches((SCHEDULER, CONTROLLERS), alike=True),
}


def main(count: int = COUNT) -> None:
    for name in MEASURES:
        for how in HOW:
            # Each in a process of its own: strings that they share, and tables that have grown, would be nobody's.
            asked = [sys.executable, "-m", "tests.bench.pods", str(count), name, how]
            subprocess.run(asked, check=True)


if __name__ == "__main__":
    count, *what = sys.argv[1:] or [str(COUNT)]
    if what:
        HOW[what[1]](what[0], MEASURES[what[0]](), int(count))
    else:
        main(int(count))
