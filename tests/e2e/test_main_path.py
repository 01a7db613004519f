"""The main job: kubectl apply in the cloud, a workload running at the edge."""

from tests.e2e.cluster import Cluster, sleeper, wait_for


def test_a_pod_runs_is_read_and_disappears(cluster: Cluster) -> None:
    cluster.hub()
    agent = cluster.agent("n1")
    cluster.main.api(
        "POST", "/api/v1/namespaces/default/pods", sleeper("web", script="echo hello; sleep 1000")
    )
    cluster.wait_running("web")
    assert len(agent.workloads()) >= 1
    wait_for(lambda: cluster.kubectl("logs", "web") == "hello\n", "the log is read")
    cluster.kubectl("delete", "pod", "web", "--wait=false")
    cluster.wait_gone("web")
    wait_for(lambda: not agent.workloads(), "its processes are gone", detail=agent.workloads)
    assert cluster.main.stop() == 0
    agent.stop()
