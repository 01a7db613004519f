"""The share of a Kubernetes cluster: held against a slow twin, and through whatever an API server may do."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub import devices
from hub.cache import Entry
from hub.desired import Desired
from hub.devices import device_key
from hub.documents import config_key, pod_key, references, render_config, render_pod, render_space
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import EDGE_LABEL, SITE_LABEL
from hub.kubernetes.services import kept
from hub.kubernetes.share import KubeShare
from hub.mirror import Delta
from hub.objects import CONFIGMAPS, ENDPOINTSLICES, SERVICES
from shards.ring import slot_of
from tests.hub.channel_fakes import version
from tests.hub.hub_fixture import device, until
from tests.hub.kubernetes.direct import DirectClient
from tests.hub.kubernetes.fake_api import FakeApi, Object

DEADLINE_S = 30.0
SLOTS = 8
NAMES = [f"n{i}" for i in range(SLOTS)]


class Replay:
    """A subscriber that keeps its own copy from deltas alone, and finds what is lost, doubled or out of order."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Entry[Any]] = {}
        self.deleted: list[str] = []

    def __call__(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        for delta in deltas:
            key, held = delta.entry.key, self.held.get(delta.entry.key)
            assert delta.old is held
            if delta.type == "DELETED":
                assert held is not None
                del self.held[key]
                self.deleted.append(held.meta.uid)
            else:
                assert (held is None) == (delta.type == "ADDED")
                assert held is None or held.revision < delta.entry.revision
                self.held[key] = delta.entry

    def forgotten(self, entries: Sequence[Entry[Any]]) -> None:
        for entry in entries:
            assert self.held.pop(entry.key) is entry


class World:
    """An API server, a replica's share of it, and the documents that follow from that."""

    def __init__(self, api: FakeApi, client: Any) -> None:
        self.api = api
        self.share = KubeShare(client, SLOTS, watches_max=6)
        self.told: list[tuple[str, str]] = []
        self.desired = Desired(
            self.share.pods,
            self.share.configmaps,
            self.share.secrets,
            self.changed,
            self.advanced,
            namespaced=self.share.namespaced,
            devices=self.share.devices,
        )
        self.sessions: dict[str, dict[str, str]] = {}
        """What nodes hold that have said HELLO: all of it then, and since then what they were told."""
        self.dirty: set[tuple[str, str]] = set()
        self.pods, self.nodes = Replay(), Replay()
        self.share.pods.subscribe(self.pods, self.pods.forgotten)
        self.share.nodes.subscribe(self.nodes, self.nodes.forgotten)
        self.deleted: set[str] = set()
        self.slots: dict[str, int] = {}

    def greet(self) -> None:
        """Nodes whose owner is ready say HELLO; those of another owner have gone there."""
        for name, slot in self.slots.items():
            here = self.share.loaded(slot) and self.share.nodes.cache.get("", name) is not None
            if not here:
                self.sessions.pop(name, None)
            elif name not in self.sessions and self.desired.ready(name):
                self.sessions[name] = self.documents(name)

    def documents(self, node: str) -> dict[str, str]:
        return {key: document.version for key, document in self.desired.of(node).items()}

    def advanced(self) -> None:
        for node, key in self.dirty:
            held = self.sessions.get(node)
            if held is None:
                continue
            document = self.desired.of(node).get(key)
            if document is not None:
                held[key] = document.version
            elif not self.desired.withhold(node, key):
                held.pop(key, None)
        self.dirty.clear()

    def changed(self, node: str, key: str) -> None:
        self.told.append((node, key))
        self.dirty.add((node, key))
        self.check_nothing_is_taken_away(node)  # others are told after it
        if key.startswith("pod/") and key in self.desired.of(node):
            # Its containers are told of Services when they start.
            namespace = key.split("/")[1]
            assert all(kind.known(namespace) for kind in self.share.namespaced)

    def check_nothing_is_taken_away(self, node: str = "") -> None:
        """The ConfigMap `c0` is never deleted: no loaded node that uses it may be told otherwise."""
        key = "configmap/default/c0"
        for name, slot in self.slots.items():
            if not self.share.loaded(slot) or self.share.nodes.cache.get("", name) is None:
                continue
            if node and node != name:
                continue
            users = [p for p in self.share.pods.cache.find("node", name) if b'"c0"' in p.raw()]
            if users and key not in self.desired.of(name):
                # Before the deltas of this moment have reached `desired`, it knows nothing of the pod.
                known = [p for p in users if pod_key(*p.key, p.meta.uid) in self.desired.of(name)]
                assert not known or (self.desired.withhold(name, key) and not self.desired.ready(name))

    def check_no_device_is_missing(self) -> None:
        """As of pods, below."""
        reached = self.share._device_part.reached
        then, now = self.api.state_at("devices", reached), self.api.objects.get("devices", {})
        for key, found in then.items():
            entry = self.share.nodes.cache.get("", found["spec"]["nodeName"])
            if entry is None or not self.share.loaded(int(entry.partition)):
                continue
            if key in now and now[key]["metadata"]["uid"] == found["metadata"]["uid"]:
                assert self.share.devices.cache.get(*key) is not None, (key, reached)

    def check_no_pod_is_missing(self) -> None:
        """A Node that is known has all its pods that were there when the pods' watch was where it is, and are there
        still."""
        reached = self.share._pod_part.reached
        then, now = self.api.state_at("pods", reached), self.api.objects.get("pods", {})
        for key, pod in then.items():
            node = pod["spec"]["nodeName"]
            entry = self.share.nodes.cache.get("", node)
            if entry is None or not self.share.loaded(int(entry.partition)):
                continue
            if key in now and now[key]["metadata"]["uid"] == pod["metadata"]["uid"]:
                assert self.share.pods.cache.get(*key) is not None, (key, node, reached)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for slot, name in enumerate(NAMES):
            self.put_node(name, slot)
            self.api.put("pods", using(f"first-{name}", name, "c0"))
        self.api.put("nodes", {"metadata": {"name": "cloud-1", "labels": {}}})
        self.api.put("configmaps", config("c0"))
        self.api.put("services", service("kubernetes", "default"))
        self.desired.start()
        async with asyncio.TaskGroup() as tasks:  # what ends the share ends the test
            running = tasks.create_task(self.share.run())
            yield
            running.cancel()

    def put_node(self, name: str, slot: int, edge: str = "true") -> Object:
        """An edge Node in this slot; its site is chosen to lie there."""
        site = next(s for s in (f"{name}-{i}" for i in range(1000)) if slot_of(s, SLOTS) == slot)
        self.slots[name] = slot
        labels = {SITE_LABEL: site, EDGE_LABEL: edge}
        return self.api.put("nodes", {"metadata": {"name": name, "labels": labels}})

    def expected(self, loaded: set[int]) -> Any:
        """From the API server alone: what is cached, and the documents of every node."""
        nodes: dict[str, int] = {}
        for (_, name), node in self.api.objects["nodes"].items():
            if node["metadata"]["labels"].get(EDGE_LABEL) == "true" and self.slots[name] in loaded:
                nodes[name] = int(node["metadata"]["resourceVersion"])
        pods: dict[tuple[str, str], int] = {}
        documents: dict[str, dict[str, str]] = {name: {} for name in nodes}
        for key, pod in self.api.objects.get("pods", {}).items():
            if pod["spec"]["nodeName"] in nodes:
                pods[key] = int(pod["metadata"]["resourceVersion"])
                self._add_documents(pod, documents[pod["spec"]["nodeName"]])
        for found in self.api.objects.get("devices", {}).values():
            if found["spec"]["nodeName"] in nodes:
                meta = found["metadata"]
                key = device_key(meta["namespace"], meta["name"], meta["uid"])
                documents[found["spec"]["nodeName"]][key] = version(devices.render(found))
        return nodes, pods, documents

    def _add_documents(self, pod: Object, documents: dict[str, str]) -> None:
        meta = pod["metadata"]
        documents[pod_key(meta["namespace"], meta["name"], meta["uid"])] = version(render_pod(pod))
        for key in references(meta["namespace"], pod["spec"]):
            found = self.api.objects["configmaps"].get(("default", key.split("/")[2]))
            if found is not None:
                documents[key] = version(render_config(CONFIGMAPS, found))
        for res in (SERVICES, ENDPOINTSLICES):
            for (namespace, name), found in self.api.objects.get(res.resource, {}).items():
                if namespace == meta["namespace"] or (namespace, name) == ("default", "kubernetes"):
                    trimmed = orjson.loads(kept(res, orjson.dumps(found)))
                    documents[config_key(res, namespace, name)] = version(render_space(res, trimmed))

    def actual(self) -> Any:
        nodes = {entry.key[1]: entry.revision for entry in self.share.nodes.cache}
        pods = {
            entry.key: entry.revision
            for entry in self.share.pods.cache
            if entry.view.spec.nodeName in nodes or entry.key not in self.api.objects.get("pods", {})
        }
        return nodes, pods, {n: {k: d.version for k, d in self.desired.of(n).items()} for n in nodes}

    async def check(self, loaded: set[int]) -> None:
        expected = self.expected(loaded)
        try:
            await until(lambda: self.actual() == expected, DEADLINE_S, "what the API server holds")
        except AssertionError:
            assert self.actual() == expected
        assert {slot for slot in range(SLOTS) if self.share.loaded(slot)} == loaded
        for replay, mirror in ((self.pods, self.share.pods), (self.nodes, self.share.nodes)):
            assert replay.held == {e.key: e for e in mirror.cache}
            assert set(replay.deleted) <= self.deleted, "only what was deleted is said to be"
        used = {key for entry in self.share.pods.cache for key in refs(entry)}
        assert len(self.share.configmaps) == len(used)
        assert len(self.share.configmaps.cache) <= len(used)
        spaces = {e.key[0] for e in self.share.pods.cache}
        for kind in self.share.namespaced:
            assert {e.key[0] for e in kind.cache} <= spaces | ({"default"} if spaces else set())
        names = [e.key[1] for e in self.share.nodes.cache]
        await until(lambda: all(map(self.desired.ready, names)), DEADLINE_S)
        assert not self.dirty, "what has changed waits for nobody"
        self.greet()
        assert self.sessions == {name: self.documents(name) for name in names}, "nodes were told of all"


def refs(entry: Entry[Any]) -> frozenset[str]:
    return references(entry.key[0], entry.obj()["spec"])


def config(name: str, **data: str) -> Object:
    return {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def service(name: str, namespace: str, at: int = 0) -> Object:
    spec = {"clusterIP": "10.0.0.1", "ports": [{"port": 80}], "sessionAffinity": str(at)}
    return {"metadata": {"name": name, "namespace": namespace, "annotations": {"at": str(at)}}, "spec": spec}


def endpoints(name: str, namespace: str, at: int) -> Object:
    ready = {"addresses": [f"10.1.0.{at % 3}"], "conditions": {"ready": True}}
    ending = {"addresses": [f"10.1.1.{at}"], "conditions": {"ready": False}}
    labels = {"kubernetes.io/service-name": name, "at": str(at)}
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [ending, ready],
    }


def known_or_new(known: Object | None, name: str, node: str) -> Object:
    """A device as its next write has it: with another desired value, or a report alone."""
    made = known or device(name, node)
    generation = made["metadata"]["generation"]
    if known is not None and generation % 2:
        return {**made, "status": {"observedGeneration": generation}}
    meta = {**made["metadata"], "generation": generation + 1}
    return {**made, "metadata": meta, "spec": {**made["spec"], "desired": {"setpoint": 5 + generation % 80}}}


def using(name: str, node: str, *configs: str) -> Object:
    envs = [{"configMapRef": {"name": one}} for one in configs]
    containers = [{"name": "main", "image": "x", "envFrom": envs}]
    namespace = space_of(name)
    meta = {"name": name, "namespace": namespace, "managedFields": [{"manager": "x", "fieldsV1": {"a": 1}}]}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": meta,
        "spec": {"nodeName": node, "containers": containers},
    }


