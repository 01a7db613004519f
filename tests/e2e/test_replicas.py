"""Replicas of one hub at their start, and `cloudhub status`: one etcd, two replicas, no NATS."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub import kubeconfig
from security import tls
from tests.e2e.cluster import ROOT, run_cloudhub, wait_for
from tests.e2e.ha import HaCluster, Replica


@pytest.fixture(scope="module")
def ha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HaCluster]:
    with HaCluster(tmp_path_factory.mktemp("replicas"), replicas=2, etcd=1, nats=0) as made:
        yield made


def start(ha: HaCluster, directory: Path, **options: str) -> subprocess.CompletedProcess[str]:
    """One more replica, which is expected to refuse."""
    given = {"name": "hub-9", "etcd": ",".join(ha.etcd.endpoints), "key-file": str(ha.key_file), **options}
    argv = [f"--{name}={value}" for name, value in given.items() if value]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "hub",
            "serve",
            "--data-dir",
            str(directory),
            *argv,
            "--api-address",
            "127.0.0.1:0",
            "--edge-address",
            "127.0.0.1:0",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def status(ha: HaCluster, *options: str) -> str:
    return run_cloudhub("status", "--kubeconfig", str(ha.replicas[0].kubeconfig), *options)


def test_status_shows_members_slots_owners_and_nodes(ha: HaCluster) -> None:
    fleet = ha.sims(6)

    def both() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(status(ha, "-o", "json"))
        ready = {m["state"] for m in found["members"]} == {"Ready"}
        return found if ready and sum(m["connected"] for m in found["members"]) == 6 else {}

    # It exits with 1 while a lease is late, as on a busy machine, or a slot is nobody's.
    found = wait_for(both, "both replicas say what they serve", 60.0)
    assert [m["name"] for m in found["members"]] == ["hub-1", "hub-2"]
    assert sum(m["slots"] for m in found["members"]) == len(found["slots"]) == found["store"]["slots"]
    assert all(s["owner"] in ("hub-1", "hub-2") and s["epoch"] >= 1 for s in found["slots"])
    assert sum(s["nodes"] for s in found["slots"]) == len(fleet.names)
    assert {r["role"] for r in found["roles"]} == {"scheduler", "controllers"}
    table = wait_for(lambda: status(ha, "--slots"), "the table", 60.0).splitlines()
    assert len([line for line in table if line.startswith(("hub-1 ", "hub-2 "))]) == 2
    assert len([line for line in table if line.split()[:1] and line.split()[0].isdigit()]) == 1024


def test_a_replica_without_the_key_file_refuses_to_start_and_says_why(ha: HaCluster, tmp_path: Path) -> None:
    refused = start(ha, tmp_path / "d", **{"key-file": ""})
    assert refused.returncode == 2
    assert "cloudhub key create" in refused.stderr and len(refused.stderr.splitlines()) == 1
    refused = start(ha, tmp_path / "d", **{"key-file": str(tmp_path / "none")})
    assert refused.returncode == 1 and "every replica needs the same one" in refused.stderr


def test_a_replica_with_another_key_file_refuses_to_start_and_makes_no_second_authority(
    ha: HaCluster, tmp_path: Path
) -> None:
    run_cloudhub("key", "create", str(tmp_path / "other"))
    refused = start(ha, tmp_path / "d", **{"key-file": str(tmp_path / "other")})
    assert refused.returncode == 1
    assert "is wrapped under key" in refused.stderr and "give this hub that key as well" in refused.stderr
    assert not (tmp_path / "d" / "ca").exists()


def test_a_second_replica_of_one_name_is_refused_while_the_first_lives(ha: HaCluster, tmp_path: Path) -> None:
    refused = start(ha, tmp_path / "d", name="hub-1")
    assert refused.returncode == 1
    assert "'hub-1' is running already" in refused.stderr
    assert ha.replicas[0].serves()


def test_a_replica_that_reaches_no_etcd_says_so_within_a_bound(ha: HaCluster, tmp_path: Path) -> None:
    refused = start(ha, tmp_path / "d", etcd="127.0.0.1:1")
    assert refused.returncode == 1
    assert "127.0.0.1:1" in refused.stderr and "Traceback" not in refused.stderr


RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
SECONDS = 10.0
"""Within which all replicas have taken over what one was told; they take a fraction of one."""


class Bearer:
    """Who has a token, at each replica."""

    def __init__(self, token: str) -> None:
        self.token = token

    def code(self, replica: Replica, path: str) -> int:
        context = tls.client_context(kubeconfig.read(replica.kubeconfig).root_pem)
        connection = http.client.HTTPSConnection("127.0.0.1", replica.api_port, context=context, timeout=30)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            return connection.getresponse().status
        finally:
            connection.close()

    def wait(self, replicas: list[Replica], path: str, code: int, what: str) -> None:
        """Until every one of them answers with `code`."""
        for replica in replicas:
            wait_for(
                lambda replica=replica: self.code(replica, path) == code,  # type: ignore[misc]
                f"{what} at {replica.name}",
                SECONDS,
                lambda replica=replica: self.code(replica, path),  # type: ignore[misc]
            )


def test_roles_that_one_replica_is_given_hold_at_each_of_three(ha: HaCluster) -> None:
    """And those of a replica that is made later, or is back after a kill, from its first answer on."""
    first, second = ha.replicas
    maps, pods = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/pods"
    first.api("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "robot"}})

    def issued(replica: Replica) -> Bearer:
        path = "/api/v1/namespaces/default/serviceaccounts/robot/token"
        return Bearer(replica.api("POST", path, {"spec": {}})["status"]["token"])

    robot = issued(second)
    robot.wait([first, second], maps, 403, "a token of the other replica is known, and has no rights")
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": "default"}
    first.api("POST", f"{RBAC}/roles", {"metadata": {"name": "reader"}, "rules": [rule]})
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    bound = {"metadata": {"name": "readers"}, "roleRef": ref, "subjects": [subject]}
    second.api("POST", f"{RBAC}/rolebindings", bound)
    robot.wait([first, second], maps, 200, "the role holds")

    third = ha.add()
    try:
        assert [robot.code(third, path) for path in (maps, pods)] == [200, 403]
        role = {"metadata": {"name": "reader"}, "rules": [{**rule, "resources": ["pods"]}]}
        third.api("PUT", f"{RBAC}/roles/reader", role)
        robot.wait([first, second, third], pods, 200, "the changed role holds")
        robot.wait([first, second, third], maps, 403, "and what it gave before does not")
        second.kill9()
        first.api("DELETE", f"{RBAC}/rolebindings/readers")
        robot.wait([first, third], pods, 403, "the end of the binding holds")
        second.spawn()
        second.wait_serves()
        assert robot.code(second, pods) == 403, "a replica that was down does not go by what it knew"

        where = ("--kubeconfig", str(third.kubeconfig))
        rotated = json.loads(run_cloudhub("serviceaccount", "rotate-keys", "--void", "-o", "json", *where))
        assert [key["phase"] for key in rotated["keys"]] == ["signs"]
        robot.wait([first, second, third], pods, 401, "tokens of the void key are nobody's")
        issued(first).wait([first, second, third], pods, 403, "those of the new key are known")
    finally:
        third.stop()
        ha.replicas.remove(third)
