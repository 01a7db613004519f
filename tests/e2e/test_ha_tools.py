"""The tools that judge several replicas, tried on one hub that is killed and frozen, and on histories that are wrong."""

import asyncio
import base64
import json
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from hub import kubeconfig
from hub.store.sqlite import SqliteStore
from security import tls
from tests.e2e.cluster import Hub, wait_for
from tests.e2e.convergence import unlike, unsettled, wanted
from tests.e2e.ha_api import AnyReplica
from tests.e2e.ha_load import CONFIGMAPS, PODS, HaLoad, unkept
from tests.e2e.history import Change, judge, judge_stored, read
from tests.servers.etcd import EtcdCluster
from tests.sim.ha_client import SimFleet

ROOT = "/cloudhub/default/"


class TracedHub(Hub):
    """A hub that signs its transactions."""

    def argv(self) -> list[str]:
        argv = super().argv()
        argv[argv.index("hub")] = "tests.e2e.traced_hub"
        return argv


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TracedHub]:
    made = TracedHub(tmp_path / "hub")
    made.start()
    yield made
    if made.process is not None:
        made.kill9()


@pytest.fixture
def fleet(hub: TracedHub, tmp_path: Path) -> Iterator[SimFleet]:
    made = SimFleet(
        tmp_path,
        count=12,
        edges=[hub.edge],
        token=hub.token("--pool", "sim", "--count", "12"),
        root_pem=kubeconfig.read(hub.kubeconfig).root_pem,
    )
    yield made
    made.close()


async def history_of(hub: TracedHub) -> list[Change]:
    """All revisions of a stopped hub's store."""
    store = await SqliteStore.open(str(hub.data_dir))
    try:
        head, found = await store.revision(), []
        async for batch in store.watch([(ROOT, ROOT[:-1] + "0")], 1):
            events = tuple((e.key.removeprefix(ROOT), e.kv.value if e.kv else None) for e in batch.events)
            if events:
                found.append(Change(batch.revision, events))
            if batch.revision >= head:
                return found
        raise AssertionError("the watch has ended")
    finally:
        await store.close()


def test_nothing_is_lost_or_doubled_while_one_hub_is_killed_and_frozen(
    hub: TracedHub, fleet: SimFleet
) -> None:
    fleet.wait_joined()
    wait_for(lambda: fleet.connected() == 12, "the fleet is connected", 60, fleet.log)
    found = kubeconfig.read(hub.kubeconfig)
    context = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)

    def client(rng: random.Random) -> AnyReplica:
        return AnyReplica(lambda: [hub.api_port], context, rng)

    load = HaLoad(client, fleet.names, seed=7, selector={"cloudhub.dev/board": "sim"}).start()
    reader = client(random.Random(1))
    for _ in range(2):
        before = load.writes
        wait_for(lambda before=before: load.writes > before + 30, "the load goes on", 60)  # type: ignore[misc]
        hub.kill9()
        hub.start()
        assert hub.process is not None
        hub.process.send_signal(signal.SIGSTOP)
        time.sleep(1)  # how long it is frozen
        hub.process.send_signal(signal.SIGCONT)
    record = load.stop()
    fleet.statuses(0)

    def rest() -> list[str]:
        return unsettled(fleet.brief(), reader.get(PODS)["items"], reader.get(CONFIGMAPS)["items"])

    wait_for(lambda: not rest(), "everything has settled", 60, lambda: rest()[:5])
    pods, configs = reader.get(PODS)["items"], reader.get(CONFIGMAPS)["items"]
    reader.close()
    assert unkept(record, pods, configs) == []
    dump, want = fleet.dump(), wanted(pods, configs)
    assert [t for n, node in dump["nodes"].items() for t in unlike(node["docs"], want.get(n, {}), n)] == []
    assert [t for node in dump["nodes"].values() for t in node["anomalies"]] == []
    hub.stop()
    verdict = judge(asyncio.run(history_of(hub)), record.wanted_gone, leases=False)
    assert verdict.violations == []
    assert judge_stored(verdict, dump["nodes"]) == []
    summary = verdict.summary()
    assert summary["highest epoch"] == 3  # one claim for each start
    assert summary["fenced writes"] > 50 and summary["pods gone"] > 0
    assert record.acknowledged["create"] and record.acknowledged["change"] and record.acknowledged["delete"]


