"""The container runtime with a real Podman: what the contract suite, which is for every runtime, cannot ask."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite.loop import now
from edgelite.runtimes.base import Mount, RuntimeFailure
from tests.edgelite.runtimes.container_bench import ContainerBench
from tests.edgelite.runtimes.harness import alive
from tests.podman import IMAGE, Podman, podman  # noqa: F401

FOREVER = "echo up; trap 'exit 7' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def bench(podman: Podman, tmp_path: Path) -> Iterator[ContainerBench]:  # noqa: F811
    made = ContainerBench(str(tmp_path), podman.socket)
    yield made
    made.close()
    assert podman.run("ps", "--all", "--quiet") == ""


def inspect(podman: Podman, name: str = "cloudhub_main_u1_0") -> Any:  # noqa: F811
    return json.loads(podman.run("inspect", name))[0]


def test_the_engine_says_who_it_is(bench: ContainerBench) -> None:
    assert bench.runtime.facts()["version"].startswith("podman://4.")
    assert bench.runtime.trouble == ""


def test_an_engine_that_restarts_is_found_again(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    bench.sh(FOREVER)
    bench.log_has("up")
    main = inspect(podman)["State"]["Pid"]
    podman.halt()
    bench.until(lambda: bench.runtime.trouble, "the loss of the engine")
    with pytest.raises(RuntimeFailure, match="start it"):
        bench.run(bench.runtime.stop("u1", "main", 1.0))
    os.kill(main, 15)
    bench.until(lambda: not alive(main), "the end of the container")
    podman.serve()
    assert bench.ended().exit_code == 7
    bench.until(lambda: not bench.runtime.trouble, "the engine's return")


def test_containers_outlive_agent_and_engine(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    bench.sh(FOREVER)
    bench.log_has("up")
    podman.halt()
    with pytest.raises(RuntimeFailure):
        bench.restart()
    podman.serve()
    (found,) = bench.run(bench.runtime.recover())
    assert found.phase == "running"
    assert bench.run(bench.runtime.stop("u1", "main", 10.0)).exit_code == 7


def test_what_somebody_removes_ends_unknown(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    bench.sh(FOREVER)
    podman.run("rm", "--force", "--time", "0", "cloudhub_main_u1_0")
    end = bench.ended()
    assert end.exit_code == 137 and end.reason in ("ContainerStatusUnknown", "Error")


def test_a_create_without_a_start_is_undone_by_the_next_agent(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    labels = {"agent": bench.runtime._containers.owner, "uid": "u1", "container": "main", "attempt": "0"}
    args = [f"--label=dev.cloudhub.{k}={v}" for k, v in labels.items()]
    podman.run("create", "--name", "cloudhub_main_u1_0", "--network", "host", *args, IMAGE, "true")
    assert bench.restart() == []
    assert podman.run("ps", "--all", "--quiet") == ""


def test_two_agents_on_one_engine_do_not_see_each_other(bench: ContainerBench, tmp_path: Path) -> None:
    bench.sh(FOREVER)
    other = ContainerBench(str(tmp_path / "other"), bench.container_config.socket)
    assert other.restart() == []
    with pytest.raises(RuntimeFailure, match="another agent"):
        other.sh("true")
    other.run(other.runtime.remove("u1"))
    other.runtime.close()
    assert bench.restart()[0].phase == "running"


def test_a_container_runs_as_whom_and_with_what_the_pod_says(bench: ContainerBench, tmp_path: Path) -> None:
    secret = bench.volume("secret", {"key": "s3cret"})
    context = {
        "runAsUser": 1234,
        "runAsGroup": 2345,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    pods = {"securityContext": {"fsGroup": 3456}, "volumes": [{"name": "data", "emptyDir": {}}]}
    data = bench.volume("data", {})
    os.chmod(data, 0o700)
    bench.sh(
        "id; grep -E 'NoNewPrivs|CapBnd' /proc/self/status; pwd; grep edge /etc/hosts; cat /run/secret/key; echo;"
        "touch /x; touch /run/secret/x; touch /data/x && ls -n /data/x",
        spec={**pods, "hostAliases": [{"ip": "10.9.8.7", "hostnames": ["edge.example.com"]}]},
        securityContext=context,
        workingDir="/tmp",
        mounts=[Mount("secret", secret, "/run/secret", True), Mount("data", data, "/data", False)],
    )
    assert bench.ended().exit_code == 0
    log = bench.log()
    assert log.startswith("uid=1234(1234) gid=2345(2345)") and ",3456" in log
    assert "NoNewPrivs:\t1" in log and "CapBnd:\t0000000000000000" in log
    assert "\n/tmp\n" in log and "10.9.8.7" in log and "s3cret" in log
    assert log.count("Read-only file system") == 2
    assert " 1234     3456 " in log


def test_an_image_that_runs_as_root_is_refused_where_the_pod_forbids_it(bench: ContainerBench) -> None:
    with pytest.raises(RuntimeFailure, match="its image runs as root") as caught:
        bench.sh("true", spec={"securityContext": {"runAsNonRoot": True}})
    assert caught.value.reason == "CreateContainerConfigError"
    assert bench.restart() == []


def test_the_images_own_command_runs_where_the_pod_has_none(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    change = ["--change", 'ENTRYPOINT ["/bin/echo","entry"]', "--change", 'CMD ["cmd"]']
    podman.run("import", *change, str(podman.root / "image.tar"), "localhost/entry:1")
    for n, (args, text) in enumerate([([], "entry cmd\n"), (["given"], "entry given\n")]):
        launch = bench.launch([], name=f"c{n}", image="localhost/entry:1")
        launch.args = args
        bench.run(bench.runtime.start(launch))
        bench.ended(name=f"c{n}")
        assert bench.log(name=f"c{n}") == text


def test_an_image_that_is_nowhere_is_told_with_the_engines_words(bench: ContainerBench) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        bench.sh("true", image="127.0.0.1:1/none:1", imagePullPolicy="IfNotPresent")
    assert caught.value.reason == "ErrImagePull" and "connection refused" in caught.value.message
    with pytest.raises(RuntimeFailure) as caught:
        bench.sh("true", image="127.0.0.1:1/none:1")
    assert caught.value.reason == "ErrImageNeverPull"


def test_memory_is_limited(bench: ContainerBench) -> None:
    bench.sh("x=a; while :; do x=$x$x; done", resources={"limits": {"memory": "16Mi", "cpu": "900m"}})
    end = bench.ended()
    # Podman 4.3 records the reason on cgroups v2 only.
    assert end.exit_code == 137 and (end.reason == "OOMKilled" or "memory limit" in end.message)


def test_a_terminal_is_a_terminal_and_its_log_can_be_read(bench: ContainerBench) -> None:
    bench.sh("tty; echo in colour", tty=True, stdin=True)
    bench.ended()
    assert bench.log() == "/dev/pts/0\r\nin colour\r\n"
    bench.restart()
    assert "in colour" in bench.log()


def test_logs_are_bounded(podman: Podman, tmp_path: Path) -> None:  # noqa: F811
    bench = ContainerBench(str(tmp_path), podman.socket, log_bytes=65536)
    bench.sh("seq 100000")
    bench.ended()
    path = Path(inspect(podman)["HostConfig"]["LogConfig"]["Path"])
    assert sum(f.stat().st_size for f in path.parent.glob("ctr.log*")) < 4 * 65536
    assert bench.log().endswith("\n100000\n")
    bench.close()


def test_an_exec_that_takes_too_long_is_killed(bench: ContainerBench) -> None:
    bench.sh(FOREVER)
    with pytest.raises(RuntimeFailure) as caught:
        bench.run(bench.runtime.exec("u1", "main", ["sleep", "4321"], 0.3))
    assert caught.value.reason == "Timeout"

    def sleeping() -> bool:
        _, output = bench.run(bench.runtime.exec("u1", "main", ["ps"], 10.0))
        return b"sleep 4321" in output

    bench.until(lambda: not sleeping(), "the end of the exec")


def test_an_exec_without_output_is_waited_for(bench: ContainerBench) -> None:
    bench.sh(FOREVER)
    argv = ["sh", "-c", "exec >/dev/null 2>&1; sleep 0.3; exit 9"]
    assert bench.run(bench.runtime.exec("u1", "main", argv, 10.0)) == (9, b"")


def test_an_exit_code_of_127_of_a_command_is_its_own(bench: ContainerBench) -> None:
    bench.sh(FOREVER)
    code, output = bench.run(bench.runtime.exec("u1", "main", ["sh", "-c", "nope"], 10.0))
    assert code == 127 and b"nope: not found" in output


def test_many_starts_at_once_all_run(bench: ContainerBench) -> None:
    tasks = [bench.spawn(bench.runtime.start(bench.launch(["sleep", "60"], uid=f"u{n}"))) for n in range(8)]
    statuses = [bench.finish(task) for task in tasks]
    assert {s.uid for s in statuses} == {f"u{n}" for n in range(8)}
    assert len(bench.restart()) == 8


def test_an_end_is_heard_of_at_once(bench: ContainerBench) -> None:
    bench.sh("sleep 0.4; exit 1")
    began = now()
    assert bench.ended().exit_code == 1
    assert now() - began < 15.0  # by an event, not by the look at everything every 30 s


def test_without_podman_the_tests_fail_and_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(pytest.fail.Exception, match="make deps-ci"):
        Podman()


def test_old_attempts_are_removed_from_the_engine(bench: ContainerBench, podman: Podman) -> None:  # noqa: F811
    for n in range(3):
        bench.sh("true", attempt=n)
        bench.ended()
    names = podman.run("ps", "--all", "--format", "{{.Names}}").split()
    assert sorted(names) == ["cloudhub_main_u1_1", "cloudhub_main_u1_2"]
    bench.run(bench.runtime.remove("u1"))
    assert podman.run("ps", "--all", "--quiet") == ""
