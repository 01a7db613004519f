"""Orderly stops: SIGTERM ends hub and agent within 10 s also under load; workloads go on unless they are to stop too."""

import random
import signal
import socket
import ssl
import subprocess
import time
from typing import Any

from hub import kubeconfig
from security import tls
from tests.e2e.cluster import Agent, Cluster, Hub, sleeper, wait_for
from tests.e2e.load import Load
from tests.e2e.starts import Starts

PODS = "/api/v1/namespaces/default/pods"
SETTLE_S = 60.0
STOP_S = 10.0


def loop_pod(starts: Starts, name: str, node: str = "n1", **container: Any) -> Any:
    pod = sleeper(
        name, node, f"{starts.line(name)}; echo up; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
    )
    pod["spec"]["containers"][0].update(container)
    return pod


def polite(starts: Starts, name: str) -> Any:
    """Notes its preStop hook and its SIGTERM, for which it takes two seconds, in the order in which they come."""
    said = starts.path(f"{name}.said")
    script = (
        f"{starts.line(name)}; trap 'echo TERM >> {said}; sleep 2; echo done >> {said}; exit 0' TERM; "
        "while :; do sleep 1 & wait $!; done"
    )
    pod = sleeper(name, "n1", script, terminationGracePeriodSeconds=30)
    hook = {"exec": {"command": ["/bin/sh", "-c", f"echo preStop >> {said}"]}}
    pod["spec"]["containers"][0]["lifecycle"] = {"preStop": hook}
    return pod


def said(starts: Starts, name: str) -> list[str]:
    path = starts.path(f"{name}.said")
    return path.read_text().split() if path.exists() else []


def watch(hub: Hub) -> ssl.SSLSocket:
    """An open watch on pods, of which the first bytes have come."""
    found = kubeconfig.read(hub.kubeconfig)
    context = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)
    raw = socket.create_connection(("127.0.0.1", hub.api_port), timeout=30)
    sock = context.wrap_socket(raw, server_hostname="127.0.0.1")
    sock.sendall(b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert sock.recv(12).startswith(b"HTTP/1.1 200")
    return sock


def terminated_within_10_s(process: Any, log: Any) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, log()[-3000:]
    took = time.monotonic() - began
    assert took < STOP_S, f"SIGTERM took {took:.1f} s: {log()[-3000:]}"


def test_sigterm_ends_a_busy_hub_and_a_busy_agent_within_10_s_and_workloads_go_on(
    cluster: Cluster, starts: Starts
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", PODS, loop_pod(starts, "first"))
    cluster.wait_running("first")
    first = starts.running("first")
    follow = subprocess.Popen(
        [cluster.kubectl_path, "--kubeconfig", hub.kubeconfig, "logs", "-f", "first"], stdout=subprocess.PIPE
    )
    assert follow.stdout is not None
    # Before its first line kubectl would ask the next hub again, and rightly not end with this one.
    assert follow.stdout.readline() == b"up\n"
    watches = [watch(hub) for _ in range(20)]
    pods = {f"p{n}": loop_pod(starts, f"p{n}") for n in range(40)}
    load = Load(hub, ((name, "POST", PODS, pod) for name, pod in pods.items()))

    stopped_with: list[int] = []

    def stop_hub() -> None:
        assert hub.process is not None
        process, hub.process = hub.process, None
        # Counted at the signal: a hub that drains goes on answering for a while, and may well answer the rest.
        stopped_with.append(len(load.acknowledged))
        terminated_within_10_s(process, hub.log)
        hub.start()

    load.run(stop_hub, 1, random.Random(7))
    assert 0 < stopped_with[0] < 40
    for sock in watches:
        sock.close()
    try:
        follow.wait(30)  # kubectl logs -f ends with the hub
    finally:
        follow.kill()
        follow.stdout.close()
        follow.wait()

    # The agent, in the middle of starting what it has just been given.
    wait_for(lambda: sum(starts.count(n) for n in pods) >= 5, "the agent is busy", SETTLE_S)
    process, agent.process = agent.process, None
    terminated_within_10_s(process, agent.log)
    running = {name: starts.alive(name) for name in ["first", *pods] if starts.alive(name)}
    assert starts.running("first") == first
    agent.run()
    for name in pods:
        cluster.wait_running(name, SETTLE_S)
    assert {name: starts.alive(name) for name in running} == running
    assert {name: starts.count(name) for name in pods} == dict.fromkeys(pods, 1)
    assert starts.running("first") == first


def check_drained(starts: Starts, agent: Agent, times: int) -> None:
    """Everything was stopped as its specification says, the `times`-th time."""
    assert said(starts, "polite") == ["preStop", "TERM", "done"] * times
    assert not starts.alive("polite") and not starts.alive("plain")
    assert not agent.workloads()


def test_stop_workloads_ends_them_gracefully_with_and_without_an_agent(
    cluster: Cluster, starts: Starts
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", PODS, polite(starts, "polite"))
    hub.api("POST", PODS, loop_pod(starts, "plain"))
    for name in ("polite", "plain"):
        cluster.wait_running(name)

    agent.stop("--workloads")
    check_drained(starts, agent, 1)
    agent.stop("--workloads")  # nothing to do
    check_drained(starts, agent, 1)

    # Both are desired still, and start again with the next agent.
    agent.run()
    for name in ("polite", "plain"):
        wait_for(
            lambda name=name: starts.count(name) == 2,  # type: ignore[misc]
            f"{name} is started again",
            SETTLE_S,
            lambda: agent.log()[-2000:],
        )
        cluster.wait_running(name, SETTLE_S)

    # Now with the agent stopped before, and with the hub away.
    agent.stop()
    assert starts.alive("polite") and starts.alive("plain")
    hub.stop()
    agent.stop("--workloads")
    check_drained(starts, agent, 2)
    assert (starts.count("polite"), starts.count("plain")) == (2, 2)
    hub.start()
    agent.run()
    for name in ("polite", "plain"):
        wait_for(lambda name=name: starts.count(name) == 3, f"{name} is started again", SETTLE_S)  # type: ignore[misc]
        cluster.wait_running(name, SETTLE_S)
