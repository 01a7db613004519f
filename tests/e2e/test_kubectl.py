"""Stock kubectl against a real hub and real agents: what a user types, and what then happens at the edge."""

import contextlib
import json

import pytest

from tests.e2e.cluster import Cluster, wait_for
from tests.e2e.kube import (
    PATIENCE,
    Kube,
    config_map,
    deployment,
    files_of,
    process_template,
    processes_with,
    secret,
)

WAIT_S = 60.0

# Prints the file whenever it has changed, beside the environment, which is that of the start.
READER = """: %s
echo "start $GREETING"
last=
while :; do
  now=$(cat greeting/GREETING)
  [ "$now" = "$last" ] || echo "file=$now env=$GREETING"
  last=$now
  sleep 0.2
done"""


def reader(mark: str, node: str) -> object:
    template = process_template("reader", READER % mark, nodeSelector={"kubernetes.io/hostname": node})
    template["metadata"]["name"] = "reader"
    spec = template["spec"]
    spec["volumes"] = [{"name": "greeting", "configMap": {"name": "greeting"}}]
    container = spec["containers"][0]
    container["volumeMounts"] = [{"name": "greeting", "mountPath": "greeting"}]
    container["env"] = [
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "greeting", "key": "GREETING"}}}
    ]
    return {"apiVersion": "v1", "kind": "Pod", **template}


def test_a_pod_with_a_configmap_runs_is_read_follows_edits_and_disappears(kube: Kube) -> None:
    agent = kube.cluster.agents["n1"]
    mark = f"mark-{kube.namespace}-reader"
    kube.apply(config_map("greeting", GREETING="one"), reader(mark, "n1"))
    kube.ready("pod/reader")
    uid = kube.json("pod", "reader")["metadata"]["uid"]
    process = wait_for(lambda: processes_with(mark), "its process runs", WAIT_S)[0]
    assert files_of(agent, uid).is_dir()
    wait_for(lambda: kube("logs", "reader") == "start one\nfile=one env=one\n", "the log is read", WAIT_S)

    with kube.following("logs", "-f", "reader", "--tail=1") as text:
        wait_for(lambda: "file=one" in text(), "the log is followed from its end", WAIT_S)
        assert "start" not in text()
        kube.apply(config_map("greeting", GREETING="two"))
        wait_for(lambda: "file=two env=one" in text(), "apply changes the file", WAIT_S, text)
        kube("patch", "configmap", "greeting", "-p", '{"data":{"GREETING":"three"}}')
        wait_for(lambda: "file=three env=one" in text(), "patch changes the file", WAIT_S, text)
        kube("edit", "configmap", "greeting", editor="sed -i 's/GREETING: three/GREETING: four/'")
        wait_for(lambda: "file=four env=one" in text(), "edit changes the file", WAIT_S, text)
    assert process.is_running()
    assert kube.json("pod", "reader")["status"]["containerStatuses"][0]["restartCount"] == 0

    kube("delete", "pod", "reader", PATIENCE)
    assert "NotFound" in kube("get", "pod", "reader", code=1)
    wait_for(lambda: not processes_with(mark), "its process is gone", WAIT_S)
    wait_for(lambda: not files_of(agent, uid).exists(), "the files at the edge are gone", WAIT_S)


def test_get_and_describe_show_what_runs_in_every_form(kube: Kube) -> None:
    kube.apply(config_map("greeting", GREETING="hi"), reader(f"mark-{kube.namespace}", "n2"))
    kube.apply(deployment("web", "sleep 1000", replicas=1))
    kube.ready("pod/reader")
    kube("rollout", "status", "deployment/web", PATIENCE)

    header, row = kube("get", "pod", "reader", "-o", "wide").splitlines()
    assert header.split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert row.split()[:4] == ["reader", "1/1", "Running", "0"]
    assert "n2" in row.split()
    assert json.loads(kube("get", "pod", "reader", "-o", "json"))["spec"]["nodeName"] == "n2"
    assert "nodeName: n2" in kube("get", "pod", "reader", "-o", "yaml")
    assert kube("get", "pod", "reader", "-o", "name") == "pod/reader\n"
    columns = "custom-columns=N:.metadata.name,P:.status.phase"
    assert kube("get", "pod", "reader", "-o", columns).split() == ["N", "P", "reader", "Running"]
    assert kube("get", "pod", "reader", "-o", "jsonpath={.status.phase}") == "Running"
    assert "reader" in kube("get", "pods", "-l", "app=reader", "--show-labels", "--no-headers")
    assert kube("get", "pods", "--field-selector", "spec.nodeName=n2,metadata.name=reader", "-o", "name")
    assert "deployment.apps/web" in kube("get", "all")
    assert " reader " in kube("get", "pods", "--all-namespaces")
    assert {"n1", "n2"} <= set(kube("get", "nodes", "-o", "wide").split())

    described = kube("describe", "pod", "reader")
    for part in (
        "n2/",
        "Status:       Running",
        "greeting from greeting",
        "Successfully assigned",
        "Started",
    ):
        assert part in described
    assert "Kubelet Version" in kube("describe", "node", "n2")
    assert "reader" in kube("describe", "node", "n2")
    described = kube("describe", "deployment", "web")
    assert "1 available" in described
    assert "ScalingReplicaSet" in described
    assert "Scheduled" in kube("get", "events")
    involved = kube.json("events", "--field-selector", "involvedObject.name=reader")["items"]
    assert {"Scheduled", "Started"} <= {event["reason"] for event in involved}
    assert "reader" in kube("get", "events", "--sort-by=.metadata.creationTimestamp")


