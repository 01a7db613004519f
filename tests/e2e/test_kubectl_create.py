"""`kubectl create` and `auth` with stock binaries: kubectl from 1.32 on sends these bodies in protobuf."""

import base64
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, kubectl_binaries


@pytest.mark.parametrize("which", [0, 1], ids=["current", "1.20"])
def test_kubectl_creates_every_kind_and_the_hub_holds_what_was_meant(cluster: Cluster, which: int) -> None:
    hub = cluster.hub()
    kubectl = kubectl_binaries()[which]

    def run(command: str, code: int | None = 0) -> str:
        return cluster.kubectl(*command.split(), path=kubectl, code=code)

    def get(path: str) -> Any:
        return hub.api("GET", f"/api/v1/namespaces/default/{path}")

    web = "/apis/apps/v1/namespaces/shop/deployments/web"

    assert "created" in run("create namespace shop")
    assert "created" in run("create configmap cm --from-literal=a=b --from-literal=empty=")
    assert get("configmaps/cm")["data"] == {"a": "b", "empty": ""}
    file = cluster.root / "blob"
    file.write_bytes(b"\xff\x00\x80")
    run(f"create configmap blob --from-file={file}")
    assert get("configmaps/blob")["binaryData"] == {"blob": base64.b64encode(b"\xff\x00\x80").decode()}

    run("create secret generic s --from-literal=p=q")
    assert (get("secrets/s")["type"], get("secrets/s")["data"]) == ("Opaque", {"p": "cQ=="})
    run("create secret docker-registry pull --docker-server=r --docker-username=u --docker-password=p")
    assert get("secrets/pull")["type"] == "kubernetes.io/dockerconfigjson"

    run("create deployment web --image=x:1 --replicas=2 -n shop -- /bin/sh -c true")
    spec = hub.api("GET", web)["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert spec["replicas"] == 2
    assert spec["selector"] == {"matchLabels": {"app": "web"}}
    assert (container["image"], container["command"]) == ("x:1", ["/bin/sh", "-c", "true"])
    run("scale deployment web -n shop --replicas=0")
    assert hub.api("GET", web)["spec"]["replicas"] == 0
    run("run once --image=x:1 --restart=Never --env=A=B")
    assert get("pods/once")["spec"]["containers"][0]["env"] == [{"name": "A", "value": "B"}]

    twice = run("create configmap cm --from-literal=a=c", code=1)
    assert 'configmaps "cm" already exists' in twice
    assert get("configmaps/cm")["data"]["a"] == "b"
    assert "invalid" in run("create secret generic No_Name", code=1)
    assert "could not find the requested resource" in run("create quota q --hard=pods=1", code=1)

    assert run("auth can-i delete nodes --all-namespaces").splitlines()[-1] == "yes"
    assert "*.*" in run("auth can-i --list")
    assert 'User "bob" cannot list resource "pods"' in run("--as=bob get pods", code=1)
    run("delete configmap cm blob")
    assert get("configmaps")["items"] == []


def test_kubectl_says_who_one_is_and_shows_events(cluster: Cluster) -> None:
    cluster.hub()
    assert "system:masters" in cluster.kubectl("auth", "whoami")
    cluster.kubectl("run", "lonely", "--image=x:1")
    cluster.kubectl("wait", "pod/lonely", "--for=condition=PodScheduled=False", "--timeout=30s")
    assert "FailedScheduling" in cluster.kubectl("events", "--for", "pod/lonely")
