"""Cut off from its hub, a node keeps, probes and restarts what it runs; the hub's return changes nothing at the edge.

Exactly-once accounting: every workload appends its process id to a file of its own when it starts, so the number of
lines is the number of starts, whoever caused them.
"""

import os
import signal
from typing import Any

import psutil

from tests.e2e.cluster import Agent, Cluster, sleeper, wait_for
from tests.e2e.starts import Starts

PODS = "/api/v1/namespaces/default/pods"
SETTLE_S = 60.0


def counted(starts: Starts, name: str, node: str = "n1", **container: Any) -> Any:
    """A pod that notes each start under `name` and ends within a second of SIGTERM."""
    script = f"{starts.line(name)}; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
    pod = sleeper(name, node, script)
    pod["spec"]["containers"][0].update(container)
    return pod


def restart_count(cluster: Cluster, name: str) -> int:
    return int(cluster.pod(name)["status"]["containerStatuses"][0]["restartCount"])


def wait_starts(starts: Starts, agent: Agent, name: str, count: int) -> None:
    wait_for(
        lambda: starts.count(name) == count and starts.alive(name),
        f"{name} has started {count} times and runs",
        SETTLE_S,
        lambda: (starts.pids(name), agent.log()[-2000:]),
    )


def end(agent: Agent) -> None:
    """SIGTERM, and the agent has ended by itself."""
    assert agent.process is not None
    agent.process.terminate()
    assert agent.process.wait(15) == 0, agent.log()[-2000:]
    agent.process = None


def round_trip(cluster: Cluster, starts: Starts, name: str, node: str = "n1") -> None:
    """A new pod is delivered, started and reported: whatever the reconnection set off has been carried out."""
    cluster.main.api("POST", PODS, counted(starts, name, node))
    cluster.wait_running(name, SETTLE_S)


