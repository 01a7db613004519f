"""What a Pod may ask for, through the whole: kubectl, hub, channel, agent, a process at the edge."""

import json
from typing import Any

import pytest

from tests.e2e.cluster import wait_for
from tests.e2e.kube import PATIENCE, Kube, config_map, process_template, secret
from tests.ports import free_port

WAIT_S = 60.0
pytestmark = pytest.mark.parametrize("kube", ["current"], indirect=True)


def pod(name: str, script: str, container: Any = None, **spec: Any) -> Any:
    template = process_template(name, script, **spec)
    template["metadata"]["name"] = name
    template["spec"]["containers"][0].update(container or {})
    return {"apiVersion": "v1", "kind": "Pod", **template}


def status_of(kube: Kube, name: str) -> Any:
    """The status of the pod's only container."""
    return kube.cluster.pod(name, kube.namespace)["status"]["containerStatuses"][0]


def test_env_files_init_containers_and_the_downward_api_reach_the_process(kube: Kube) -> None:
    shared = [{"name": "shared", "mountPath": "shared"}]
    show = """cat shared/first shared/second
echo env=$PASSWORD,$COLOUR,$NAME,$NODE,$MEMORY,$GREETING
cat secret/password; echo
cat all/info/labels; echo
cat all/colour; echo
exec sleep 1000"""
    init = [
        {
            "name": n,
            "command": ["/bin/sh", "-c", f"echo {n} >> shared/{n}; ls shared"],
            "volumeMounts": shared,
        }
        for n in ("first", "second")
    ]
    env = [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {
            "name": "MEMORY",
            "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}},
        },
        {"name": "GREETING", "value": "hi from $(NAME)"},
    ]
    volumes = [
        {"name": "shared", "emptyDir": {}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"configMap": {"name": "c", "items": [{"key": "COLOUR", "path": "colour"}]}},
                    {
                        "downwardAPI": {
                            "items": [{"path": "info/labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
                        }
                    },
                ]
            },
        },
    ]
    mounts = [*shared, *({"name": n, "mountPath": n} for n in ("secret", "all"))]
    container = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "c"}}],
        "volumeMounts": mounts,
        "resources": {"limits": {"memory": "64Mi"}},
    }
    kube.apply(pod("late", show, container, initContainers=init, volumes=volumes, nodeName="n1"))
    # What it refers to does not exist yet: it waits, and says for what.
    wait_for(
        lambda: "not found" in kube("describe", "pod", "late"),
        "it says what it waits for",
        WAIT_S,
        lambda: kube("describe", "pod", "late"),
    )
    kube.apply(config_map("c", COLOUR="red"), secret("s", password="hunter2"))
    kube.ready("pod/late")
    wait_for(lambda: "\nred\n" in kube("logs", "late"), "its log is complete", WAIT_S)
    lines = kube("logs", "late").splitlines()
    assert lines[:4] == ["first", "second", "env=hunter2,red,late,n1,64,hi from late", "hunter2"]
    assert 'app="late"' in lines
    assert kube("logs", "late", "-c", "second").split() == ["first", "second"]

    kube.apply(secret("s", password="changed"))
    kube("label", "pod", "late", "tier=front")
    uid = kube.json("pod", "late")["metadata"]["uid"]
    labels = kube.cluster.agents["n1"].data_dir / "pods" / uid / "volumes/all/info/labels"
    wait_for(lambda: 'tier="front"' in labels.read_text(), "a new label reaches the file", WAIT_S)
    assert status_of(kube, "late")["restartCount"] == 0


def test_containers_that_end_are_shown_and_restarted_as_their_policy_says(kube: Kube) -> None:
    kube.apply(
        pod("crashes", "echo broken; exit 3"),
        pod("fails", "exit 4", restartPolicy="Never"),
        pod("completes", "echo done", restartPolicy="OnFailure"),
        pod("forbidden", "true", {"securityContext": {"privileged": True}}, restartPolicy="Never"),
    )

    def statuses() -> dict[str, str]:
        return {row.split()[0]: row.split()[2] for row in kube("get", "pods", "--no-headers").splitlines()}

    wanted = {"crashes": "CrashLoopBackOff", "fails": "Error", "completes": "Completed"}
    wait_for(lambda: wanted.items() <= statuses().items(), "all are shown", WAIT_S, statuses)
    crashed = wait_for(
        lambda: (s := status_of(kube, "crashes"))["restartCount"] >= 1 and s, "it was restarted", WAIT_S
    )
    assert crashed["lastState"]["terminated"]["exitCode"] == 3
    assert kube("logs", "crashes", "--previous") == "broken\n"
    assert "Back-off restarting failed container" in kube("describe", "pod", "crashes")
    assert status_of(kube, "fails")["state"]["terminated"]["exitCode"] == 4
    assert kube.json("pod", "fails")["status"]["phase"] == "Failed"
    assert kube.json("pod", "completes")["status"]["phase"] == "Succeeded"
    assert kube("logs", "completes") == "done\n"
    # What the node does not allow is refused by name.
    wait_for(
        lambda: kube.json("pod", "forbidden")["status"].get("phase") == "Failed", "it is refused", WAIT_S
    )
    assert "privileged" in kube.json("pod", "forbidden")["status"]["message"]


