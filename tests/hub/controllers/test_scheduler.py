"""The scheduler: decisions against a slow twin, words, and the driver on a real store."""

import random
import time
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.api.validation.pods import RUNTIME_LABEL
from hub.cache import Cache
from hub.controllers.capacity import Capacity, load_of
from hub.controllers.scheduling import Unfit, decide, demand_of
from hub.objects import NODES, PODS, NodeView
from tests.hub.controllers.kit import node, pod, running

Object = dict[str, Any]


def view(obj: Object) -> NodeView:
    cache: Cache[NodeView] = Cache(NODES, {})
    return cache.entry(("", obj["metadata"]["name"]), "-", 1, orjson.dumps(obj)).view


def capacity(*nodes: Object) -> Capacity:
    table = Capacity()
    for obj in nodes:
        table.set_node(view(obj))
    return table


def place(table: Capacity, obj: Object) -> str | Unfit:
    return decide(demand_of(orjson.dumps(obj)), table)


def message(table: Capacity, obj: Object) -> str:
    where = place(table, obj)
    assert isinstance(where, Unfit)
    return where.message


def tainted(name: str, key: str, value: str = "", effect: str = "NoSchedule", **fields: Any) -> Object:
    obj = node(name, **fields)
    obj["spec"]["taints"] = [{"key": key, "value": value, "effect": effect}]
    return obj


def affine(*terms: Object, preferred: list[Object] | None = None) -> Object:
    out: Object = {}
    if terms:
        out["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": list(terms)}
    if preferred:
        out["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"nodeAffinity": out}


def test_why_no_node_fits_is_told_in_kubernetes_words() -> None:
    table = capacity(tainted("a", "dedicated", "tills"), node("b"), node("c"))
    text = message(table, pod("p", requests={"cpu": "5", "memory": "9Gi"}))
    assert text == (
        "0/3 nodes are available: 1 node(s) had untolerated taint {dedicated: tills}, 2 Insufficient cpu, "
        "2 Insufficient memory."
    )
    assert message(capacity(), pod("p")) == "no nodes available to schedule pods"
    cordoned = node("d")
    cordoned["spec"]["unschedulable"] = True
    assert message(capacity(cordoned), pod("p")) == "0/1 nodes are available: 1 node(s) were unschedulable."
    assert (
        message(capacity(node("d")), pod("p", nodeSelector={"disk": "ssd"}))
        == "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    )
    assert message(capacity(node("d", pods="0")), pod("p")) == "0/1 nodes are available: 1 Too many pods."


def test_a_pod_goes_to_a_node_with_its_runtime_only() -> None:
    host = node("host", labels={RUNTIME_LABEL: "process"})
    engine = node("engine", labels={RUNTIME_LABEL: "container"})
    image, process = pod("image"), pod("process")
    process["metadata"]["labels"] = {RUNTIME_LABEL: "process"}
    assert place(capacity(host, engine), image) == "engine"
    assert place(capacity(host, engine), process) == "host"
    assert message(capacity(host), image) == "0/1 nodes are available: 1 node(s) had no container runtime."
    assert message(capacity(engine), process) == "0/1 nodes are available: 1 node(s) had no process runtime."
    assert place(capacity(node("silent")), image) == "silent"


def test_a_node_gets_nothing_between_its_condition_and_its_taint() -> None:
    silent = node("a")
    silent["status"]["conditions"] = []
    text = "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, "
    assert message(capacity(silent, node("b", ready="Unknown")), pod("p")) == (
        text + "1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
    )
    returned = tainted("c", "node.kubernetes.io/unreachable")
    assert place(capacity(returned), pod("p")) == "c"


def test_what_is_not_supported_keeps_the_pod_pending_by_name() -> None:
    anti = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}
    assert "podAntiAffinity" in message(capacity(node("a")), pod("p", affinity=anti))
    claim = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    assert 'persistentvolumeclaim "data" not found' in message(capacity(node("a")), pod("p", volumes=claim))


def test_affinity_operators_choose_the_nodes_that_kubernetes_would() -> None:
    table = capacity(node("a", labels={"gen": "3", "zone": "x"}), node("b", labels={"gen": "7"}))
    for expression, wanted in (
        ({"key": "gen", "operator": "Gt", "values": ["5"]}, "b"),
        ({"key": "gen", "operator": "Lt", "values": ["5"]}, "a"),
        ({"key": "zone", "operator": "Exists"}, "a"),
        ({"key": "zone", "operator": "DoesNotExist"}, "b"),
        ({"key": "zone", "operator": "NotIn", "values": ["x"]}, "b"),
        ({"key": "gen", "operator": "In", "values": ["3", "4"]}, "a"),
    ):
        assert place(table, pod("p", affinity=affine({"matchExpressions": [expression]}))) == wanted
    pin = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}
    assert place(table, pod("p", affinity=affine(pin))) == "b"
    liking = [{"weight": 5, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}]
    assert place(table, pod("p", affinity=affine(preferred=liking))) == "a"
    assert isinstance(place(table, pod("p", affinity=affine({}))), Unfit), "an empty term matches nothing"