def test_the_history_of_etcd_is_read_whole_and_in_order() -> None:
    with EtcdCluster() as etcd:

        def call(path: str, body: object) -> None:
            request = urllib.request.Request(f"http://{etcd.endpoints[0]}{path}", json.dumps(body).encode())
            urllib.request.urlopen(request, timeout=30).close()

        def text(value: str) -> str:
            return base64.b64encode(value.encode()).decode()

        expected: list[Change] = []
        for n in range(300):
            key, value = f"k{n % 7}", f"{n}" * 500
            put = {"request_put": {"key": text(ROOT + key), "value": text(value)}}
            if n % 5 == 4:
                delete = {"request_delete_range": {"key": text(f"{ROOT}k{(n - 1) % 7}")}}
                call("/v3/kv/txn", {"success": [put, delete]})
                expected.append(Change(n + 2, ((key, value.encode()), (f"k{(n - 1) % 7}", None))))
            else:
                call("/v3/kv/txn", {"success": [put]})
                expected.append(Change(n + 2, ((key, value.encode()),)))
        found = list(read(etcd.endpoints[0], ROOT))
        assert [sorted(c.events) for c in found] == [sorted(c.events) for c in expected]
        assert [c.revision for c in found] == [c.revision for c in expected]


# -- histories that are wrong


def trace(process: str, **fences: int) -> tuple[str, bytes]:
    keys = {f"slot/{unit.removeprefix('s')}/epoch": mod for unit, mod in fences.items()}
    return f"trace/{process}", orjson.dumps({"member": "m", "process": process, "fences": keys})


def claim(revision: int, epoch: int, process: str) -> Change:
    owner = orjson.dumps({"member": "m", "incarnation": process, "epoch": epoch})
    epochs = orjson.dumps({"epoch": epoch, "claims": []})
    return Change(revision, (("slot/0005/epoch", epochs), ("slot/0005/owner", owner), trace(process)))


def pod(revision: int, process: str, fence: int | None, count: str = "1", **meta: str) -> Change:
    body = {
        "kind": "Pod",
        "metadata": {"name": "p", "uid": "u1", **meta},
        "status": {"phase": "Running", "message": count},
    }
    fences = {} if fence is None else {"s0005": fence}
    return Change(revision, (("obj/core/pods/0005/default/p", orjson.dumps(body)), trace(process, **fences)))


RELEASE = ("slot/0005/owner", None)


def test_a_right_history_is_found_right() -> None:
    history = [
        claim(2, 1, "a"),
        pod(3, "a", 2, "1"),
        Change(4, (RELEASE,)),
        claim(5, 2, "b"),
        pod(6, "b", 5, "2"),
    ]
    verdict = judge(history, set())
    assert verdict.violations == [] and verdict.fenced == 2
    assert verdict.gaps == [("0005", 4, 5)]


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([claim(2, 1, "a"), pod(3, "a", 2), Change(4, (RELEASE,)), claim(5, 2, "b"), pod(6, "a", 2)], "claimed anew"),
        ([claim(2, 1, "a"), pod(3, "b", 2)], "which m/a claimed"),
        ([claim(2, 1, "a"), claim(3, 2, "b")], "while it has one"),
        ([claim(2, 1, "a"), Change(3, (RELEASE,)), claim(4, 1, "b")], "from epoch 1 to 1"),
        ([claim(2, 1, "a"), pod(3, "a", 2), pod(4, "a", None, "2")], "under no fence"),
        ([claim(2, 1, "a"), pod(3, "a", 2, "5"), pod(4, "a", 2, "4")], "falls from 5 to 4"),
        ([pod(3, "a", None), Change(4, (("obj/core/pods/0005/default/p", None),))], "nobody had asked for"),
        ([pod(3, "a", None), pod(4, "a", None, deletionTimestamp="now")], "marked deleted"),
    ],
)  # fmt: skip
def test_a_wrong_history_is_noticed(history: list[Change], said: str) -> None:
    assert any(said in text for text in judge(history, set()).violations)


def test_an_acknowledged_status_that_is_not_in_the_history_is_noticed() -> None:
    verdict = judge([claim(2, 1, "a"), pod(3, "a", None, "1"), pod(4, "a", 2, "2")], set())
    right = [1, "pod", "pod/default/p/u1", "2", 5, 1, 4, ""]
    early = [1, "pod", "pod/default/p/u1", "2", 5, 1, 3, ""]
    never = [1, "pod", "pod/default/p/u1", "3", 5, 1, 9, ""]
    for stored, good in ((right, True), (early, False), (never, False)):
        found = judge_stored(verdict, {"n": json.loads(json.dumps({"stored": [stored]}))})
        assert (found == []) == good