def test_discovery_answers_version_resources_and_explain(kube: Kube) -> None:
    assert "cloudhub" in kube("version")
    resources = kube("api-resources")
    for name in ("pods", "nodes", "deployments", "daemonsets", "replicasets", "leases", "jointokens"):
        assert name in resources
    assert {"v1", "apps/v1"} <= set(kube("api-versions").split())
    assert "configMapKeyRef" in kube("explain", "pod.spec.containers.env.valueFrom")
    assert "maxSurge" in kube("explain", "deployment.spec.strategy.rollingUpdate")
    assert kube("get", "--raw", "/readyz") == "ok"


def test_create_makes_objects_and_a_dry_run_makes_none(kube: Kube) -> None:
    dry = kube("create", "configmap", "c", "--from-literal=a=1", "--dry-run=server")
    assert "created (server dry run)" in dry
    assert "NotFound" in kube("get", "configmap", "c", code=1)
    assert kube("create", "configmap", "c", "--from-literal=a=1") == "configmap/c created\n"
    assert "already exists" in kube("create", "configmap", "c", code=1)
    kube("create", "secret", "generic", "s", "--from-literal=password=hunter2", "--dry-run=server")
    assert kube.json("secrets")["items"] == []
    kube("create", "secret", "generic", "s", "--from-literal=password=hunter2")
    assert kube.json("secret", "s")["data"] == {"password": "aHVudGVyMg=="}
    kube("create", "deployment", "d", "--image=nginx", "--dry-run=server")
    assert "NotFound" in kube("get", "deployment", "d", code=1)
    other = f"{kube.namespace}-other"
    assert kube("create", "namespace", other) == f"namespace/{other} created\n"
    kube("delete", "namespace", other, PATIENCE)


def test_objects_are_changed_and_deleted_by_every_verb(kube: Kube) -> None:
    kube.apply(config_map("c", a="1"), secret("s", password="hunter2"))
    kube("label", "configmap", "c", "tier=front")
    kube("annotate", "configmap", "c", "note=kept")
    kube("patch", "configmap", "c", "--type=merge", "-p", '{"data":{"b":"2"}}')
    kube("patch", "configmap", "c", "--type=json", "-p", '[{"op":"remove","path":"/data/a"}]')
    kube("patch", "configmap", "c", "--type=strategic", "-p", '{"data":{"c":"3"}}')
    found = kube.json("configmap", "c")
    assert found["data"] == {"b": "2", "c": "3"}
    assert found["metadata"]["labels"] == {"tier": "front"}
    assert found["metadata"]["annotations"]["note"] == "kept"

    found["data"] = {"d": "4"}
    kube("replace", "-f", kube.file(found))
    assert "Conflict" in kube("replace", "-f", kube.file(found), code=1)
    kube.apply(config_map("applied", a="1"))
    difference = kube("diff", "-f", kube.file(config_map("applied", a="2")), code=1)
    assert '-  a: "1"' in difference
    assert '+  a: "2"' in difference
    assert kube("diff", "-f", kube.file(config_map("applied", a="1"))) == ""
    assert "unchanged" in kube.apply(config_map("applied", a="1"))
    assert "configured" in kube.apply(config_map("applied", b="2"))
    assert kube.json("configmap", "applied")["data"] == {"b": "2"}

    kube("delete", "configmap,secret", "-l", "tier=front")
    assert kube("get", "configmap", "-o", "name") == "configmap/applied\n"
    kube("delete", "secret", "s")
    assert "NotFound" in kube("delete", "secret", "s", code=1)


def test_what_is_wrong_is_refused_by_name_and_changes_nothing(kube: Kube) -> None:
    refused = kube("apply", "-f", kube.file({**config_map("bad"), "date": {"a": "b"}}), code=1)
    assert 'unknown field "date"' in refused
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": {"containers": []}}
    assert "spec.containers: Required value" in kube("apply", "-f", kube.file(pod), code=1)
    named = config_map("Not_A_Name")
    assert "metadata.name: Invalid value" in kube("apply", "-f", kube.file(named), code=1)
    assert "is invalid" in kube("apply", "--validate=false", "-f", kube.file(named), code=1)
    assert kube.json("pods,configmaps")["items"] == []


