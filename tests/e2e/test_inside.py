"""exec, attach, cp and port-forward as a user types them: stock kubectls, a real hub, a real agent, real processes."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, kubectl_binaries, wait_for
from tests.e2e.kube import Kube, processes_with


@pytest.fixture(scope="module", params=[0, 1], ids=["1.34", "1.20"])
def kube(request: pytest.FixtureRequest, shared_cluster: Cluster) -> Kube:
    """One namespace with a pod `web` that writes a line now and then."""
    made = Kube(shared_cluster, kubectl_binaries()[request.param], f"t-{os.urandom(4).hex()}")
    made.apply(web("i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done"))
    made.ready("pod/web")
    return made


def web(script: str) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"cloudhub.dev/runtime": "process"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "command": ["/bin/sh", "-c", script]}],
        },
    }


@contextlib.contextmanager
def running(kube: Kube, *arguments: str, **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A kubectl that goes on; killed at the end."""
    argv = [kube.binary, "--kubeconfig", kube.cluster.main.kubeconfig, "-n", kube.namespace, *arguments]
    process = subprocess.Popen(argv, env={**os.environ, "HOME": str(kube.cluster.root)}, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_a_command_runs_in_the_pod_and_its_exit_code_is_kubectls(kube: Kube) -> None:
    assert kube("exec", "web", "--", "echo", "hello").startswith("hello")
    assert "exit code 42" in kube("exec", "web", "--", "sh", "-c", "exit 42", code=42)
    assert "no-such-program" in kube("exec", "web", "--", "no-such-program", code=None)
    assert "oh dear" in kube("exec", "web", "--", "sh", "-c", "echo oh dear >&2")


def test_input_is_read_to_its_end_and_output_comes_whole(kube: Kube) -> None:
    text = "".join(f"line {i}\n" for i in range(50_000))
    assert kube("exec", "-i", "web", "--", "cat", stdin=text) == text
    out = kube("exec", "-i", "web", "--", "wc", "-c", stdin=text)
    assert int(out.split()[0]) == len(text)


def test_cp_takes_directories_there_and_back(kube: Kube, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "deep").mkdir(parents=True)
    (there / "big").write_bytes(os.urandom(3 << 20))
    (there / "deep" / "small").write_text("small")
    kube("cp", str(there), "web:copied")
    assert kube("exec", "web", "--", "cat", "copied/deep/small") == "small"
    kube("cp", "web:copied", str(back))
    assert (back / "big").read_bytes() == (there / "big").read_bytes()
    assert (back / "deep" / "small").read_text() == "small"


def test_a_terminal_knows_its_size_and_takes_control_characters(kube: Kube) -> None:
    parent, child = os.openpty()
    shown = b""
    reader: threading.Thread | None = None

    def see(text: bytes) -> None:
        nonlocal shown
        wait_for(lambda: text in shown, f"{text!r} on the terminal", 60, lambda: shown[-500:])
        shown = shown.partition(text)[2]

    def collect() -> None:
        nonlocal shown
        with contextlib.suppress(OSError):
            while data := os.read(parent, 4096):
                shown += data

    try:
        tty.setraw(child)
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
        arguments = ("exec", "-it", "web", "--", "sh")
        with running(kube, *arguments, stdin=child, stdout=child, stderr=child) as kubectl:
            reader = threading.Thread(target=collect, daemon=True)
            reader.start()
            # The size comes beside what is typed, and may come after it.
            os.write(parent, b'tty; until [ "$(stty size)" != "0 0" ]; do sleep 0.1; done; stty size\n')
            see(b"/dev/pts/")
            see(b"31 97")
            fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
            kubectl.send_signal(signal.SIGWINCH)

            def resized() -> bool:
                os.write(parent, b"stty size\n")
                return b"50 132" in shown

            wait_for(resized, "the new size", 60, lambda: shown[-500:])
            os.write(parent, b"echo now-$((6*7)); sleep 600\n")
            see(b"now-42")
            os.write(parent, b"\x03echo interrupted=$?\n")
            see(b"interrupted=130")
            os.write(parent, b"exit 5\n")
            assert kubectl.wait(60) == 5
    finally:
        os.close(child)
        if reader is not None:
            reader.join(60)  # else it goes on reading whatever has the descriptor's number next
        os.close(parent)


def test_attach_shows_what_the_container_writes_from_then_on(kube: Kube) -> None:
    with running(kube, "attach", "web", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as kubectl:
        assert kubectl.stdout is not None
        lines = [kubectl.stdout.readline() for _ in range(4)]
    ticks = [int(line.split()[1]) for line in lines if line.startswith(b"tick")]
    assert len(ticks) >= 3 and ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    assert "no standard input" in kube("attach", "-i", "web", stdin="x", code=None)


def test_a_kubectl_that_is_killed_leaves_nothing_running_at_the_node(kube: Kube) -> None:
    mark = f"mark-{kube.namespace}-{os.getpid()}"
    with running(kube, "exec", "web", "--", "sh", "-c", f"sleep 600; echo {mark}"):
        wait_for(lambda: [p for p in processes_with(mark) if "exec" not in p.cmdline()], "the command")
    wait_for(lambda: not processes_with(mark), "the command's end")


@contextlib.contextmanager
def served() -> Iterator[int]:
    """A port of this machine, which is the pods' own, where connections are answered with what they sent, in capitals, at
    its end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                got = b""
                while data := connection.recv(65536):
                    got += data
                connection.sendall(got.upper())

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def through(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
        sender.start()
        got = b""
        while part := s.recv(65536):
            got += part
        sender.join()
        return got


@contextlib.contextmanager
def forwarding(kube: Kube, remote: int) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """The local port, and what kubectl has said."""
    said: list[bytes] = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with running(kube, "port-forward", "web", f":{remote}", **pipes) as kubectl:
        out = kubectl.stdout
        assert out is not None

        def collect() -> None:
            with contextlib.suppress(ValueError):
                said.extend(iter(out.readline, b""))

        reader = threading.Thread(target=collect, daemon=True)
        reader.start()

        def port() -> int:
            found = re.search(rb"Forwarding from 127.0.0.1:(\d+)", b"".join(said))
            return int(found[1]) if found else 0

        yield wait_for(port, "the local port", 60, lambda: said), lambda: b"".join(said)
        kubectl.kill()
        reader.join(30)


def test_several_connections_at_once_through_one_forwarded_port(kube: Kube) -> None:
    with served() as remote, forwarding(kube, remote) as (port, _):
        texts = [bytes([97 + i]) * (200_000 * (i + 1)) for i in range(4)]
        got: dict[int, bytes] = {}
        threads = [
            threading.Thread(target=lambda i=i, t=t: got.update({i: through(port, t)}))  # type: ignore[misc]
            for i, t in enumerate(texts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [got.get(i) for i in range(4)] == [text.upper() for text in texts]
        assert through(port, b"and again") == b"AND AGAIN"


def test_a_port_where_nobody_listens_is_said(kube: Kube) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with forwarding(kube, taken.getsockname()[1]) as (port, said):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as s:
                assert s.recv(1) == b""
            wait_for(lambda: b"error forwarding port" in said(), "the reason", 60, said)


def test_what_cannot_be_is_said(kube: Kube) -> None:
    assert "not found" in kube("exec", "nothing", "--", "true", code=1)
    assert "other" in kube("exec", "web", "-c", "other", "--", "true", code=1)
