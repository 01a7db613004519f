"""Whatever is killed when: a container runs at most once, and its end is told truthfully."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite.loop import Loop
from edgelite.runtimes import process_proc
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.process_container import NOBODY, Container
from tests.edgelite.runtimes.harness import Bench, alive, no_cgroups

LOOP = "echo up; while :; do sleep 0.05; done"


@pytest.fixture(params=["cgroups", "bare"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(str(tmp_path))
    if request.param == "bare":
        made.restart(cgroups=no_cgroups())
    yield made
    made.close()


def record(bench: Bench) -> Container:
    return bench.runtime._attempts[("u1", "main")][-1]


def running(launch: str) -> int:
    """How many processes of a launch run, shim and logger included."""
    snapshot = process_proc.Snapshot("/proc")
    return len(snapshot.workload(launch, 0, 0)) + len(snapshot.shim(launch))


def test_an_intent_without_a_process_is_no_attempt(bench: Bench) -> None:
    bench.sh("exit 3")
    bench.ended()
    c = Container(
        "u1", "main", 1, "1" * 32, os.path.join(bench.data_dir, "pods/u1/process/main/1"), bench.boot
    )
    bench.state.put(c.key, c.record())
    (found,) = bench.restart()
    assert (found.attempt, found.exit_code) == (0, 3)
    assert "u1/main/1" not in bench.state.values


def test_an_agent_that_dies_before_the_shim_is_durable_takes_it_along(tmp_path: Path) -> None:
    """kill -9 between fork and the record of the pid: the shim sees the pipe close and does nothing."""
    reader, writer = os.pipe()
    agent = os.fork()
    if agent == 0:
        try:
            bench = Bench(str(tmp_path))
            put = bench.state.put

            def die_at_second_put(key: str, value: bytes) -> None:
                if json.loads(value)["shim"] != [0, 0]:
                    os.write(
                        writer,
                        b"%d %s" % (json.loads(value)["shim"][0], json.loads(value)["launch"].encode()),
                    )
                    os.kill(os.getpid(), signal.SIGKILL)
                put(key, value)

            bench.state.put = die_at_second_put  # type: ignore[method-assign]
            bench.sh(LOOP)
        finally:
            os._exit(9)
    os.close(writer)
    assert os.waitpid(agent, 0)[1] == signal.SIGKILL
    with os.fdopen(reader, "rb") as f:
        pid, launch = f.read().decode().split()
    witness = Bench(str(tmp_path / "witness"))
    witness.until(lambda: not alive(int(pid)), "end of the shim")
    assert running(launch) == 0
    witness.close()


def test_an_agent_killed_while_it_starts_leaves_one_running_copy(tmp_path: Path) -> None:
    """kill -9 right after the shim was let go: the next agent finds it and what it started."""
    bench = Bench(str(tmp_path))
    launch = bench.launch(["/bin/sh", "-c", LOOP])
    start = bench.runtime.start(launch)
    next(start)  # forked and released, the report not read
    start.close()
    (found,) = bench.restart()
    assert found.phase == "running"
    bench.log_has("up")
    assert bench.run(bench.runtime.exec("u1", "main", ["true"], 5.0)) == (0, b"")
    with pytest.raises(RuntimeFailure, match="still running"):
        bench.sh(LOOP, attempt=1)
    bench.close()


def test_a_full_journal_starts_nothing(bench: Bench) -> None:
    for puts in (0, 1):
        bench.state.fail_after = puts
        with pytest.raises(RuntimeFailure, match="No space left"):
            bench.sh(LOOP)
    bench.state.fail_after = None
    assert bench.restart() == []
    assert len(bench.state.offered) == 3
    for value in bench.state.offered:
        launch = json.loads(value)["launch"]
        bench.until(lambda launch=launch: running(launch) == 0, "end of the shim")  # type: ignore[misc]


def test_a_killed_shim_ends_the_container_as_unknown(bench: Bench) -> None:
    bench.sh("(while :; do sleep 0.05; done) & " + LOOP)
    bench.log_has("up")
    c = record(bench)
    os.kill(c.shim[0], signal.SIGKILL)
    end = bench.ended()
    assert (end.exit_code, end.reason) == (137, "ContainerStatusUnknown")
    assert "shim" in end.message
    bench.until(lambda: running(c.launch) == 0, "nothing left")


def test_a_shim_killed_while_no_agent_ran_is_noticed(bench: Bench) -> None:
    bench.sh(LOOP)
    bench.log_has("up")
    c = record(bench)
    os.kill(c.shim[0], signal.SIGKILL)
    (found,) = bench.restart()
    assert (found.phase, found.exit_code, found.reason) == ("exited", 137, "ContainerStatusUnknown")
    assert running(c.launch) == 0


def test_a_used_again_pid_is_not_taken_for_the_container(bench: Bench) -> None:
    bench.sh("exit 5")
    bench.ended()
    # As if the agent had died before it saw the end, and the pids now belonged to somebody else: this test.
    value = json.loads(bench.state.values["u1/main/0"])
    del value["exit"]
    value["shim"] = [os.getpid(), 1]
    bench.state.values["u1/main/0"] = json.dumps(value).encode()
    (found,) = bench.restart()
    assert (found.phase, found.exit_code) == ("exited", 5)
    # Even with the right start time: the launch id is missing from its environment.
    me = process_proc.read(os.getpid(), "/proc")
    assert me is not None
    value["shim"] = [os.getpid(), me.start]
    bench.state.values["u1/main/0"] = json.dumps(value).encode()
    (found,) = bench.restart()
    assert (found.phase, found.exit_code) == ("exited", 5)
    assert record(bench).shim == NOBODY


def test_after_a_reboot_a_recorded_exit_code_counts(bench: Bench) -> None:
    bench.sh("exit 8")
    bench.until(lambda: record(bench).written("exit") is not None, "exit code")
    bench.boot = "boot-2"
    (found,) = bench.restart()
    assert (found.exit_code, found.reason) == (8, "Error")


def test_a_new_boot_id_on_a_machine_that_did_not_restart_doubles_nothing(bench: Bench) -> None:
    bench.sh(LOOP)
    bench.log_has("up")
    launch = record(bench).launch
    bench.boot = "boot-2"
    (found,) = bench.restart()
    assert found.phase == "exited"
    assert running(launch) == 0


def test_an_end_is_decided_once(bench: Bench) -> None:
    bench.sh(LOOP)
    os.kill(record(bench).shim[0], signal.SIGKILL)
    first = bench.ended()
    (second,) = bench.restart()
    assert (second.exit_code, second.reason, second.finished_at) == (
        first.exit_code,
        first.reason,
        first.finished_at,
    )


def test_nothing_waits_when_nothing_runs(bench: Bench) -> None:
    changes = bench.runtime.changes(None)
    assert next(changes).deadline is None  # no periodic wake-ups
    changes.close()


def test_changes_that_waits_notices_what_is_started_meanwhile(bench: Bench) -> None:
    bench.loop = Loop()
    waiting = bench.spawn(bench.runtime.changes(None))
    bench.loop.turn(0.0)
    bench.sh("exit 3")
    (end,) = bench.finish(waiting)
    assert end.exit_code == 3
