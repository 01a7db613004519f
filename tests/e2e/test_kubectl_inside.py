"""Stock kubectl inside pods of a real agent: exec with and without a terminal, cp, attach, port-forward."""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import sleeper, wait_for
from tests.e2e.kube import Kube, processes_with

WAIT_S = 60.0
TALKER = "echo up; n=0; while :; do n=$((n+1)); echo line $n; sleep 0.3; done"


@pytest.fixture
def pod(kube: Kube) -> str:
    kube.apply(sleeper("web", "n1", TALKER))
    kube.ready("pod/web")
    return "web"


class Terminal:
    """A kubectl on a terminal of its own."""

    def __init__(self, kube: Kube, *arguments: str) -> None:
        argv = [kube.binary, "--kubeconfig", kube.cluster.main.kubeconfig, "-n", kube.namespace, *arguments]
        self._master, slave = os.openpty()
        try:
            self.process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
            )
        finally:
            os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def shows(self, text: str) -> None:
        until = time.monotonic() + WAIT_S
        while text not in self.text:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} is not shown: {self.text!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"{text!r} is not shown: {self.text!r}") from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(kube: Kube, *arguments: str) -> Iterator[Terminal]:
    made = Terminal(kube, *arguments)
    try:
        yield made
    finally:
        made.close()


def test_exec_gives_output_error_input_and_exit_code(kube: Kube, pod: str) -> None:
    assert kube("exec", pod, "--", "sh", "-c", "echo out; echo err >&2").split() == ["out", "err"]
    assert "exit code 3" in kube("exec", pod, "--", "sh", "-c", "exit 3", code=3)
    assert kube("exec", "-i", pod, "--", "tr", "a-z", "A-Z", stdin="shout\n") == "SHOUT\n"
    assert "no-such-program" in kube("exec", pod, "--", "no-such-program", code=None)


def test_exec_with_a_terminal_is_a_shell(kube: Kube, pod: str) -> None:
    with terminal(kube, "exec", "-it", pod, "--", "sh") as shell:
        shell.type("test -t 0 && echo a ter''minal\r")
        shell.shows("a terminal")
        nap = f"sleep {10**8 + int.from_bytes(os.urandom(3), 'big')}"
        shell.type(nap + "\r")
        wait_for(lambda: processes_with(nap), "it runs", WAIT_S)
        shell.type("\x03")
        shell.type("echo sta''tus $?\r")
        shell.shows("status 130")
        shell.type("exit 7\r")
        assert shell.process.wait(WAIT_S) == 7


def test_a_kubectl_that_is_killed_takes_its_command_along(kube: Kube, pod: str) -> None:
    mark = f"mark-{kube.namespace}"
    with terminal(kube, "exec", "-it", pod, "--", "sh", "-c", f": {mark}; echo here; sleep 1000") as shell:
        shell.shows("here")
        assert processes_with(f": {mark}; echo here; sleep")
    wait_for(lambda: not processes_with(f": {mark}; echo here; sleep"), "the command has gone", WAIT_S)


def test_cp_carries_files_there_and_back(kube: Kube, pod: str, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(data)
    # Relative, for the folders above are the agent's own.
    kube("cp", str(there), f"{pod}:file")
    kube("cp", f"{pod}:file", str(back))
    assert back.read_bytes() == data


def test_attach_follows_the_output(kube: Kube, pod: str) -> None:
    with kube.following("attach", pod) as text:
        wait_for(lambda: len(re.findall(r"line \d+", text())) >= 3, "lines are shown", WAIT_S, text)


def test_port_forward_reaches_what_listens_on_the_node(kube: Kube, pod: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        port = server.getsockname()[1]
        with kube.following("port-forward", pod, f":{port}") as text:
            found = wait_for(lambda: re.search(r"127.0.0.1:(\d+) ->", text()), "it listens", WAIT_S, text)
            # After each connection Debian's waits for the 30 s for which a half-closed one lingers at the node.
            for n in range(3 if kube.is_current else 1):
                with socket.create_connection(("127.0.0.1", int(found[1])), timeout=WAIT_S) as client:
                    peer = server.accept()[0]
                    with peer:
                        peer.settimeout(WAIT_S)
                        client.sendall(b"ping %d" % n)
                        assert peer.recv(100) == b"ping %d" % n
                        peer.sendall(bytes(300000))
                        peer.shutdown(socket.SHUT_WR)
                        got = b""
                        while more := client.recv(65536):
                            got += more
                        assert len(got) == 300000


def test_a_static_pod_is_shown_read_and_not_stopped_by_deleting_its_mirror(kube: Kube) -> None:
    agent = kube.cluster.agents["n1"]
    mark = f"mark-{kube.namespace}-static"
    directory = agent.data_dir / "manifests"
    directory.mkdir(exist_ok=True)
    file = directory / f"{kube.namespace}.json"
    container = {"name": "main", "command": ["/bin/sh", "-c", f": {mark}; echo static; sleep 1000"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    labels = {"cloudhub.dev/runtime": "process"}  # which need no image
    meta = {"name": "till", "namespace": kube.namespace, "labels": labels}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}))
    try:
        wait_for(lambda: "Running" in kube("get", "pod", "till-n1", code=None), "it is shown", WAIT_S)
        wait_for(lambda: kube("logs", "till-n1") == "static\n", "its log is read", WAIT_S)
        assert kube("exec", "till-n1", "--", "echo", "inside") == "inside\n"
        (process,) = processes_with(mark)
        uid = kube.json("pod", "till-n1")["metadata"]["uid"]
        kube("delete", "pod", "till-n1", "--wait=false")
        shown = "jsonpath={.metadata.uid}"
        wait_for(
            lambda: (
                kube("get", "pod", "till-n1", "-o", shown, code=None) not in ("", uid)
                and "NotFound" not in kube("get", "pod", "till-n1", code=None)
            ),
            "it is made anew",
            WAIT_S,
        )
        assert process.is_running()
    finally:
        file.unlink()
    wait_for(lambda: not processes_with(mark), "it has ended with its file", WAIT_S)
    kube.gone("pods", "till-n1")