def test_a_pod_that_hangs_is_taken_away_by_force_and_watched_going(kube: Kube) -> None:
    mark = f"mark-{kube.namespace}-stubborn"
    template = process_template("stubborn", f": {mark}; trap '' TERM; while :; do sleep 1; done")
    template["spec"]["terminationGracePeriodSeconds"] = 3600
    template["metadata"]["name"] = "stubborn"
    with kube.following("get", "pods", "-w") as text:
        kube.apply({"apiVersion": "v1", "kind": "Pod", **template})
        kube.ready("pod/stubborn")
        wait_for(lambda: "Running" in text(), "the watch shows it running", WAIT_S, text)
        kube("delete", "pod", "stubborn", "--wait=false")
        wait_for(lambda: "Terminating" in text(), "the watch shows it terminating", WAIT_S, text)
        assert kube("get", "pod", "stubborn", "-o", "name")
        kube("delete", "pod", "stubborn", "--grace-period=0", "--force", PATIENCE)
    kube.gone("pods", "stubborn")
    wait_for(
        lambda: not processes_with(mark), "it is killed at the edge", WAIT_S, lambda: processes_with(mark)
    )


def test_nodes_are_cordoned_tainted_and_drained(kube: Kube) -> None:
    def placed() -> set[str]:
        return {pod["spec"].get("nodeName", "") for pod in kube.pods("app=web") if not going(pod)}

    def going(pod: dict[str, dict[str, str]]) -> bool:
        return "deletionTimestamp" in pod["metadata"]

    with node_put_back(kube.cluster, "n1"), node_put_back(kube.cluster, "n2"):
        kube("cordon", "n1")
        assert "Ready,SchedulingDisabled" in kube("get", "node", "n1")
        kube.apply(deployment("web", "sleep 1000", replicas=2))
        kube("rollout", "status", "deployment/web", PATIENCE)
        assert placed() == {"n2"}
        kube("uncordon", "n1")
        kube("drain", "n2", "--ignore-daemonsets", "--force", "--pod-selector=app=web", PATIENCE)
        assert "Ready,SchedulingDisabled" in kube("get", "node", "n2")
        kube("rollout", "status", "deployment/web", PATIENCE)
        wait_for(lambda: placed() == {"n1"}, "the drained node's pods run elsewhere", WAIT_S, placed)
        kube("uncordon", "n2")

        # Whose only node is tainted waits, and says why.
        kube("taint", "node", "n1", "kept=for-others:NoSchedule")
        pinned = reader("mark-none", "n1")
        kube.apply(config_map("greeting", GREETING="hi"), pinned)
        wait_for(
            lambda: "untolerated taint {kept: for-others}" in kube("describe", "pod", "reader"),
            "the pod says why it waits",
            WAIT_S,
        )
        assert kube("get", "pod", "reader", "--no-headers").split()[1:3] == ["0/1", "Pending"]
        kube("taint", "node", "n1", "kept-")
        kube.ready("pod/reader")


@contextlib.contextmanager
def node_put_back(cluster: Cluster, node: str):  # type: ignore[no-untyped-def]
    try:
        yield
    finally:
        cluster.main.api(
            "PATCH",
            f"/api/v1/nodes/{node}",
            {"spec": {"unschedulable": None, "taints": None}},
            "application/merge-patch+json",
        )


def test_deleting_a_namespace_takes_everything_in_it_at_the_edge_too(kube: Kube) -> None:
    mark = f"mark-{kube.namespace}-web"
    kube.apply(deployment("web", f": {mark}; sleep 1000"), config_map("c", a="1"), secret("s", a="1"))
    kube("rollout", "status", "deployment/web", PATIENCE)
    wait_for(lambda: len(processes_with(mark)) == 2, "two processes run", WAIT_S)
    kube("delete", "namespace", kube.namespace, PATIENCE)
    assert "NotFound" in kube("get", "namespace", kube.namespace, code=1)
    for what in ("pods", "replicasets", "deployments", "configmaps", "secrets"):
        assert kube.json(what)["items"] == []
    wait_for(lambda: not processes_with(mark), "nothing of it runs", WAIT_S, lambda: processes_with(mark))


@pytest.mark.parametrize("kube", ["current"], indirect=True)
def test_a_pod_that_no_node_can_run_waits_and_says_why(kube: Kube) -> None:
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "image"},
            "spec": {"containers": [{"name": "a", "image": "nginx"}]},
        }
    )
    wait_for(lambda: "FailedScheduling" in kube("get", "events"), "an event says so", WAIT_S)
    assert "2 node(s) had no container runtime" in kube("describe", "pod", "image")
    assert kube("get", "pod", "image", "--no-headers").split()[2] == "Pending"
