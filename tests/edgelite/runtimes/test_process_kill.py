"""Nothing of a container survives its end, wherever its processes hide."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite.runtimes import process_proc
from tests.edgelite.runtimes.harness import Bench, alive, as_user, no_cgroups
from tests.edgelite.runtimes.test_process_crash import record, running

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="tried as root; without, only the other half applies"
)


@pytest.fixture(params=["cgroups", "bare"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(str(tmp_path))
    if request.param == "bare":
        made.restart(cgroups=no_cgroups())
    yield made
    made.close()


def pids(bench: Bench, count: int) -> list[int]:
    """The pids that the script wrote to its log, one a line."""
    bench.until(lambda: len(bench.log().split()) == count, f"{count} pids")
    return [int(word) for word in bench.log().split()]


DAEMON = "setsid sh -c 'echo $$; trap \"\" TERM; while :; do sleep 0.05; done' &"
ORPHAN = "setsid env -i sh -c 'sh -c \"trap : TERM; echo \\$\\$; while :; do sleep 0.05; done\" & exit' &"


def test_stop_reaches_processes_in_sessions_of_their_own(bench: Bench) -> None:
    bench.sh(f"{DAEMON} echo $$; wait")
    found = pids(bench, 2)
    bench.run(bench.runtime.stop("u1", "main", 0.2))
    assert [p for p in found if alive(p)] == []


def test_stop_reaches_orphans_that_cleared_their_environment(bench: Bench) -> None:
    bench.sh(f"{ORPHAN} echo $$; while :; do sleep 0.05; done")
    found = pids(bench, 2)
    c = record(bench)
    bench.run(bench.runtime.stop("u1", "main", 0.2))
    assert [p for p in found if alive(p)] == []
    assert running(c.launch) == 0


def test_stop_tells_every_process_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    send = process_proc.send

    def spy(process: process_proc.Process, number: int, proc: str) -> None:
        if number == signal.SIGTERM:
            told.append(process.pid)
        send(process, number, proc)

    monkeypatch.setattr(process_proc, "send", spy)
    bench.sh("sleep 1000 & echo $$; echo $!; wait")
    found = pids(bench, 2)
    bench.run(bench.runtime.stop("u1", "main", 0.2))
    assert sorted(told) == sorted(found)


def test_what_a_container_leaves_behind_ends_with_it(bench: Bench) -> None:
    bench.sh(f"({DAEMON}) >pid; while [ ! -s pid ]; do sleep 0.02; done; cat pid; exit 3")
    end = bench.ended()
    assert end.exit_code == 3
    found = pids(bench, 1)
    assert not alive(found[0])


def test_what_an_exec_leaves_behind_ends_with_the_container(bench: Bench) -> None:
    bench.sh("while :; do sleep 0.05; done")
    script = "setsid sh -c 'echo $$; while :; do sleep 0.05; done' >daemon 2>&1 & "
    script += "while [ ! -s daemon ]; do sleep 0.02; done; cat daemon"
    _, output = bench.run(bench.runtime.exec("u1", "main", ["sh", "-c", script], 5.0))
    assert alive(int(output))
    bench.run(bench.runtime.stop("u1", "main", 0.0))
    assert not alive(int(output))


def test_a_growing_tree_of_processes_is_ended(bench: Bench) -> None:
    bench.sh("echo up; while :; do (sleep 0.3; sleep 0.3) & sleep 0.01; done")
    bench.log_has("up")
    c = record(bench)
    bench.run(bench.runtime.stop("u1", "main", 0.0))
    assert running(c.launch) == 0


def test_the_shim_survives_the_end_of_the_agents_group(bench: Bench) -> None:
    bench.sh("echo up; while :; do sleep 0.05; done")
    bench.log_has("up")
    c = record(bench)
    assert os.getsid(c.shim[0]) == c.shim[0] != os.getsid(0)
    assert os.getsid(c.work[0]) == c.work[0] != c.shim[0]


def test_workloads_start_with_ordinary_signals(bench: Bench) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and what is ignored is inherited."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        bench.start(["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"])
    finally:
        signal.signal(signal.SIGTERM, before)
    bench.ended()
    # 32 and 33 belong to the C library, which lets no program change them: what the test runner inherited stays.
    own = ~(1 << 31 | 1 << 32)
    masks = [int(line.split()[1], 16) & own for line in bench.log().splitlines()]
    assert masks == [0, 0]


def test_workloads_inherit_no_descriptors(bench: Bench) -> None:
    bench.start(["ls", "/proc/self/fd"])
    bench.ended()
    assert bench.log().split() == ["0", "1", "2", "3"]  # 3 is ls reading the directory


@needs_root
def test_an_ordinary_users_agent_ends_orphans_as_well() -> None:
    def run(directory: str) -> None:
        bench = Bench(directory)
        test_stop_reaches_orphans_that_cleared_their_environment(bench)
        bench.close()

    as_user(run)


@needs_root
def test_the_memory_limit_ends_a_container_as_out_of_memory(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    assert "memory" in bench.runtime._cgroups.limits, "this machine has no writable memory cgroup"
    bench.sh(
        "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c; exit 1",
        resources={"limits": {"memory": "24Mi", "cpu": "1500m"}, "requests": {"cpu": "100m"}},
    )
    end = bench.ended()
    assert (end.exit_code, end.reason) != (0, "Completed")
    assert end.reason == "OOMKilled"
    bench.close()


@needs_root
def test_cgroups_go_with_the_container(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    bases = [h.base for h in bench.runtime._cgroups._hierarchies]
    bench.sh("echo up; while :; do sleep 0.05; done", resources={"limits": {"cpu": "500m", "memory": "32Mi"}})
    assert all(os.path.isdir(f"{base}/u1/main.0") for base in bases)
    bench.run(bench.runtime.stop("u1", "main", 0.0))
    assert not any(os.path.exists(f"{base}/u1") for base in bases)
    bench.close()
    assert not any(os.path.exists(base) for base in bases)
