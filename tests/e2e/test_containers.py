"""Containers end to end: kubectl in the cloud, Podman at the edge."""

from tests.e2e.cluster import Cluster, wait_for
from tests.podman import IMAGE, Podman, podman  # noqa: F401

MANIFEST = f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: greeting}}
data: {{TEXT: hello from a container}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: {IMAGE}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c]
    args: ["echo $TEXT; cat /etc/greeting/TEXT; echo; trap 'exit 0' TERM; while :; do sleep 1; done"]
    env:
    - name: TEXT
      valueFrom: {{configMapKeyRef: {{name: greeting, key: TEXT}}}}
    volumeMounts:
    - {{name: greeting, mountPath: /etc/greeting}}
    readinessProbe:
      exec: {{command: [/bin/cat, /etc/greeting/TEXT]}}
  volumes:
  - name: greeting
    configMap: {{name: greeting}}
"""


def test_kubectl_apply_runs_a_container_through_podman(cluster: Cluster, podman: Podman) -> None:  # noqa: F811
    cluster.hub()
    agent = cluster.agent("box", "--runtime", "container", "--engine-socket", podman.socket)
    cluster.kubectl("apply", "-f", "-", stdin=MANIFEST)
    pod = cluster.wait_running("web", 60)
    status = pod["status"]["containerStatuses"][0]
    assert status["containerID"] and "://" in status["containerID"]
    assert status["restartCount"] == 0
    wait_for(
        lambda: cluster.kubectl("logs", "web").splitlines() == ["hello from a container"] * 2,
        "the log is read",
    )
    assert "cloudhub_main_" in podman.run("ps", "--format", "{{.Names}}")

    agent.kill9()
    agent.run()
    cluster.wait_ready("box")
    cluster.kubectl("patch", "configmap", "greeting", "-p", '{"data":{"TEXT":"changed"}}')
    names = podman.run("ps", "--format", "{{.Names}}").split()
    assert len([n for n in names if n.startswith("cloudhub_main_")]) == 1
    container = next(n for n in names if n.startswith("cloudhub_main_"))
    wait_for(
        lambda: podman.run("exec", container, "cat", "/etc/greeting/TEXT").strip() == "changed",
        "the file follows",
    )
    assert cluster.pod("web")["status"]["containerStatuses"][0]["containerID"] == status["containerID"]

    cluster.kubectl("delete", "pod", "web", "--wait=false")
    cluster.wait_gone("web", 60)
    assert "cloudhub_main_" not in podman.run("ps", "-a", "--format", "{{.Names}}")


def test_an_image_that_is_not_there_is_said_so(cluster: Cluster, podman: Podman) -> None:  # noqa: F811
    cluster.hub()
    cluster.agent("box", "--runtime", "container", "--engine-socket", podman.socket)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "main", "image": "localhost/none:1", "imagePullPolicy": "Never"}]},
    }
    cluster.main.api("POST", "/api/v1/namespaces/default/pods", pod)

    def waits() -> bool:
        states = [s["state"] for s in cluster.pod("web")["status"].get("containerStatuses", [])]
        return any(s.get("waiting", {}).get("reason") == "ErrImageNeverPull" for s in states)

    wait_for(waits, "the reason is shown", 60, lambda: cluster.pod("web")["status"])
