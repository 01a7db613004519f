"""Deployments and DaemonSets through stock kubectl: what runs at the edge follows the template, and the nodes."""

import pytest

from tests.e2e.cluster import wait_for
from tests.e2e.kube import PATIENCE, Kube, daemon_set, deployment, processes_with

WAIT_S = 60.0


def only(marks: dict[str, int]) -> None:
    """Waits until exactly so many processes carry each mark (a shell about to start a child shows twice)."""
    wait_for(
        lambda: {mark: len(processes_with(mark)) for mark in marks} == marks,
        f"processes {marks}",
        WAIT_S,
        lambda: {mark: processes_with(mark) for mark in marks},
    )


def test_a_deployment_rolls_to_a_new_command_and_back(kube: Kube) -> None:
    red, blue = f"mark-{kube.namespace}-red", f"mark-{kube.namespace}-blue"
    script = ": %s; echo %s; sleep 1000"

    kube.apply(deployment("web", script % (red, "red")))
    assert "successfully rolled out" in kube("rollout", "status", "deployment/web", PATIENCE)
    kube("wait", "--for=condition=Available", "deployment/web", PATIENCE)
    only({red: 2, blue: 0})
    assert kube("logs", "deployment/web", "--tail=1").splitlines()[-1] != ""

    kube.apply(deployment("web", script % (blue, "blue")))
    assert "successfully rolled out" in kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 0, blue: 2})
    logs = kube("logs", "-l", "app=web")
    assert "blue" in logs and "red" not in logs

    history = kube("rollout", "history", "deployment/web")
    assert [line.split()[0] for line in history.splitlines() if line[:1].isdigit()] == ["1", "2"]
    assert "red" in kube("rollout", "history", "deployment/web", "--revision=1")
    kube("rollout", "undo", "deployment/web")
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 2, blue: 0})
    kube("rollout", "undo", "deployment/web", "--to-revision=2")
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 0, blue: 2})

    kube("scale", "deployment/web", "--replicas=3")
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 0, blue: 3})
    assert len([rs for rs in kube.json("replicasets")["items"] if rs["spec"]["replicas"]]) == 1

    kube("delete", "deployment", "web", PATIENCE)
    wait_for(lambda: not kube.pods("app=web"), "its pods are gone", WAIT_S, lambda: kube.pods("app=web"))
    assert kube.json("replicasets,deployments")["items"] == []
    only({red: 0, blue: 0})


def test_a_paused_deployment_collects_changes_and_rolls_once(kube: Kube) -> None:
    mark = f"mark-{kube.namespace}-env"
    kube.apply(deployment("web", f": {mark}; echo A=$A B=$B; sleep 1000", replicas=1))
    kube("rollout", "status", "deployment/web", PATIENCE)
    (before,) = kube.pods("app=web")

    kube("rollout", "pause", "deployment/web")
    kube("set", "env", "deployment/web", "A=1")
    patch = '{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"B","value":"2"}]}]}}}}'
    kube("patch", "deployment", "web", "-p", patch)
    # The controller has seen the last change when it observed its generation.
    wait_for(
        lambda: (
            (d := kube.json("deployment", "web"))["status"]["observedGeneration"]
            == d["metadata"]["generation"]
        ),
        "the controller has seen the paused template",
        WAIT_S,
    )
    (still,) = kube.pods("app=web")
    assert still["metadata"]["uid"] == before["metadata"]["uid"]
    assert len(kube.json("replicasets")["items"]) == 1

    kube("rollout", "resume", "deployment/web")
    kube("rollout", "status", "deployment/web", PATIENCE)
    wait_for(lambda: len(kube.pods("app=web")) == 1, "the old pod is gone", WAIT_S)
    wait_for(lambda: kube("logs", "deployment/web") == "A=1 B=2\n", "both changes are in", WAIT_S)
    assert len(kube.json("replicasets")["items"]) == 2
    kube("rollout", "restart", "deployment/web")
    kube("rollout", "status", "deployment/web", PATIENCE)
    assert len(kube.json("replicasets")["items"]) == 3


@pytest.mark.parametrize("kube", ["current"], indirect=True)
def test_a_rollout_that_never_gets_ready_keeps_the_old_pods_and_says_so(kube: Kube) -> None:
    good, bad = f"mark-{kube.namespace}-good", f"mark-{kube.namespace}-bad"

    def uids() -> set[str]:
        """Of the old pods."""
        return {p["metadata"]["uid"] for p in kube.pods("app=web") if good in str(p["spec"])}

    kube.apply(deployment("web", f": {good}; sleep 1000"))
    kube("rollout", "status", "deployment/web", PATIENCE)
    before = uids()
    broken = deployment("web", f": {bad}; sleep 1000", progressDeadlineSeconds=2)
    (container,) = broken["spec"]["template"]["spec"]["containers"]
    container["readinessProbe"] = {"exec": {"command": ["/bin/false"]}, "periodSeconds": 1}
    kube.apply(broken)
    assert "exceeded its progress deadline" in kube("rollout", "status", "deployment/web", PATIENCE, code=1)
    assert uids() == before
    only({good: 2, bad: 1})
    wait_for(lambda: "Readiness probe failed" in kube("get", "events"), "its pod says why", WAIT_S)
    assert "ProgressDeadlineExceeded" in kube("describe", "deployment", "web")
    kube("rollout", "undo", "deployment/web")
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({good: 2, bad: 0})
    assert uids() == before


def test_a_daemonset_follows_a_node_label(kube: Kube) -> None:
    mark, label = f"mark-{kube.namespace}-watch", f"{kube.namespace}.example/watched"
    newer = f"mark-{kube.namespace}-newer"

    def on(*nodes: str) -> None:
        wait_for(
            lambda: sorted(p["spec"]["nodeName"] for p in kube.pods("app=watch")) == sorted(nodes),
            f"pods on {nodes}",
            WAIT_S,
            lambda: kube("get", "pods,nodes", "-o", "wide", "--show-labels"),
        )

    try:
        kube.apply(daemon_set("watch", f": {mark}; sleep 1000", nodeSelector={label: "yes"}))
        kube("label", "node", "n1", f"{label}=yes")
        on("n1")
        kube("rollout", "status", "daemonset/watch", PATIENCE)
        only({mark: 1})
        kube("label", "node", "n2", f"{label}=yes")
        on("n1", "n2")
        kube("rollout", "status", "daemonset/watch", PATIENCE)
        assert kube("get", "daemonset", "watch", "--no-headers").split()[1:6] == ["2"] * 5
        only({mark: 2})
        kube("label", "node", "n1", f"{label}=no", "--overwrite")
        on("n2")
        only({mark: 1})

        kube.apply(daemon_set("watch", f": {newer}; sleep 1000", nodeSelector={label: "yes"}))
        kube("rollout", "status", "daemonset/watch", PATIENCE)
        only({mark: 0, newer: 1})
        kube.apply(daemon_set("watch", f": {mark}; sleep 1000", nodeSelector={label: "yes"}))
        kube("rollout", "status", "daemonset/watch", PATIENCE)
        only({mark: 1, newer: 0})

        kube("label", "node", "n2", f"{label}-")
        on()
        kube("label", "node", "n2", f"{label}=yes")
        on("n2")
        kube("delete", "daemonset", "watch", PATIENCE)
        on()
        only({mark: 0})
    finally:
        for node in ("n1", "n2"):
            kube.cluster.main.api(
                "PATCH",
                f"/api/v1/nodes/{node}",
                {"metadata": {"labels": {label: None}}},
                "application/merge-patch+json",
            )