def test_tolerations_admit_and_preferences_avoid() -> None:
    table = capacity(tainted("a", "k", "v"))
    assert isinstance(place(table, pod("p")), Unfit)
    for toleration in (
        {"operator": "Exists"},
        {"key": "k", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "k", "value": "v"},
    ):
        assert place(table, pod("p", tolerations=[toleration])) == "a"
    assert isinstance(place(table, pod("p", tolerations=[{"key": "k", "value": "other"}])), Unfit)
    soft = capacity(tainted("a", "k", effect="PreferNoSchedule"), node("b", cpu="1"))
    assert place(soft, pod("p")) == "b"


def test_host_ports_conflict_by_protocol_and_address() -> None:
    def with_port(name: str, **port: Any) -> Object:
        obj = pod(name)
        obj["spec"]["containers"][0]["ports"] = [{"containerPort": 1, "hostPort": 80, **port}]
        return obj

    table = capacity(node("a"))
    table.add_pod("u1", "a", load_of(orjson.dumps(with_port("x", hostIP="10.0.0.1"))))
    assert isinstance(place(table, with_port("y")), Unfit)
    assert isinstance(place(table, with_port("y", hostIP="10.0.0.1")), Unfit)
    assert place(table, with_port("y", hostIP="10.0.0.2")) == "a"
    assert place(table, with_port("y", protocol="UDP")) == "a"
    assert table.drop_pod("u1")
    assert place(table, with_port("y")) == "a"


def test_init_containers_and_sidecars_count_as_kubernetes_counts_them() -> None:
    obj = pod("p", requests={"cpu": "500m"})
    obj["spec"]["initContainers"] = [
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
        {"name": "init", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
    ]
    obj["spec"]["overhead"] = {"cpu": "10m"}
    assert load_of(orjson.dumps(obj)).requests == {"cpu": 1110, "memory": 1 << 30}


# -- the twin -----------------------------------------------------------------------------------------------------

KEYS, VALUES = ["k", "l"], ["1", "2"]
taints = st.lists(
    st.builds(
        lambda k, v, e: {"key": k, "value": v, "effect": e},
        st.sampled_from(KEYS),
        st.sampled_from(VALUES),
        st.sampled_from(["NoSchedule", "NoExecute", "PreferNoSchedule"]),
    ),
    max_size=2,
)
nodes = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)),
        taints,
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=5,
)
pods = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=1),
        st.lists(
            st.builds(
                lambda k, op, v: {"key": k, "operator": op, **({"value": v} if op == "Equal" else {})},
                st.sampled_from(KEYS),
                st.sampled_from(["Equal", "Exists"]),
                st.sampled_from(VALUES),
            ),
            max_size=2,
        ),
    ),
    max_size=8,
)


def twin_fits(wanted: Object, on: Object, others: list[Object]) -> bool:
    """Straight from the documentation, over whole objects."""
    spec = wanted["spec"]
    if on["spec"].get("unschedulable"):
        return False
    for taint in on["spec"]["taints"]:
        tolerated = any(
            t["key"] == taint["key"] and (t["operator"] == "Exists" or t["value"] == taint["value"])
            for t in spec["tolerations"]
        )
        if taint["effect"] != "PreferNoSchedule" and not tolerated:
            return False
    labels = on["metadata"]["labels"]
    if any(labels.get(k) != v for k, v in spec["nodeSelector"].items()):
        return False

    def cpu(p: Object) -> int:
        return int(p["spec"]["containers"][0].get("resources", {}).get("requests", {}).get("cpu", "0"))

    if cpu(wanted) == 0:
        return True
    return sum(map(cpu, others)) + cpu(wanted) <= int(on["status"]["allocatable"]["cpu"])


@settings(max_examples=150, deadline=None)
@given(nodes, pods)
def test_a_pod_is_placed_exactly_where_a_slow_twin_says_it_fits(
    some_nodes: list[Any], some_pods: list[Any]
) -> None:
    world: list[Object] = []
    for n, (labels, held, cpu, cordoned) in enumerate(some_nodes):
        obj = node(f"n{n}", labels=labels, cpu=str(cpu))
        obj["spec"] = {"taints": held, "unschedulable": cordoned}
        world.append(obj)
    table = capacity(*world)
    bound: dict[str, list[Object]] = {obj["metadata"]["name"]: [] for obj in world}
    for n, (cpu, selector, tolerations) in enumerate(some_pods):
        obj = pod(f"p{n}", requests={"cpu": str(cpu)} if cpu else None)
        obj["spec"].update(nodeSelector=selector, tolerations=tolerations)
        fits = {o["metadata"]["name"] for o in world if twin_fits(obj, o, bound[o["metadata"]["name"]])}
        where = place(table, obj)
        if isinstance(where, Unfit):
            assert not fits
        else:
            assert where in fits
            assert place(table, obj) == where, "the same table and pod give the same node"
            bound[where].append(obj)
            table.add_pod(f"u{n}", where, load_of(orjson.dumps(obj)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=40))
