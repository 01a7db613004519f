"""What every runtime promises, as agents rely on it. One suite over all of them, with real processes.

A runtime joins by a class with the methods of `Bench` (tests/edgelite/runtimes/harness.py) in RUNTIMES.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelite.runtimes.base import Mount, RuntimeFailure
from tests.edgelite.runtimes.container_bench import ContainerBench
from tests.edgelite.runtimes.harness import Bench, Sink, as_user, no_cgroups
from tests.edgelite.runtimes.mac_bench import MacBench
from tests.podman import podman  # noqa: F401

ROOT = os.geteuid() == 0
# As root, an ordinary user's agent is tried as well; an ordinary user cannot try root's.
RUNTIMES = ["process-root", "process-root-bare", "process-user"] if ROOT else ["process-user"]
RUNTIMES += ["macos", "container"]


# The macOS runtime shares what most of these are about; all of them: `make agent-check`.
MACOS = {
    "test_arguments_and_environment_arrive_as_they_are",
    "test_stop_lets_a_container_end_by_itself_and_changes_keeps_quiet_about_it",
    "test_stop_kills_what_does_not_end_within_its_grace",
    "test_a_restarted_agent_adopts_what_runs",
    "test_what_ended_while_no_agent_ran_is_found_with_its_exit_code",
    "test_a_failed_start_says_why_and_leaves_nothing",
    "test_exec_has_the_surroundings_of_the_container",
    "test_volumes_appear_at_relative_paths_and_updates_reach_them",
    "test_a_command_ends_with_its_container",
}


def everywhere(test: Callable[[Bench], None]) -> Any:
    """Runs a test with every runtime."""
    short = test.__name__ not in MACOS and "CLOUDHUB_ALL_RUNTIMES" not in os.environ

    @pytest.mark.parametrize("runtime", [name for name in RUNTIMES if not (short and name == "macos")])
    @functools.wraps(test)
    def wrapped(runtime: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        def run(directory: str) -> None:
            if runtime == "container":
                engine = request.getfixturevalue("podman")
                bench: Bench = ContainerBench(directory, engine.socket)
            elif runtime == "macos":
                bench = MacBench(directory)
            else:
                bench = Bench(directory)
            if runtime == "process-root-bare":
                bench.restart(cgroups=no_cgroups(), pidfd=False)
            try:
                test(bench)
            finally:
                bench.close()

        if runtime == "process-user" and ROOT:
            as_user(run)
        else:
            run(str(tmp_path))

    del wrapped.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for its arguments
    return wrapped


@everywhere
def test_what_a_container_writes_is_its_log_and_its_end_is_reported_once(bench: Bench) -> None:
    status = bench.sh("echo out; echo err >&2; exit 3")
    assert status.phase == "running" and status.attempt == 0 and "://" in status.handle
    end = bench.ended()
    assert (end.phase, end.exit_code, end.reason, end.handle) == ("exited", 3, "Error", status.handle)
    assert end.started_at <= end.finished_at <= time.time() + 1
    assert sorted(bench.log().splitlines()) == ["err", "out"]
    assert bench.run(bench.runtime.changes(bench.loop.now() + 0.05)) == []


@everywhere
def test_exit_code_zero_is_completed(bench: Bench) -> None:
    bench.start(["/bin/true"])
    end = bench.ended()
    assert (end.exit_code, end.reason) == (0, "Completed")


@everywhere
def test_a_signal_is_128_and_its_number(bench: Bench) -> None:
    bench.sh_that_is_killed()
    assert bench.ended().exit_code == 137


@everywhere
def test_arguments_and_environment_arrive_as_they_are(bench: Bench) -> None:
    hard = "a b'\"$HOME`id`\\n;*\t\u00e9"
    launch = bench.launch(
        ["/bin/sh", "-c", 'printf "%s|" "$@" "$HARD"; env', "sh"],
        env=[("HARD", hard), ("dotted.name", "x y")],
    )
    launch.args = [hard, "", "--"]
    bench.run(bench.runtime.start(launch))
    bench.ended()
    log = bench.log()
    assert log.startswith(f"{hard}||--|{hard}|")


@everywhere
def test_stop_lets_a_container_end_by_itself_and_changes_keeps_quiet_about_it(bench: Bench) -> None:
    bench.sh("trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    bench.log_has("up")
    end = bench.run(bench.runtime.stop("u1", "main", 10.0))
    assert end.exit_code == 5
    assert "told" in bench.log()
    assert bench.run(bench.runtime.changes(bench.loop.now() + 0.05)) == []


@everywhere
def test_stop_kills_what_does_not_end_within_its_grace(bench: Bench) -> None:
    bench.sh("trap '' TERM; echo up; while :; do sleep 0.05; done")
    bench.log_has("up")
    end = bench.run(bench.runtime.stop("u1", "main", 0.2))
    assert end.exit_code == 137


@everywhere
def test_stopping_what_has_ended_tells_its_end(bench: Bench) -> None:
    bench.sh("exit 4")
    bench.ended()
    assert bench.run(bench.runtime.stop("u1", "main", 10.0)).exit_code == 4


@everywhere
def test_a_restarted_agent_adopts_what_runs(bench: Bench) -> None:
    bench.sh("echo up; trap 'exit 6' TERM; while :; do sleep 0.05; done")
    bench.log_has("up")
    (found,) = bench.restart()
    assert (found.uid, found.container, found.attempt, found.phase) == ("u1", "main", 0, "running")
    assert bench.run(bench.runtime.stop("u1", "main", 10.0)).exit_code == 6
    assert bench.log().count("up") == 1


@everywhere
def test_the_end_of_an_adopted_container_is_reported(bench: Bench) -> None:
    bench.sh("while [ ! -e go ]; do sleep 0.02; done; exit 7")
    bench.restart()
    bench.run(bench.runtime.exec("u1", "main", ["/bin/sh", "-c", "touch go"], 10.0))
    assert bench.ended().exit_code == 7


@everywhere
def test_what_ended_while_no_agent_ran_is_found_with_its_exit_code(bench: Bench) -> None:
    bench.sh("exit 9")
    bench.until(lambda: "ended" if bench.restart()[0].phase == "exited" else "", "end of the container")
    (found,) = bench.restart()
    assert (found.phase, found.exit_code) == ("exited", 9)
    assert bench.run(bench.runtime.changes(bench.loop.now() + 0.05)) == []


@everywhere
def test_after_a_reboot_nothing_runs_and_an_unrecorded_end_is_unknown(bench: Bench) -> None:
    bench.sh("echo up; while :; do sleep 0.05; done")
    bench.log_has("up")
    bench.boot = "boot-2"
    (found,) = bench.restart()
    assert (found.phase, found.exit_code, found.reason) == ("exited", 137, "ContainerStatusUnknown")


@everywhere
def test_attempts_follow_each_other_and_the_previous_log_is_kept(bench: Bench) -> None:
    for attempt in range(3):
        bench.sh(f"echo attempt {attempt}", attempt=attempt)
        assert bench.ended().attempt == attempt
    assert bench.log() == "attempt 2\n"
    assert bench.log(previous=True) == "attempt 1\n"
    (found,) = bench.restart()
    assert found.attempt == 2
    assert bench.log(previous=True) == "attempt 1\n"


@everywhere
def test_there_is_no_log_of_what_never_ran(bench: Bench) -> None:
    with pytest.raises(RuntimeFailure, match="main"):
        bench.log()
    bench.sh("true")
    with pytest.raises(RuntimeFailure, match="previous"):
        bench.log(previous=True)


@everywhere
def test_a_container_is_not_started_twice(bench: Bench) -> None:
    bench.sh("while :; do sleep 0.05; done")
    with pytest.raises(RuntimeFailure, match="still running"):
        bench.sh("true", attempt=1)


@everywhere
def test_a_failed_start_says_why_and_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(RuntimeFailure, match="no-such-program") as caught:
        bench.start(["no-such-program"])
    assert caught.value.reason == "RunContainerError"
    assert bench.restart() == []
    bench.sh("exit 2")
    assert bench.ended().exit_code == 2


@everywhere
def test_exec_has_the_surroundings_of_the_container(bench: Bench) -> None:
    bench.sh("echo mark >here; while :; do sleep 0.05; done", env=[("COLOUR", "blue")])
    bench.until(
        lambda: bench.run(bench.runtime.exec("u1", "main", ["test", "-s", "here"], 10.0))[0] == 0, "the file"
    )
    code, output = bench.run(
        bench.runtime.exec("u1", "main", ["/bin/sh", "-c", "cat here; echo $COLOUR >&2; exit 3"], 10.0)
    )
    assert (code, output) == (3, b"mark\nblue\n")
    bench.restart()
    assert bench.run(bench.runtime.exec("u1", "main", ["sh", "-c", "echo $COLOUR"], 10.0)) == (0, b"blue\n")


@everywhere
def test_exec_ends_in_time_and_keeps_little_output(bench: Bench) -> None:
    bench.sh("while :; do sleep 0.05; done")
    with pytest.raises(RuntimeFailure) as caught:
        bench.run(bench.runtime.exec("u1", "main", ["sleep", "60"], 0.3))
    assert caught.value.reason == "Timeout"
    code, output = bench.run(
        bench.runtime.exec("u1", "main", ["sh", "-c", "head -c 300000 /dev/zero; exit 1"], 10.0)
    )
    assert (code, len(output)) == (1, 10240)
    with pytest.raises(RuntimeFailure):
        bench.run(bench.runtime.exec("u1", "main", ["no-such-program"], 10.0))


@everywhere
def test_exec_needs_a_running_container(bench: Bench) -> None:
    with pytest.raises(RuntimeFailure):
        bench.run(bench.runtime.exec("u1", "main", ["true"], 1.0))
    bench.sh("true")
    bench.ended()
    with pytest.raises(RuntimeFailure):
        bench.run(bench.runtime.exec("u1", "main", ["true"], 1.0))


@everywhere
def test_logs_can_be_cut_and_dated(bench: Bench) -> None:
    bench.sh("for i in 1 2 3 4 5; do echo line $i; done")
    end = bench.ended()
    assert bench.log(tail=2) == "line 4\nline 5\n"
    assert bench.log(tail=0) == ""
    assert bench.log(limit=8) == "line 1\nl"
    assert len(bench.log(since_s=60).splitlines()) == 5
    (dated,) = bench.log(timestamps=True, tail=1).splitlines()
    at, text = dated.split(" ", 1)
    assert text == "line 5"
    wanted = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(end.finished_at))
    assert at.startswith(wanted[:-1]) and at.endswith("Z")


@everywhere
def test_followed_logs_bring_what_comes_and_end_with_the_container(bench: Bench) -> None:
    bench.sh("echo one; while [ ! -e go ]; do sleep 0.02; done; echo two")
    sink = Sink()
    task = bench.spawn(bench.runtime.logs("u1", "main", {"follow": True}, sink))
    bench.until(lambda: b"one" in sink.data, "the first line")
    assert not task.done
    bench.run(bench.runtime.exec("u1", "main", ["touch", "go"], 10.0))
    bench.ended()
    bench.finish(task)
    assert sink.data == b"one\ntwo\n"


@everywhere
def test_a_reader_that_goes_away_ends_its_stream_only(bench: Bench) -> None:
    bench.sh("while :; do echo tick; sleep 0.02; done")
    with pytest.raises(BrokenPipeError):
        bench.run(bench.runtime.logs("u1", "main", {"follow": True}, Sink(most=20)))
    assert bench.restart()[0].phase == "running"


@everywhere
def test_volumes_appear_at_relative_paths_and_updates_reach_them(bench: Bench) -> None:
    source = bench.volume("config", {"key": "first"})
    bench.sh("cat conf/d/key; while [ \"$(cat conf/d/key)\" = first ]; do sleep 0.02; done; cat conf/d/key",
             mounts=[Mount("config", source, "conf/d", False)])  # fmt: skip
    bench.log_has("first")
    with open(os.path.join(source, "new"), "w") as f:
        f.write("second")
    os.replace(os.path.join(source, "new"), os.path.join(source, "key"))
    bench.ended()
    assert bench.log() == "firstsecond"


@everywhere
def test_remove_leaves_nothing_and_may_be_repeated(bench: Bench) -> None:
    bench.sh("mkdir -p a/b; ln -s / a/link; touch a/b/c; while :; do sleep 0.05; done")
    bench.run(bench.runtime.stop("u1", "main", 0.0))
    bench.run(bench.runtime.remove("u1"))
    bench.run(bench.runtime.remove("u1"))
    assert bench.state.values == {}
    assert os.listdir(os.path.join(bench.data_dir, "pods", "u1")) == []
    assert bench.restart() == []


@everywhere
def test_containers_of_many_pods_are_told_apart(bench: Bench) -> None:
    for n in range(4):
        bench.sh(f"exit {n + 10}", uid=f"u{n}", name=f"c{n % 2}")
    for n in range(4):
        # Ends come in any order, so each is asked for by `stop`, which returns what is known.
        assert bench.run(bench.runtime.stop(f"u{n}", f"c{n % 2}", 5.0)).exit_code in (n + 10, 143, 137)
    assert {(s.uid, s.container) for s in bench.restart()} == {(f"u{n}", f"c{n % 2}") for n in range(4)}


@everywhere
def test_what_a_container_uses_is_told_while_it_runs(bench: Bench) -> None:
    bench.sh("i=0; while :; do i=$((i+1)); done", name="busy")
    bench.sh("echo up; sleep 1000", name="idle")
    bench.until(lambda: bench.log(name="idle") == "up\n", "it is up")

    def usage() -> dict[tuple[str, str], tuple[int, int]]:
        return {(uid, name): (cpu, memory) for uid, name, cpu, memory in bench.run(bench.runtime.usage())}

    def worked() -> bool:
        return usage()["u1", "busy"][0] > 100_000_000

    bench.until(worked, "the busy one has used a tenth of a second")
    found = usage()
    assert found["u1", "idle"][0] < found["u1", "busy"][0]
    assert all(10_000 < memory < 1 << 30 for _, memory in found.values()), found
    for name in ("busy", "idle"):
        bench.run(bench.runtime.stop("u1", name, 0.0))
    assert usage() == {}
