"""What every runtime promises of streams that go both ways, with real processes: exec, attach, port-forward.

The agent's end is real, from its `Streams` down; the hub's end keeps the accounts of credit (tests/edgelite/runtimes/hubside.py).
"""

import hashlib
import os
import socket

from tests.contract.test_runtimes import everywhere
from tests.edgelite.runtimes.harness import Bench
from tests.edgelite.runtimes.hubside import HubSide, descriptors
from tests.podman import podman  # noqa: F401

IDLE = "echo up; while :; do sleep 0.05; done"


def running(bench: Bench, **options: object) -> HubSide:
    bench.sh(IDLE, **options)
    return HubSide(bench)


@everywhere
def test_a_command_has_its_own_output_error_and_exit_code(bench: Bench) -> None:
    hub = running(bench)
    done = hub.run("sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.out, done.err, done.code) == ("out\n", "err\n", 42)
    done = hub.run("true")
    assert (done.out, done.err, done.code) == ("", "", 0)


@everywhere
def test_a_command_runs_in_the_surroundings_of_its_container(bench: Bench) -> None:
    bench.sh("pwd; id -u; echo $COLOUR; " + IDLE, env=[("COLOUR", "blue")])
    bench.log_has("up")
    hub = HubSide(bench)
    done = hub.run("sh", "-c", "pwd; id -u; echo $COLOUR")
    assert done.out + "up\n" == bench.log()


@everywhere
def test_input_arrives_whole_and_its_end_is_seen(bench: Bench) -> None:
    hub = running(bench)
    data = bytes(range(256)) * 4000  # a megabyte: many windows
    opened = hub.open(command=["sh", "-c", "sha256sum; echo end"], stdin=True)
    opened.send(0, data)
    opened.end_input()
    opened.ended()
    assert opened.out.split()[0] == hashlib.sha256(data).hexdigest()
    assert opened.code == 0


@everywhere
def test_output_waits_for_credit_and_arrives_whole(bench: Bench) -> None:
    hub = running(bench)
    opened = hub.open(command=["sh", "-c", "head -c 300000 /dev/zero; exit 5"], credit=1000)
    bench.until(lambda: opened.credit < 2, "the credit to be used")
    for _ in range(10):
        bench.loop.turn(0.01)
    assert len(opened.channels[1]) < 1000 and opened.closed is None
    opened.grant(1 << 20)
    opened.ended()
    assert (len(opened.channels[1]), opened.code) == (300000, 5)
    assert opened.largest <= 32768


@everywhere
def test_what_does_not_exist_is_refused_with_a_reason(bench: Bench) -> None:
    hub = running(bench)
    opened = hub.run("no-such-program")
    # An engine may say it in the output, with the shell's exit code for it.
    said = opened.err if opened.closed == {} and opened.code == 127 else opened.error["message"]
    assert "no-such-program" in said
    assert hub.run("true", container="other").error["code"] == "BadRequest"
    opened = hub.open(command=[])
    opened.ended()
    assert opened.error["code"] == "BadRequest"


@everywhere
def test_a_terminal_is_one_and_takes_the_size_that_it_is_told(bench: Bench) -> None:
    hub = running(bench)
    opened = hub.open(command=["sh"], stdin=True, tty=True)
    opened.resize(123, 45)
    opened.type("test -t 0 && test -t 1 && test -t 2 && echo it is a ter'minal'; echo term $TERM\n")
    opened.says("it is a terminal\r\n")
    opened.says("term xterm")
    opened.type("stty size\n")
    opened.says("45 123\r\n")
    opened.resize(80, 24)
    opened.type("stty size\n")
    opened.says("24 80\r\n")
    opened.type("exit 7\n")
    opened.ended()
    assert (opened.code, opened.err) == (7, "")


@everywhere
def test_what_is_typed_reaches_the_program_also_as_a_signal(bench: Bench) -> None:
    hub = running(bench)
    opened = hub.open(command=["sh", "-c", "trap 'echo interrupted; exit 3' INT; echo ready; read x"], stdin=True, tty=True)  # fmt: skip
    opened.says("ready")
    opened.type("\x03")
    opened.says("interrupted")
    opened.ended()
    assert opened.code == 3


@everywhere
def test_closing_kills_what_was_started(bench: Bench) -> None:
    hub = running(bench)
    seconds = str(10**8 + int.from_bytes(os.urandom(3), "big"))  # tells this one's processes from others'
    # The shell that looks must not find itself.
    look = f"for f in /proc/[0-9]*; do tr '\\0' ' ' <$f/cmdline 2>/dev/null | grep '^sleep {seconds[:-1]}[{seconds[-1]}]'; done; true"  # fmt: skip
    for tty in (False, True):
        opened = hub.open(command=["sh", "-c", f"sleep {seconds} & echo pid $$; wait"], stdin=True, tty=tty)
        opened.says("pid ")
        bench.until(lambda: hub.run("sh", "-c", look).out != "", "it runs")
        opened.close()
        bench.until(lambda: hub.run("sh", "-c", look).out == "", "the end of what was started")
    assert len(hub.streams) == 0
    assert bench.log() == "up\n"


@everywhere
def test_streams_leave_no_descriptor_behind(bench: Bench) -> None:
    hub = running(bench)
    hub.run("true")
    before = descriptors()
    for _ in range(3):
        hub.run("sh", "-c", "echo x; exit 1", stdin=True)
        hub.run("no-such-program", tty=True)
        opened = hub.open(command=["sh"], stdin=True, tty=True)
        opened.type("echo hi\n")
        opened.says("hi")
        opened.close()
    bench.until(lambda: descriptors() <= before, "the descriptors to be closed")


@everywhere
def test_attaching_shows_what_the_container_says_from_now_on(bench: Bench) -> None:
    bench.sh(
        "echo before; while [ ! -e go ]; do sleep 0.02; done; echo after; while [ ! -e stop ]; do sleep 0.02; done"
    )
    bench.log_has("before")
    hub = HubSide(bench)
    opened = hub.open("attach")
    bench.until(lambda: opened.may_send, "the attachment")
    hub.run("touch", "go")
    opened.says("after\n")
    hub.run("touch", "stop")
    bench.ended()
    opened.ended()
    assert opened.code == 0
    assert "before" not in opened.out


@everywhere
def test_a_forwarded_port_carries_both_directions_and_the_end_of_each(bench: Bench) -> None:
    hub = running(bench)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        opened = hub.open("portforward", port=server.getsockname()[1], container=None)
        bench.until(lambda: opened.may_send, "the connection")
        peer = server.accept()[0]
        with peer:
            opened.type("ping")
            opened.end_input()
            bench.until(lambda: not len(opened_tasks(hub, opened)), "the input's end")
            assert peer.recv(100) == b"ping"
            assert peer.recv(100) == b""
            peer.sendall(b"x" * 200000)
        opened.ended()
    assert opened.out == "x" * 200000
    assert bytes(opened.channels[255]) == b"\1"
    assert opened.code == 0


def opened_tasks(hub: HubSide, opened: object) -> list[object]:
    """The inputs of a stream that are still fed."""
    found = [s for s in hub.streams._open.values() if s.stream == opened.stream]  # type: ignore[attr-defined]
    return [s for s in found if s._feeding]  # type: ignore[attr-defined]


@everywhere
def test_a_port_where_nobody_listens_is_refused_with_a_reason(bench: Bench) -> None:
    hub = running(bench)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        opened = hub.open("portforward", port=free.getsockname()[1])
        opened.ended()
    assert opened.error["code"] == "ConnectFailed" and "ECONNREFUSED" in opened.error["message"]


@everywhere
def test_a_command_ends_with_its_container(bench: Bench) -> None:
    hub = running(bench)
    opened = hub.open(command=["sh", "-c", "echo $$; sleep 1000"])
    opened.says("\n")
    bench.run(bench.runtime.stop("u1", "main", 0.0))
    opened.ended()
    assert opened.code != 0