def test_with_the_hub_stopped_workloads_outlive_agent_kill_restart_crash_and_reboot(
    cluster: Cluster, starts: Starts
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    probe = {"exec": {"command": ["/bin/sh", "-c", f"echo p >> {starts.path('probes')}"]}, "periodSeconds": 1}
    hub.api("POST", PODS, counted(starts, "steady"))
    hub.api("POST", PODS, counted(starts, "crasher"))
    hub.api("POST", PODS, counted(starts, "probed", livenessProbe=probe))
    done = sleeper("done", "n1", f"{starts.line('done')}; exit 0", restartPolicy="Never")
    hub.api("POST", PODS, done)
    for name in ("steady", "crasher", "probed"):
        cluster.wait_running(name)
    wait_for(lambda: cluster.pod("done")["status"]["phase"] == "Succeeded", "done is done")
    uids = {p["metadata"]["name"]: p["metadata"]["uid"] for p in cluster.pods()}
    before = {name: starts.running(name) for name in ("steady", "crasher", "probed")}
    assert hub.stop() == 0

    def probes() -> int:
        return starts.path("probes").read_text().count("p")

    def wait_probes() -> None:
        seen = probes()
        wait_for(lambda: probes() >= seen + 2, "probes go on", SETTLE_S, lambda: agent.log()[-2000:])

    wait_probes()  # the agent is alone, and probes

    # kill -9 of the agent, then its restart: everything is adopted, and probed by the new agent.
    agent.kill9()
    agent.run()
    wait_probes()
    assert {name: starts.running(name) for name in before} == before

    # An orderly restart.
    end(agent)
    assert {name: starts.running(name) for name in before} == before
    agent.run()
    wait_probes()
    assert {name: starts.running(name) for name in before} == before

    # A crash while the agent runs: restarted, once, alone.
    os.kill(before["crasher"][0], signal.SIGKILL)
    wait_starts(starts, agent, "crasher", 2)

    # A crash while there is no agent: found and restarted by the next one.
    agent.kill9()
    os.kill(before["steady"][0], signal.SIGKILL)
    wait_for(lambda: not starts.alive("steady"), "steady is dead")
    agent.run()
    wait_starts(starts, agent, "steady", 2)
    assert starts.running("probed") == before["probed"]
    assert (starts.count("probed"), starts.count("crasher"), starts.count("done")) == (1, 2, 1)

    # A reboot: nothing runs, the boot id is new, the hub still away.
    agent.reboot()
    assert not any(starts.alive(name) for name in before)
    agent.run()
    for name, count in (("steady", 3), ("crasher", 3), ("probed", 2)):
        wait_starts(starts, agent, name, count)
    wait_probes()
    after = {name: starts.running(name) for name in before}

    # The hub returns: status converges, nothing restarts.
    hub.start()
    for name, count in (("steady", 2), ("crasher", 2), ("probed", 1)):
        wait_for(
            lambda name=name, count=count: restart_count(cluster, name) == count,  # type: ignore[misc]
            f"{name} was restarted {count} times, and its status says so",
            SETTLE_S,
            lambda name=name: (cluster.pod(name)["status"], agent.log()[-2000:]),  # type: ignore[misc]
        )
        cluster.wait_running(name, SETTLE_S)
    assert cluster.pod("done")["status"]["phase"] == "Succeeded"
    round_trip(cluster, starts, "probe-of-the-channel")
    assert {name: starts.running(name) for name in before} == after
    counts = {name: starts.count(name) for name in ("steady", "crasher", "probed", "done")}
    assert counts == {"steady": 3, "crasher": 3, "probed": 2, "done": 1}
    assert all(len(starts.alive(name)) == 1 for name in before)
    assert {n: u for n, u in uids.items() if cluster.pod(n)["metadata"]["uid"] == u} == uids


def test_a_liveness_failure_restarts_offline(cluster: Cluster, starts: Starts) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    sick = starts.path("sick")
    probe = {
        "exec": {"command": ["/bin/sh", "-c", f"test ! -e {sick}"]},
        "periodSeconds": 1,
        "failureThreshold": 2,
    }
    hub.api("POST", PODS, counted(starts, "patient", livenessProbe=probe))
    hub.api("POST", PODS, counted(starts, "neighbour"))
    cluster.wait_running("patient")
    cluster.wait_running("neighbour")
    hub.stop()
    sick.touch()
    wait_for(
        lambda: not starts.alive("patient") or starts.count("patient") == 2,
        "the sick one is killed",
        SETTLE_S,
    )
    sick.unlink()
    wait_starts(starts, agent, "patient", 2)
    hub.start()
    cluster.wait_running("patient", SETTLE_S)
    wait_for(lambda: restart_count(cluster, "patient") == 1, "its status says so", SETTLE_S)
    round_trip(cluster, starts, "later")
    assert starts.count("patient") == 2
    assert starts.count("neighbour") == 1
    reasons = [e["reason"] for e in hub.api("GET", "/api/v1/namespaces/default/events")["items"]]
    assert "Unhealthy" in reasons and "Killing" in reasons, reasons


def test_a_new_boot_id_on_a_machine_that_kept_running_doubles_nothing(
    cluster: Cluster, starts: Starts
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", PODS, counted(starts, "moved"))
    cluster.wait_running("moved")
    pid, _ = starts.running("moved")
    hub.stop()
    agent.kill9()
    agent.boot_id_file.write_text("22222222-0000-0000-0000-000000000000\n")
    agent.run()
    wait_starts(starts, agent, "moved", 2)
    assert starts.alive("moved") == [starts.pids("moved")[1]]
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    hub.start()
    wait_for(lambda: restart_count(cluster, "moved") == 1, "its status says so", SETTLE_S)
    round_trip(cluster, starts, "later")
    assert starts.count("moved") == 2


def test_a_pod_deleted_while_its_node_was_cut_off_ends_when_the_hub_returns(
    cluster: Cluster, starts: Starts
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", PODS, counted(starts, "kept"))
    hub.api("POST", PODS, counted(starts, "dropped"))
    for name in ("kept", "dropped"):
        cluster.wait_running(name)
    kept = starts.running("kept")
    agent.kill9()
    hub.api("DELETE", f"{PODS}/dropped")
    assert cluster.pod("dropped")["metadata"]["deletionTimestamp"]
    hub.kill9()
    agent.run()
    wait_for(lambda: agent.log().count(" starts") == 2, "the agent is back", detail=agent.log)
    assert starts.alive("dropped"), "what the node was not told it does not do"
    hub.start()
    cluster.wait_gone("dropped", SETTLE_S)
    assert not starts.alive("dropped")
    assert starts.running("kept") == kept
    assert starts.count("kept") == 1
