"""What the hub writes to a Kubernetes API server, against one in memory and against the real one: both have to take and
refuse the same."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from hub import errors, reports
from hub.cli import main
from hub.kubernetes import joins, tokens
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.leases import NAMESPACE as LEASE_NAMESPACE
from hub.kubernetes.leases import Alive, Leases
from hub.kubernetes.nodes import EDGE, NodeForm
from hub.kubernetes.patches import MERGE_PATCH, Patch, path_of
from hub.kubernetes.registry import Api, KubeRegistry
from hub.objects import EVENTS, JOINTOKENS, LEASES, NODES, PODS, Keys, Taint
from hub.registry import FenceLost, Stored, now_rfc3339
from hub.store.memory import MemoryStore
from security import join
from security.ca import CertificateAuthority
from security.frames import EventReport, NodeReport
from security.identity import NodeId
from shards.claims import Fence
from shards.kv import Put
from tests.hub.kubernetes.fake_objects import FakeApi
from tests.servers.kubernetes import KubeCluster

CRD = Path(__file__).parents[2] / "helm/cloudhub/resources/jointokens.yaml"
Object = dict[str, Any]


class World:
    """A registry on some API server, and names that no other test uses."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.store = MemoryStore()
        self.keys = Keys()
        form = NodeForm(taints=(Taint("cloudhub.dev/edge", "", "NoSchedule"),), kubelet_port=10250)
        self.registry = KubeRegistry(api, self.store, self.keys, form)
        self.mark = secrets.token_hex(4)
        self.node = f"edge-{self.mark}"

    async def fence(self) -> Fence:
        key = self.keys.slot_epoch(3)
        return Fence(key, (await self.store.txn([], [Put(key, secrets.token_bytes(4))])).revision)

    async def pod(self, name: str = "till", **meta: Any) -> Stored:
        """A Pod that is bound to the node."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-{self.mark}", "namespace": "default", **meta},
            "spec": {
                "nodeName": self.node,
                "automountServiceAccountToken": False,
                "containers": [{"name": "main", "image": "none"}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        return await self.registry.create(PODS, pod)

    async def enrol(self) -> Stored:
        return await self.registry.create(
            NODES, reports.new_node(NodeId("td", "default", self.node, self.node))
        )

    async def raw(self, method: str, path: str, body: Any = None, content_type: str = MERGE_PATCH) -> Object:
        _, raw = await self.api.request(method, path, body=body, content_type=content_type)
        found: Object = orjson.loads(raw)
        return found


@pytest.fixture(params=["memory", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield World(FakeApi())
        return
    cluster: KubeCluster = request.getfixturevalue("kubernetes")
    await asyncio.to_thread(cluster.kubectl, "apply", "--server-side", "-f", str(CRD))
    await asyncio.to_thread(
        cluster.kubectl, "wait", "--for=condition=Established", "crd/jointokens.cloudhub.dev", "--timeout=60s"
    )
    config = KubeConfig.from_file(cluster.kubeconfig_of("hub", "system:masters"))
    async with KubeClient(config) as client:
        made = World(client)
        yield made
        for path in (f"/api/v1/nodes/{made.node}",):
            try:
                await client.request("DELETE", path)
            except errors.NotFound:
                pass


def status(phase: str) -> Object:
    now = now_rfc3339()
    ready = "True" if phase == "Running" else "False"
    return {
        "phase": phase,
        "conditions": [
            {"type": "Ready", "status": ready, "lastProbeTime": None, "lastTransitionTime": now},
            {"type": "ContainersReady", "status": ready, "lastProbeTime": None, "lastTransitionTime": now},
        ],
        "hostIP": "10.0.0.1",
        "hostIPs": [{"ip": "10.0.0.1"}],
        "containerStatuses": [
            {
                "name": "main",
                "image": "none",
                "imageID": "",
                "ready": phase == "Running",
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
                "lastState": {},
                "started": True,
            }
        ],
    }


async def test_a_reported_status_replaces_the_pods_and_keeps_what_is_the_servers(world: World) -> None:
    pod = await world.pod()
    name = pod.obj()["metadata"]["name"]
    path = path_of(PODS, "default", name, "status")
    scheduled = {"type": "PodScheduled", "status": "True"}
    await world.raw("PATCH", path, {"status": {"conditions": [scheduled], "qosClass": "BestEffort"}})
    apply, fence = reports.merge_pod(world.node, status("Running")), await world.fence()
    stored = await world.registry.mutate(PODS, "default", name, apply, fence=fence)
    written = (await world.registry.get(PODS, "default", name)).obj()["status"]
    assert written["phase"] == "Running" and written["qosClass"] == "BestEffort"
    assert {c["type"] for c in written["conditions"]} == {"PodScheduled", "Ready", "ContainersReady"}
    assert written["containerStatuses"][0]["state"]["running"]
    again = await world.registry.mutate(PODS, "default", name, apply, fence=fence)
    assert again.revision == stored.revision  # nothing differs, nothing is written


async def test_a_write_from_an_old_read_conflicts_and_a_fresh_one_does_not(world: World) -> None:
    pod = await world.pod()
    name, fence = pod.obj()["metadata"]["name"], await world.fence()
    await world.raw("PATCH", path_of(PODS, "default", name), {"metadata": {"labels": {"by": "somebody"}}})
    new = pod.obj()
    new["status"] = {**new.get("status", {}), **status("Running")}
    with pytest.raises(errors.Conflict):
        await world.registry.replace(PODS, pod, new, fence=fence)
    await world.registry.mutate(
        PODS, "default", name, reports.merge_pod(world.node, status("Running")), fence=fence
    )
    found = (await world.registry.get(PODS, "default", name)).obj()
    assert found["status"]["phase"] == "Running" and found["metadata"]["labels"] == {"by": "somebody"}


async def test_a_successor_of_the_same_name_is_not_written(world: World) -> None:
    pod = await world.pod()
    name, uid = pod.obj()["metadata"]["name"], pod.obj()["metadata"]["uid"]
    await world.registry.remove(PODS, pod)
    await world.pod()
    with pytest.raises(errors.NotFound):
        await world.registry.mutate(
            PODS, "default", name, reports.merge_pod(world.node, status("Running")), uid=uid
        )
    late = Patch("status", {"status": {"phase": "Running"}}).guarded(uid, pod.revision)
    with pytest.raises(errors.Conflict):
        await world.raw("PATCH", path_of(PODS, "default", name, "status"), late)


async def test_a_conflict_under_a_lost_fence_ends_the_write(world: World) -> None:
    pod = await world.pod()
    name, fence = pod.obj()["metadata"]["name"], await world.fence()
    await world.fence()

    class Meddled(KubeRegistry):
        async def get(self, *args: Any) -> Stored:
            stored = await super().get(*args)
            labels = {"metadata": {"labels": {"by": "the-next-owner"}}}
            await world.raw("PATCH", path_of(PODS, "default", name), labels)
            return stored

    late = Meddled(world.api, world.store, world.keys)
    with pytest.raises(FenceLost):
        await late.mutate(
            PODS, "default", name, reports.merge_pod(world.node, status("Running")), fence=fence
        )
    found = (await world.registry.get(PODS, "default", name)).obj()
    assert found.get("status", {}).get("phase") in (None, "Pending")


async def test_a_terminated_pod_is_finalized_as_a_kubelet_does(world: World) -> None:
    await world.enrol()
    pod = await world.pod()
    name, uid = pod.obj()["metadata"]["name"], pod.obj()["metadata"]["uid"]
    await world.raw("DELETE", path_of(PODS, "default", name), {"gracePeriodSeconds": 30}, "application/json")
    ending = await world.registry.get(PODS, "default", name)
    obj = ending.obj()
    assert obj["metadata"]["deletionTimestamp"] and obj["metadata"]["uid"] == uid
    assert reports.release_pod(obj, world.node)
    await world.registry.remove(PODS, ending, fence=await world.fence())
    assert await world.registry.find(PODS, "default", name) is None


async def test_a_terminated_pod_with_a_finalizer_waits_with_a_grace_of_0(world: World) -> None:
    await world.enrol()
    pod = await world.pod(finalizers=["example.com/hold"])
    name = pod.obj()["metadata"]["name"]
    await world.raw("DELETE", path_of(PODS, "default", name), {"gracePeriodSeconds": 30}, "application/json")
    ending = await world.registry.get(PODS, "default", name)
    obj = ending.obj()
    assert not reports.release_pod(obj, world.node)
    await world.registry.replace(PODS, ending, obj, fence=await world.fence())
    held = await world.registry.get(PODS, "default", name)
    assert held.obj()["metadata"]["deletionGracePeriodSeconds"] == 0
    await world.raw("PATCH", path_of(PODS, "default", name), {"metadata": {"finalizers": None}})


async def test_a_node_is_made_with_its_conditions_and_reported_in_one_write(world: World) -> None:
    node = reports.new_node(NodeId("td", "default", "site-a", world.node))
    reports.on_hold(node, reports.UNCONFIRMED, "why", "claim", now_rfc3339())
    made = (await world.registry.create(NODES, node)).obj()
    assert made["metadata"]["labels"][EDGE] == "true"
    assert any(t["key"] == "cloudhub.dev/edge" for t in made["spec"]["taints"])
    assert made["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
    assert {c["type"] for c in made["status"]["conditions"]} >= {reports.UNCONFIRMED, reports.READY}
    report = NodeReport(
        capacity={"cpu": "4", "memory": "1Gi", "pods": "10"},
        allocatable={"cpu": "4", "memory": "1Gi", "pods": "10"},
        nodeInfo=dict.fromkeys(
            (
                "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion",
                "kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture",
            ),
            "x",
        ),
        addresses=[{"type": "InternalIP", "address": "10.1.2.3"}, {"type": "Hostname", "address": world.node}],
        labels={"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"},
    )  # fmt: skip
    before = made["metadata"]["resourceVersion"]
    written = await world.registry.mutate(
        NODES, "", world.node, lambda obj: reports.merge_node(obj, report), fence=await world.fence()
    )
    found = written.obj()
    assert found["metadata"]["labels"]["kubernetes.io/arch"] == "arm64"
    assert found["status"]["capacity"]["cpu"] == "4" and found["metadata"]["resourceVersion"] != before
    assert found["spec"]["taints"]


async def test_an_event_of_the_same_name_is_taken_once(world: World) -> None:
    pod = await world.pod()
    meta = pod.obj()["metadata"]
    event = reports.new_event(
        EventReport(reason="Started", message="m"),
        node=world.node, pod=("default", meta["name"], meta["uid"]), node_uid="u", inc="i", n=1,
        now=now_rfc3339(), rfc3339=lambda at: now_rfc3339(),
    )  # fmt: skip
    await world.registry.create(EVENTS, event, fence=await world.fence())
    with pytest.raises(errors.AlreadyExists):
        await world.registry.create(EVENTS, event, fence=await world.fence())


async def test_a_lease_is_made_renewed_and_read_again_after_somebody_elses_write(world: World) -> None:
    node, fence = await world.enrol(), await world.fence()
    clock = [time.monotonic()]
    leases = Leases(
        world.api,
        world.registry,
        lambda: {world.node: Alive(3, node.obj()["metadata"]["uid"])},
        lambda slot: fence,
        lambda slot: pytest.fail("the fence is not lost"),
        now=lambda: clock[0],
    )

    async def turn() -> Object:
        for _ in range(3):
            clock[0] += 10.0
            for name in leases.due():
                await leases.renew(name)
        return (await world.registry.get(LEASES, LEASE_NAMESPACE, world.node)).obj()

    first = await turn()
    assert first["spec"]["holderIdentity"] == world.node and first["spec"]["leaseDurationSeconds"] == 40
    assert first["metadata"]["ownerReferences"][0]["kind"] == "Node"
    second = await turn()
    assert second["spec"]["renewTime"] > first["spec"]["renewTime"]
    path = path_of(LEASES, LEASE_NAMESPACE, world.node)
    await world.raw("PATCH", path, {"metadata": {"labels": {"by": "somebody"}}})
    assert (await turn())["spec"]["renewTime"] > second["spec"]["renewTime"]
    assert leases.failed == 0


def minted(pool: str = "", count: int = 1, node: str = "") -> tuple[Object, Object, str]:
    request = join.TokenRequest("td", bytes(32), node=node or None, pool=pool or None, count=count)
    record, text = join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
    spec: Object = {"pool": pool, "count": count} if pool else {"node": node}
    return tokens.new_token(spec, record), record, text


async def test_a_token_that_the_command_line_made_is_redeemed_by_compare_and_swap(world: World) -> None:
    token, record, text = minted(pool="shops", count=40)
    secret = join.parse_token(text).secret
    await world.raw("POST", path_of(JOINTOKENS, ""), token, "application/json")
    assert secret.hex() not in orjson.dumps(token).decode()
    found = await world.registry.find(JOINTOKENS, "", record["id"])
    assert found is not None and found.obj()["status"]["record"] == record

    async def redeem(key: str) -> None:
        def change(obj: Object) -> Object:
            new, _ = join.redeem(obj["status"]["record"], secret, key, None, time.time())
            obj["status"] = {**obj["status"], "record": new, "redeemed": len(new["used"])}
            return obj

        await world.registry.mutate(JOINTOKENS, "", record["id"], change)

    await asyncio.gather(*(redeem(secrets.token_hex(32)) for _ in range(8)))
    after = (await world.registry.get(JOINTOKENS, "", record["id"])).obj()
    assert len(after["status"]["record"]["used"]) == after["status"]["redeemed"] == 8


async def test_the_command_makes_a_token_that_the_api_server_never_sees(
    kubernetes: KubeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await asyncio.to_thread(kubernetes.kubectl, "apply", "--server-side", "-f", str(CRD))
    await asyncio.to_thread(
        kubernetes.kubectl,
        "wait",
        "--for=condition=Established",
        "crd/jointokens.cloudhub.dev",
        "--timeout=60s",
    )
    admin = kubernetes.kubeconfig_of("admin", "system:masters")

    async def command(*options: str, verb: str = "create") -> tuple[int, str, str]:
        argv = ["token", verb, *options, "--kubeconfig", admin]
        code = await asyncio.to_thread(main, argv)
        said = capsys.readouterr()
        return code, said.out.strip(), said.err

    code, _, err = await command("--node", "till-9")
    assert code == 1 and "kube-public/cloudhub is missing" in err
    ca = CertificateAuthority.open(str(tmp_path), "td")
    async with KubeClient(KubeConfig.from_file(admin)) as api:
        for _ in range(2):
            await joins.publish(api, joins.Trust("td", ca.root_pem))
        await joins.publish(api, joins.Trust("other", ca.root_pem))
        await joins.publish(api, joins.Trust("td", ca.root_pem))
        code, text, err = await command("--pool", "shops", "--count", "3", "--site", "s1", "--ttl", "2h")
        assert (code, err) == (0, "")
        token = join.parse_token(text)
        assert token.root_sha256 == ca.root_sha256 and token.trust_domain == "td"
        registry = KubeRegistry(api, MemoryStore(), Keys())
        stored = await registry.get(JOINTOKENS, "", token.id)
        record = stored.obj()["status"]["record"]
        _, identity = join.redeem(record, token.secret, "k" * 64, None, time.time())
        assert identity.affinity == "s1" and record["count"] == 3
        assert token.secret.hex() not in stored.raw.decode() and text not in stored.raw.decode()
        file = tmp_path / "nodes.csv"
        file.write_text("node,site\nbatch-1,s1\nbatch-2,s1\n")
        code, text, err = await command("--from-file", str(file), "--approval", "-o", "json")
        made = orjson.loads(text)
        assert (code, err, [m["node"] for m in made]) == (0, "", ["batch-1", "batch-2"])
        code, text, err = await command(verb="list")
        lines = {line.split()[0]: line.split() for line in text.splitlines()}
        assert lines[token.id][1:3] == ["pool/shops", "0/3"] and lines[made[1]["id"]][-1] == "approval"
        code, text, err = await command(token.id, *(m["id"] for m in made), verb="revoke")
        assert (code, text.count("revoked")) == (0, 3)
        assert await registry.find(JOINTOKENS, "", token.id) is None
        assert (await command(token.id, verb="revoke"))[0] == 1
    await asyncio.to_thread(kubernetes.kubectl, "-n", "kube-public", "delete", "configmap", "cloudhub")


async def test_a_cluster_that_does_not_know_a_demand_on_a_token_gets_none() -> None:
    """Definitions of an older chart drop fields without a word: a node would join unapproved."""

    class Older:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str]] = []

        async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> tuple[int, bytes]:
            self.asked.append((method, path))
            if body is not None:
                body["spec"]["record"].pop("approval")
            return 200, orjson.dumps(body)

    api = Older()
    trust = joins.Trust("td", CertificateAuthority.create("td", time.time()).root_pem)
    with pytest.raises(errors.BadRequest, match="upgrade the chart"):
        await joins.create_token(api, {"node": "n", "approval": True}, trust)
    assert [method for method, _ in api.asked] == ["POST", "DELETE"]


async def test_the_command_confirms_nodes_of_a_cluster_with_a_token_for_credentials(
    kubernetes: KubeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = f"parted-{secrets.token_hex(4)}"
    meta = {"name": name, "annotations": {reports.PARTED: "claim-1"}}
    await asyncio.to_thread(kubernetes.api, "POST", "/api/v1/nodes", {"metadata": meta})
    with kubernetes.account(name) as token:
        config = yaml.safe_load(Path(kubernetes.kubeconfig).read_text())
        config["users"][0]["user"] = {"token": token}
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        code = await asyncio.to_thread(main, ["confirm", "--node", name, "--kubeconfig", str(path)])
        said = capsys.readouterr()
        assert (code, said.out) == (0, f"{name} confirmed\n"), said.err
    found = await asyncio.to_thread(kubernetes.api, "GET", f"/api/v1/nodes/{name}")
    assert found["metadata"]["annotations"][reports.CONFIRMED] == "claim-1"
    await asyncio.to_thread(kubernetes.api, "DELETE", f"/api/v1/nodes/{name}")


async def test_a_token_is_validated_and_cannot_be_changed(kubernetes: KubeCluster) -> None:
    await asyncio.to_thread(kubernetes.kubectl, "apply", "--server-side", "-f", str(CRD))
    await asyncio.to_thread(
        kubernetes.kubectl,
        "wait",
        "--for=condition=Established",
        "crd/jointokens.cloudhub.dev",
        "--timeout=60s",
    )

    def create(token: Object) -> str:
        return kubernetes.kubectl("create", "-f", "-", stdin=orjson.dumps(token).decode(), code=None)

    good, record, _ = minted(node="till-1")
    assert "created" in await asyncio.to_thread(create, good)
    listed = await asyncio.to_thread(kubernetes.kubectl, "get", "jointokens", record["id"])
    assert "till-1" in listed and good["spec"]["expires"] in listed
    changed = '{"spec": {"node": "till-2"}}'
    refused = await asyncio.to_thread(
        lambda: kubernetes.kubectl(
            "patch", "jointoken", record["id"], "--type=merge", "-p", changed, code=None
        )
    )
    assert "spec cannot be changed" in refused
    bare, _, _ = minted(node="till-3")
    del bare["spec"]["record"]
    assert "spec.record: Required" in await asyncio.to_thread(create, bare)
    renamed, _, _ = minted(node="till-4")
    renamed["metadata"]["name"] = "mine"
    assert "named by its token's id" in await asyncio.to_thread(create, renamed)
    both, _, _ = minted(node="till-5")
    both["spec"]["pool"] = "shops"
    assert "exactly one of node and pool" in await asyncio.to_thread(create, both)


def test_the_definition_has_every_field_of_the_kind() -> None:
    from hub.api.own_types import DEFINITIONS

    ours = DEFINITIONS["dev.cloudhub.v1alpha1.JoinTokenSpec"]["properties"]
    schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert set(ours) <= set(schema["properties"]["spec"]["properties"])
    request = join.TokenRequest("td", bytes(32), node="n", site="s", replace=True, approval=True)
    record, _ = join.mint(request, 0.0, bytes(join.ENTROPY_BYTES))
    assert set(record) - {"used"} == set(schema["properties"]["spec"]["properties"]["record"]["properties"])
