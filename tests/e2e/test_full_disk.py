"""A full disk, at the hub and at the agent: nothing that was acknowledged is lost, and freeing space is the whole repair."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import ApiFailure, Cluster, sleeper, wait_for
from tests.e2e.smalldisk import AgentOnDisk, HubOnDisk, SmallDisk, small_disk
from tests.e2e.starts import Starts

PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
SETTLE_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 12 << 20) as made:
        yield made


def loop_pod(starts: Starts, name: str) -> Any:
    return sleeper(
        name, "n1", f"{starts.line(name)}; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
    )


def config_map(number: int) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"m{number}"},
        "data": {"text": f"{number:08d}" * 8000},
    }


def stored(hub: HubOnDisk) -> dict[str, str]:
    """name -> text of the config maps in the API."""
    return {m["metadata"]["name"]: m["data"]["text"] for m in hub.api("GET", MAPS)["items"] if "data" in m}


def write_until_refused(
    hub: HubOnDisk, disk: SmallDisk, first: int
) -> tuple[dict[str, str], ApiFailure, str]:
    """Fills the disk and creates config maps until the hub refuses one (its log may have had room for a few):
    what was acknowledged, how it was refused, the refused name."""
    acknowledged: dict[str, str] = {}
    for number in range(first, first + 300):
        disk.fill()
        made = config_map(number)
        try:
            hub.api("POST", MAPS, made)
        except ApiFailure as refused:
            return acknowledged, refused, made["metadata"]["name"]
        acknowledged[made["metadata"]["name"]] = made["data"]["text"]
    pytest.fail("a full disk refuses nothing")


def test_a_hub_with_a_full_disk_refuses_writes_serves_reads_and_loses_nothing(
    cluster: Cluster, starts: Starts, disk: SmallDisk
) -> None:
    hub = HubOnDisk(disk, cluster.root)
    cluster.hubs.append(hub)
    hub.start()
    agent = cluster.agent("n1")
    hub.api("POST", PODS, loop_pod(starts, "web"))
    cluster.wait_running("web")
    acknowledged = {"m0": hub.api("POST", MAPS, config_map(0))["data"]["text"]}

    more, refused, name = write_until_refused(hub, disk, 1)
    acknowledged |= more
    assert refused.code in (500, 503, 507), refused
    assert refused.status["kind"] == "Status" and refused.status["status"] == "Failure"
    assert "full" in refused.status["message"] and "space" in refused.status["message"], refused.status

    # Nothing of it was written, reads go on, and so do the other refusals.
    assert stored(hub) == acknowledged
    assert name not in stored(hub)
    for method, path, body in (
        ("DELETE", f"{MAPS}/m0", None),
        ("PUT", f"{MAPS}/m0", {**config_map(0), "data": {"text": "other"}}),
        ("DELETE", f"{PODS}/web", None),
    ):
        with pytest.raises(ApiFailure) as failure:
            hub.api(method, path, body)
        assert failure.value.code in (500, 503, 507), failure.value
    assert stored(hub) == acknowledged
    assert "deletionTimestamp" not in cluster.pod("web")["metadata"]
    assert "web" in cluster.kubectl("get", "pods")
    assert hub.api("GET", "/livez") == "ok"

    # The edge goes on, and what it has to tell waits there until it can be stored.
    os.kill(starts.running("web")[0], signal.SIGKILL)
    wait_for(lambda: starts.count("web") == 2 and starts.alive("web"), "the edge restarts", SETTLE_S)
    assert cluster.condition("n1", "Ready") == "True"

    disk.free()
    wait_for(lambda: hub.api("POST", MAPS, config_map(900)), "writes work again", SETTLE_S)
    acknowledged["m900"] = config_map(900)["data"]["text"]

    def told() -> bool:
        return bool(cluster.pod("web")["status"]["containerStatuses"][0]["restartCount"] == 1)

    wait_for(told, "what had waited is stored", SETTLE_S, lambda: (hub.log()[-2000:], agent.log()[-2000:]))
    assert stored(hub) == acknowledged

    # kill -9 on a full disk. A start there either serves or says what is wrong.
    more, _, _ = write_until_refused(hub, disk, 1000)
    acknowledged |= more
    hub.kill9()
    disk.fill()
    hub.spawn()
    wait_for(
        lambda: (
            hub.process is None
            or hub.process.poll() is not None
            or (hub.data_dir / "endpoints.json").exists()
        ),
        "the hub serves or gives up",
    )
    assert hub.process is not None
    if hub.process.poll() is not None:
        assert hub.ends() == 1
        last = hub.log().strip().splitlines()[-1]
        assert "full" in last or "No space left" in last, last
    else:
        hub.kill9()
    disk.free()
    hub.start()
    assert stored(hub) == acknowledged
    hub.api("POST", PODS, loop_pod(starts, "later"))
    cluster.wait_running("later", SETTLE_S)
    assert (starts.count("web"), starts.count("later")) == (2, 1)


def test_an_agent_with_a_full_disk_keeps_what_runs_says_so_and_recovers(
    cluster: Cluster, starts: Starts, disk: SmallDisk
) -> None:
    hub = cluster.hub()
    agent = AgentOnDisk("n1", disk)
    cluster.agents["n1"] = agent
    agent.join(hub.edge, hub.token("--node", "n1"))
    cluster.wait_ready("n1")
    for name in ("web", "crasher"):
        hub.api("POST", PODS, loop_pod(starts, name))
        cluster.wait_running(name)
    web = starts.running("web")

    # Full: a new pod cannot be journalled, so it is not acknowledged and not started. The node says why.
    disk.fill()
    new = loop_pod(starts, "new")
    new["metadata"]["annotations"] = {
        "example.com/bulk": "x" * 16000
    }  # more than a page that is in use has left
    hub.api("POST", PODS, new)

    def pressed() -> bool:
        disk.fill()
        return cluster.condition("n1", "DiskPressure") == "True"

    wait_for(pressed, "the node reports DiskPressure", SETTLE_S, lambda: agent.log()[-3000:])
    assert cluster.condition("n1", "Ready") == "True"
    assert starts.count("new") == 0
    assert starts.running("web") == web

    # kill -9 of the agent, and a start on the full disk: what runs is adopted. A crash waits for room.
    agent.kill9()
    os.kill(starts.running("crasher")[0], signal.SIGKILL)
    connected = agent.log().count('"connected"')
    agent.run()
    wait_for(
        lambda: agent.log().count('"connected"') > connected,
        "an agent with a full disk connects",
        SETTLE_S,
        lambda: agent.log()[-3000:],
    )
    wait_for(pressed, "the node still reports DiskPressure", SETTLE_S, lambda: agent.log()[-3000:])
    assert starts.running("web") == web
    assert starts.count("new") == 0

    # Room again: it recovers by itself, and runs what it was given, once.
    disk.free()
    wait_for(
        lambda: cluster.condition("n1", "DiskPressure") == "False",
        "DiskPressure ends",
        SETTLE_S,
        lambda: agent.log()[-3000:],
    )
    cluster.wait_running("new", SETTLE_S)
    wait_for(lambda: starts.count("crasher") == 2, "the crashed one is restarted", SETTLE_S, agent.log)
    cluster.wait_running("crasher", SETTLE_S)
    assert starts.running("web") == web

    # What was acknowledged is in the journal: a restart without the hub adopts all of it.
    before = {name: starts.running(name) for name in ("web", "crasher", "new")}
    hub.stop()
    agent.kill9()
    agent.run()
    wait_for(lambda: agent.log().count(" starts") == 3, "the agent is up again", SETTLE_S, agent.log)
    hub.start()
    hub.api("POST", PODS, loop_pod(starts, "later"))
    cluster.wait_running("later", SETTLE_S)
    assert {name: starts.running(name) for name in before} == before
    assert {name: starts.count(name) for name in before} == {"web": 1, "crasher": 2, "new": 1}