def space_of(name: str) -> str:
    if name.startswith("late"):
        return "late"
    return "shop" if name in ("p4", "p5") else "default"


KINDS = ["device", "device", "undevice"]
KINDS += ["service", "service", "unservice", "slice", "slice", "unslice"]
KINDS += ["pod", "pod", "unpod", "repod", "config", "unconfig", "node", "unnode", "move", "unlabel"]
KINDS += ["node", "node", "move", "load", "load", "drop", "compact", "cut", "down", "up", "throttle", "paged"]
OPS = st.tuples(
    st.sampled_from(KINDS),
    st.integers(0, 5),
    st.sets(st.integers(0, SLOTS - 1), max_size=SLOTS),
    st.integers(0, 12),
)


def act(world: World, op: str, a: int, slots: set[int]) -> None:
    """A write of somebody else, or a fault."""
    api, pods = world.api, world.api.objects.setdefault("pods", {})
    space = space_of(f"p{a}")
    held = pods.get((space, f"p{a}"))
    of_space = ("shop", "default")[a % 2], f"s{a % 3}"
    if op == "service":
        api.put("services", service(of_space[1], of_space[0], len(slots)))
    elif op == "slice":
        api.put("endpointslices", endpoints(of_space[1], of_space[0], len(slots)))
    elif op in ("unservice", "unslice"):
        resource = "services" if op == "unservice" else "endpointslices"
        if of_space in api.objects.get(resource, {}):
            api.remove(resource, *of_space)
    elif op == "pod":
        if held is None:
            node = [*NAMES, "cloud-1"][len(slots) % (SLOTS + 1)]
            # ConfigMaps are in one namespace alone.
            api.put("pods", using(f"p{a}", node, *["c0", "c1"][: a % 3 if a < 4 else 0]))
        else:
            api.put("pods", {**held, "status": {"phase": str(api.revision)}})
    elif op in ("unpod", "repod") and held is not None:
        world.deleted.add(held["metadata"]["uid"])
        api.remove("pods", space, f"p{a}")
        if op == "repod":
            api.put("pods", using(f"p{a}", NAMES[len(slots) % SLOTS], *["c0"][: a < 4]))
    elif op == "device":
        known = api.objects.get("devices", {}).get(("default", f"d{a}"))
        api.put("devices", known_or_new(known, f"d{a}", NAMES[len(slots) % SLOTS]))
    elif op == "undevice" and ("default", f"d{a}") in api.objects.get("devices", {}):
        api.remove("devices", "default", f"d{a}")
    elif op == "config":
        api.put("configmaps", config(f"c{a % 2}", at=str(api.revision)))
    elif op == "unconfig" and ("default", "c1") in api.objects["configmaps"]:
        api.remove("configmaps", "default", "c1")
    elif op in ("node", "unnode"):
        found = api.objects["nodes"].get(("", NAMES[a]))
        if found is not None:
            world.deleted.add(found["metadata"]["uid"])
            api.remove("nodes", "", NAMES[a])
        if op == "node":  # made anew, in another slot
            world.put_node(NAMES[a], (a + len(slots)) % SLOTS)
    elif op in ("move", "unlabel"):
        found = api.objects["nodes"].get(("", NAMES[a]))
        if found is not None and op == "move":
            world.put_node(NAMES[a], (a + len(slots)) % SLOTS)
        elif found is not None:  # no edge node any more, for the watch it is gone
            world.deleted.add(found["metadata"]["uid"])
            world.put_node(NAMES[a], world.slots[NAMES[a]], "false")
    elif op == "compact":
        api.compact()
        api.cut_watches()
    elif op == "cut":
        api.cut_watches()
    elif op == "down":
        api.down = True
        api.cut_watches()
    elif op == "up":
        api.down = False
    elif op == "throttle":
        api.throttle = a
    elif op == "paged":
        api.watch_list = not api.watch_list


