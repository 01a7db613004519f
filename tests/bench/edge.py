"""From `kubectl apply` to Running on a real agent, and what the agent costs with five pods.

The clock starts when kubectl is started and stops when a watch of the API shows the pod Running, so kubectl's own
start is part of it; it is printed beside.
"""

import json
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from queue import Queue

import psutil

from tests.bench.report import emit, percentile
from tests.e2e.cluster import Cluster, running_cluster, sleeper, wait_for

PODS = 30
RESIDENT_PODS = 5


def watch_running(cluster: Cluster, seen: "Queue[tuple[str, float]]") -> "subprocess.Popen[str]":
    """Puts (pod, time) into `seen` when a pod turns Running."""
    process = subprocess.Popen(
        [cluster.kubectl_path, "--kubeconfig", cluster.main.kubeconfig, "get", "pods", "--watch-only", "-o", "json",
         "--output-watch-events"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def read() -> None:
        assert process.stdout is not None
        decoder, buffer = json.JSONDecoder(), ""
        for line in process.stdout:
            buffer += line
            try:
                event, end = decoder.raw_decode(buffer.lstrip())
            except ValueError:
                continue
            buffer = buffer.lstrip()[end:]
            pod = event["object"]
            if pod["status"].get("phase") == "Running":
                seen.put((pod["metadata"]["name"], time.monotonic()))

    threading.Thread(target=read, daemon=True).start()
    return process


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        cluster.hub()
        agent = cluster.agent("edge")
        emit("agent", "rss_idle", agent.rss_bytes() / 2**20, "MB")
        for i in range(RESIDENT_PODS):
            cluster.main.api("POST", "/api/v1/namespaces/default/pods", sleeper(f"resident-{i}"))
        for i in range(RESIDENT_PODS):
            cluster.wait_running(f"resident-{i}")
        emit("agent", "rss_with_5_pods", agent.rss_bytes() / 2**20, "MB", target=20)
        assert agent.process is not None
        memory = psutil.Process(agent.process.pid).memory_full_info()
        emit("agent", "pss_with_5_pods", memory.pss / 2**20, "MB")

        seen: Queue[tuple[str, float]] = Queue()
        watch = watch_running(cluster, seen)
        try:
            measure_apply(cluster, seen)
        finally:
            watch.terminate()
            watch.wait()
            assert watch.stdout is not None


def measure_apply(cluster: Cluster, seen: "Queue[tuple[str, float]]") -> None:
    # The watch is up once it reports a pod of its own.
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(sleeper("warm")))
    wait_for(lambda: not seen.empty(), "the watch reports")
    taken: list[float] = []
    clients: list[float] = []
    for i in range(PODS):
        name = f"bench-{i}"
        began = time.monotonic()
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(sleeper(name)))
        clients.append(time.monotonic() - began)
        while True:
            pod, at = seen.get(timeout=30)
            if pod == name:
                taken.append(at - began)
                break
    for share, label in ((0.5, "p50"), (0.99, "p99")):
        emit("apply_to_running", label, percentile(taken, share) * 1000, "ms")
        emit("apply_to_running", f"kubectl_alone_{label}", percentile(clients, share) * 1000, "ms")


if __name__ == "__main__":
    main()