def test_probes_and_hooks_decide_what_is_ready_restarted_and_told(kube: Kube) -> None:
    # Readiness is a file that the test makes, in a volume that lies at the agent.
    # The shell's stderr is closed: it would tell that its `sleep` was terminated, too.
    script = "exec 2>/dev/null; echo up; trap 'echo down; exit 0' TERM; while :; do sleep 1 & wait $!; done"
    probed = {
        "volumeMounts": [{"name": "state", "mountPath": "state"}],
        "startupProbe": {"exec": {"command": ["/bin/sh", "-c", "test -e state/started"]}, "periodSeconds": 1},
        "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "test -e state/ready"]}, "periodSeconds": 1},
        "livenessProbe": {
            "exec": {"command": ["/bin/sh", "-c", "test ! -e state/dead"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        "lifecycle": {
            "postStart": {"exec": {"command": ["/bin/sh", "-c", "echo post > state/started"]}},
            "preStop": {
                "exec": {"command": ["/bin/sh", "-c", "echo pre >> state/stopped; rm -f state/dead"]}
            },
        },
    }
    kube.apply(
        pod(
            "probed",
            script,
            probed,
            volumes=[{"name": "state", "emptyDir": {}}],
            nodeName="n2",
            terminationGracePeriodSeconds=20,
        )
    )
    wait_for(
        lambda: status_of(kube, "probed").get("started"), "postStart made the start-up probe pass", WAIT_S
    )
    wait_for(
        lambda: "Readiness probe failed" in kube("get", "events"), "an event says it is not ready", WAIT_S
    )
    assert kube("get", "pod", "probed", "--no-headers").split()[1:3] == ["0/1", "Running"]
    uid = kube.json("pod", "probed")["metadata"]["uid"]
    state = kube.cluster.agents["n2"].data_dir / "pods" / uid / "volumes/state"
    (state / "ready").touch()
    kube.ready("pod/probed")

    (state / "dead").touch()
    (state / "dead").chmod(0o666)
    wait_for(lambda: status_of(kube, "probed")["restartCount"] == 1, "liveness restarts it", WAIT_S)
    assert (state / "stopped").read_text() == "pre\n"
    described = kube("describe", "pod", "probed")
    assert "Readiness probe failed: exit code 1" in described
    assert "Liveness probe failed: exit code 1" in described
    kube.ready("pod/probed")
    assert kube("logs", "probed", "--previous") == "up\ndown\n"
    with kube.following("logs", "-f", "probed") as text:
        wait_for(lambda: text() == "up\n", "the log is followed", WAIT_S, text)
        kube("delete", "pod", "probed", PATIENCE)
        wait_for(lambda: text() == "up\ndown\n", "its last words are heard", WAIT_S, text)


def test_http_and_tcp_probes_reach_the_process(kube: Kube) -> None:
    server = "exec python3 -u -m http.server --bind 127.0.0.1 --directory . %d"
    port = free_port()
    web = pod(
        "web",
        server % port,
        {
            "ports": [{"name": "http", "containerPort": port}],
            "readinessProbe": {
                "httpGet": {"path": "/", "port": "http", "host": "127.0.0.1"},
                "periodSeconds": 1,
            },
            "livenessProbe": {"tcpSocket": {"port": port, "host": "127.0.0.1"}, "periodSeconds": 1},
        },
    )
    wrong = pod(
        "wrong",
        "sleep 1000",
        {
            "readinessProbe": {
                "httpGet": {"path": "/none", "port": port, "host": "127.0.0.1"},
                "periodSeconds": 1,
            }
        },
    )
    kube.apply(web)
    kube.ready("pod/web")
    kube.apply(wrong)
    wait_for(lambda: "statuscode: 404" in kube("get", "events"), "the failing probe says why", WAIT_S)
    assert kube("get", "pod", "wrong", "--no-headers").split()[1] == "0/1"
    assert json.loads(kube("get", "pod", "web", "-o", "json"))["status"]["podIP"]