async def play(world: World, ops: Sequence[Any]) -> None:
    wanted: set[int] = set()
    loads: list[asyncio.Task[None]] = []
    async with world.running():
        for op, a, slots, turns in ops:
            if op == "load":
                wanted |= slots
                loads.append(asyncio.create_task(world.share.load(slots, 1)))
            elif op == "drop":
                await asyncio.sleep(0)  # loads that were asked for before have begun
                wanted -= slots
                world.share.drop(slots)
            else:
                act(world, op, a, slots)
            for _ in range(turns):
                await asyncio.sleep(0)
                world.check_nothing_is_taken_away()
                world.check_no_pod_is_missing()
                world.check_no_device_is_missing()
                world.greet()
        world.api.down, world.api.throttle = False, 0
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*loads)
        await world.check(wanted)
        # Nodes are connected now, and hear of what goes on; of pods in a namespace that nobody has heard of, too.
        world.api.put("services", service("s", "late"))
        for name in NAMES:
            world.api.put("pods", using(f"late-{name}", name))
        for op, a, slots, _ in ops[:8]:
            if op not in ("load", "drop"):
                act(world, op, a, slots)
                await asyncio.sleep(0)
        world.api.down, world.api.throttle = False, 0
        await world.check(wanted)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, and lists in many parts."""
    for name, value in {
        "hub.outage.FIRST_S": 0.001,
        "hub.outage.MAX_S": 0.005,
        "hub.kubernetes.following.FILE_AT_ONCE": 2,
        "hub.kubernetes.following.LIST_PAGE": 2,
        "hub.kubernetes.following.AGAIN_S": 0.001,
        "hub.kubernetes.parts.BY_NODE_MAX": 2,
        "hub.kubernetes.parts.PODS_PER_REQUEST": 3,
        "hub.kubernetes.reflector.LIST_PAGE": 2,
        "hub.kubernetes.reflector.PAUSE_FIRST_S": 0.001,
        "hub.kubernetes.reflector.PAUSE_MAX_S": 0.005,
        "hub.kubernetes.namespaced.LIST_PAGE": 2,
        "hub.kubernetes.references.PLAN_S": 0.001,
        "hub.kubernetes.references.TIDY_S": 0.005,
    }.items():
        patch.setattr(name, value)


@settings(max_examples=100, deadline=None)
@given(st.lists(OPS, max_size=30), st.integers(0, 2**32))
def test_a_share_is_what_a_slow_twin_reads_from_the_api_server_whatever_happens(
    ops: list[Any], seed: int
) -> None:
    async def run() -> None:
        api = FakeApi()
        api.cut = asyncio.Event()
        await play(World(api, DirectClient(api, seed)), ops)

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        asyncio.run(asyncio.wait_for(run(), 2 * DEADLINE_S))


async def test_over_https_a_share_follows_an_api_server_through_all_of_it(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    world = World(api, client)
    async with world.running():
        await world.share.load({0, 1, 2, 3}, 7)
        for i, slot in enumerate([0, 1, 2, 5, 7]):
            act(world, "pod", i, set(range(slot)))
        await world.check({0, 1, 2, 3})
        for fault in ("cut", "compact", "paged", "compact", "throttle"):
            act(world, fault, 3, set())
            act(world, "unpod", 1, set())
            act(world, "pod", 1, {0})
            act(world, "config", 0, set())
            await world.check({0, 1, 2, 3})
        act(world, "node", 1, set())
        world.share.drop({2})
        await world.share.load({5}, 8)
        await world.check({0, 1, 3, 5})
        watched = {name: n for name, n in api.watching.items() if n}
        spaces = {"services": 1, "endpointslices": 1}
        bound = {"nodes": 1, "pods": 1, "devices": 1}
        assert watched == {**bound, "configmaps": watched["configmaps"], **spaces}


async def test_who_owns_little_of_a_cluster_reads_its_own_nodes_pods_and_no_others(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("hub.kubernetes.parts.PODS_PER_REQUEST", 10)
    world = World(api, client)
    for i in range(40):
        api.put("pods", using(f"theirs-{i}", NAMES[5]))
    async with world.running():
        await world.share.load({0, 1}, 7)
        await world.share.load({2}, 7)
        await world.check({0, 1, 2})
        assert world.share.stats()["pods_foreign"] == 0
        assert pods_asked(api) == Counter(
            {"spec.nodeName=n0": 1, "spec.nodeName=n1": 1, "spec.nodeName=n2": 1}
        )

        # Where the watch has had a gap, all that is held is read again, and what went meanwhile is found out.
        api.put("pods", using("p0", "n0"))
        await world.check({0, 1, 2})
        world.deleted.add(api.remove("nodes", "", "n2")["metadata"]["uid"])
        await world.check({0, 1, 2})
        api.down = True
        api.cut_watches()
        for name in ("first-n1", "first-n2"):
            world.deleted.add(api.remove("pods", "default", name)["metadata"]["uid"])
        api.put("pods", using("p1", "n1"))
        api.compact()
        api.down = False
        await world.check({0, 1, 2})
        assert world.share.stats()["pods_foreign"] == 0
        assert all(asked == 2 for asked in pods_asked(api).values())

        # 7 nodes of 48 pods.
        await world.share.load(set(range(SLOTS)), 8)
        await world.check(set(range(SLOTS)))
        assert "" in pods_asked(api), "who has it all reads it in one list"


def pods_asked(api: FakeApi) -> Counter[str]:
    """Lists of pods, by their selectors; not those for one object, which tell how many there are."""
    return Counter(
        query.get("fieldSelector", "")
        for verb, resource, query in api.asked
        if verb == "GET" and resource == "pods" and query.get("limit") != "1"
    )


KEY = "device/default/boiler/u1"


async def test_a_cluster_without_devices_is_served_and_they_are_followed_once_the_kind_is_there(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("hub.kubernetes.devices.ABSENT_S", 0.01)
    api.absent.add("devices")
    world = World(api, client)
    async with world.running():
        await world.share.load({0, 1}, 1)
        assert not world.desired.withhold("n0", KEY), "what does not exist may be taken away"
        world.put_node("n8", 0)
        await until(lambda: world.share.nodes.cache.get("", "n8"), DEADLINE_S)
        api.put("devices", device("boiler", "n0", "u1"))
        api.absent.clear()
        await until(lambda: KEY in world.desired.of("n0"), DEADLINE_S)


async def test_a_hub_that_may_not_read_devices_takes_none_away_until_it_may(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("hub.kubernetes.devices.ABSENT_S", 0.01)
    api.forbidden.add("devices")
    api.put("devices", device("boiler", "n0", "u1"))
    world = World(api, client)
    async with world.running():
        await world.share.load({0, 1}, 1)
        gone = "device/default/gone/u2"
        assert world.desired.withhold("n0", KEY) and world.desired.withhold("n1", gone)
        api.forbidden.clear()
        await until(lambda: KEY in world.desired.of("n0"), DEADLINE_S)
        await until(lambda: ("n1", gone) in world.told, DEADLINE_S, "what was withheld is told now")
        assert not world.desired.withhold("n1", gone)