def test_the_table_equals_the_sum_over_its_pods_whatever_came_and_went(moves: list[Any]) -> None:
    table = capacity(*(node(f"n{n}") for n in range(3)))
    held: dict[str, str] = {}
    loads = [load_of(orjson.dumps(pod("p", requests={"cpu": str(n + 1)}))) for n in range(6)]
    for uid, where, comes in moves:
        if comes:
            table.add_pod(str(uid), f"n{where}", loads[uid])
            held[str(uid)] = f"n{where}"
        else:
            assert table.drop_pod(str(uid)) is (held.pop(str(uid), None) is not None)
    for n in range(4):
        mine = [int(u) for u, w in held.items() if w == f"n{n}"]
        room = table.rooms.get(f"n{n}")
        assert (room.pods if room else 0) == len(mine)
        assert (room.requested.get("cpu", 0) if room else 0) == sum(1000 * (u + 1) for u in mine)


# -- the driver ---------------------------------------------------------------------------------------------------


def scheduled(obj: Object) -> Object:
    return next(c for c in obj["status"]["conditions"] if c["type"] == "PodScheduled")


async def test_a_pod_that_fits_nowhere_says_so_and_is_bound_when_a_node_comes() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till"))
        await hub.settle()
        held = await hub.get(PODS, "till")
        assert scheduled(held)["status"] == "False"
        assert scheduled(held)["reason"] == "Unschedulable"
        assert await hub.events("FailedScheduling") == ["no nodes available to schedule pods"]
        await hub.node("edge")
        await hub.settle()
        held = await hub.get(PODS, "till")
        assert held["spec"]["nodeName"] == "edge"
        assert scheduled(held)["status"] == "True"
        assert await hub.events("Scheduled") == ["Successfully assigned shop/till to edge"]


async def test_a_pod_that_waits_for_room_is_bound_when_another_goes() -> None:
    async with running() as hub:
        await hub.node("edge", cpu="1")
        await hub.create(PODS, pod("first", requests={"cpu": "1"}))
        await hub.settle()
        await hub.create(PODS, pod("second", requests={"cpu": "1"}))
        await hub.settle()
        assert "Insufficient cpu" in scheduled(await hub.get(PODS, "second"))["message"]
        await hub.delete(PODS, "first")
        await hub.settle()
        assert (await hub.get(PODS, "second"))["spec"]["nodeName"] == "edge"


async def test_a_node_that_is_not_ready_gets_no_pods_until_it_returns() -> None:
    async with running() as hub:
        await hub.node("edge", ready="Unknown")
        await hub.settle()
        await hub.create(PODS, pod("till"))
        await hub.settle()
        text = scheduled(await hub.get(PODS, "till"))["message"]
        assert (
            text
            == "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
        )

        def back(obj: Object) -> None:
            obj["status"]["conditions"][0]["status"] = "True"

        await hub.edit(NODES, "edge", back)
        await hub.settle()
        assert (await hub.get(PODS, "till"))["spec"]["nodeName"] == "edge"


async def test_pods_of_other_schedulers_and_gated_pods_are_left_alone() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(PODS, pod("other", schedulerName="mine"))
        await hub.create(PODS, pod("gated", schedulingGates=[{"name": "wait"}]))
        await hub.settle()
        assert "nodeName" not in (await hub.get(PODS, "other"))["spec"]
        assert scheduled(await hub.get(PODS, "gated"))["reason"] == "SchedulingGated"
        await hub.edit(PODS, "gated", lambda p: p["spec"].pop("schedulingGates"))
        await hub.settle()
        assert (await hub.get(PODS, "gated"))["spec"]["nodeName"] == "edge"


async def test_500_pods_over_20_nodes_never_exceed_what_a_node_offers() -> None:
    async with running() as hub:
        for n in range(20):
            await hub.node(f"edge-{n:02}", cpu="3", memory="1Gi")
        rng = random.Random(7)
        for n in range(500):
            cpu = rng.choice(["50m", "100m", "150m"])
            await hub.create(PODS, pod(f"till-{n}", requests={"cpu": cpu}))
        started = time.process_time()
        await hub.settle()
        spent = time.process_time() - started
        used: dict[str, int] = {}
        for obj in await hub.all(PODS):
            where = obj["spec"]["nodeName"]
            used[where] = used.get(where, 0) + int(
                obj["spec"]["containers"][0]["resources"]["requests"]["cpu"].removesuffix("m")
            )
        assert len(used) == 20
        assert max(used.values()) <= 3000
        print(f"500 pods bound, run and recorded in {spent:.2f} s of CPU")
