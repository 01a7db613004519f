"""exec, attach and port-forward with stock kubectls (1.34 speaks WebSocket, 1.20 SPDY) against the hub's own API."""

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import termios
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from hub.kubelet import portforward, remotecommand
from tests.e2e.cluster import kubectl_binaries
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import until
from tests.hub.kubelet.kubectl_kit import DEADLINE_S, Kubectl, Served, ended, served
from tests.hub.serving import DEADLINE_S as HTTP_DEADLINE_S


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


@pytest.fixture
async def api(pki: Pki) -> AsyncIterator[Served]:
    async with served(pki) as made:
        yield made


@pytest.fixture(params=[0, 1], ids=["websocket", "spdy"])
def kubectl(
    request: pytest.FixtureRequest, api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kubectl:
    """The newer one would fall back to SPDY where WebSockets fail."""
    for module in (remotecommand, portforward):
        monkeypatch.delattr(module, ("open_spdy", "open_websocket")[request.param])
    return Kubectl(kubectl_binaries()[request.param], api.url, tmp_path)


async def test_a_command_runs_and_its_exit_code_is_kubectls(kubectl: Kubectl, api: Served) -> None:
    assert await kubectl("exec", "web", "--", "say", "hello") == (0, b"hello", "")
    code, out, err = await kubectl("exec", "web", "-c", "main", "--", "complain", "oh dear")
    assert (code, out) == (0, b"") and err.startswith("oh dear")
    code, _, err = await kubectl("exec", "web", "--", "exit", "42")
    assert code == 42 and "exit code 42" in err
    assert api.shell.requests[0]["pod"] == "web-uid" and api.shell.requests[0]["container"] == "main"
    assert not api.shell.requests[0]["stdin"] and not api.shell.jobs


async def test_megabytes_of_input_come_back_whole_after_its_end(kubectl: Kubectl) -> None:
    data = os.urandom(1 << 20)
    code, out, err = await kubectl("exec", "-i", "web", "--", "cat", stdin=data)
    assert (code, len(out), err) == (0, len(data), "")
    assert out == data


async def test_all_that_a_command_wrote_at_its_end_arrives(kubectl: Kubectl) -> None:
    code, out, _ = await kubectl("exec", "web", "--", "flood", str(3 << 20))
    assert (code, len(out)) == (0, 3 << 20)


async def test_attach_reaches_the_containers_own_streams(kubectl: Kubectl, api: Served) -> None:
    code, out, _ = await kubectl("attach", "-i", "web", stdin=b"to the container")
    assert code == 0 and b"to the container" in out
    assert api.shell.requests[0]["kind"] == "attach" and "command" not in api.shell.requests[0]


async def test_what_the_node_refuses_is_said_and_is_no_success(kubectl: Kubectl) -> None:
    code, _, err = await kubectl("exec", "web", "--", "refuse")
    assert code == 1 and "nobody is there" in err
    code, _, err = await kubectl("exec", "web", "-c", "other", "--", "say", "x")
    assert code == 1 and "container other is not valid for pod web" in err
    code, _, err = await kubectl("exec", "nothing", "--", "say", "x")
    assert code == 1 and '"nothing" not found' in err


async def test_a_kubectl_that_is_killed_ends_the_command_at_the_node(kubectl: Kubectl, api: Served) -> None:
    process = await kubectl.start("exec", "-i", "web", "--", "wait", stdin=asyncio.subprocess.PIPE)
    await until(lambda: api.shell.jobs, DEADLINE_S, "the command")
    process.kill()
    await process.wait()
    await until(lambda: api.shell.hung_up == 1, DEADLINE_S, "the end at the node")


async def test_a_node_that_is_lost_ends_the_command_with_a_reason(kubectl: Kubectl, api: Served) -> None:
    process = await kubectl.start("exec", "web", "--", "wait")
    await until(lambda: api.shell.jobs, DEADLINE_S, "the command")
    api.edge.drop()
    _, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 1 and b'connection to node "edge-1" was lost' in err


async def test_a_terminals_size_and_its_changes_reach_the_node(kubectl: Kubectl) -> None:
    parent, child = os.openpty()
    try:
        tty.setraw(child)
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = await kubectl.start(
            "exec", "-it", "web", "--", "sizes", "2", stdin=child, stdout=child, stderr=child,
            start_new_session=True,
        )  # fmt: skip
        shown = b""

        async def see(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                shown += await asyncio.wait_for(asyncio.to_thread(os.read, parent, 4096), DEADLINE_S)

        await see(b"80x24")
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        process.send_signal(28)  # SIGWINCH
        await see(b"132x50")
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    finally:
        os.close(child)
        os.close(parent)


@contextlib.asynccontextmanager
async def forwarding(kubectl: Kubectl, remote: int) -> AsyncIterator[int]:
    """The local port."""
    process = await kubectl.start("port-forward", "web", f":{remote}")
    assert process.stdout is not None and process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        found = re.match(rb"Forwarding from 127.0.0.1:(\d+)", line)
        assert found, (line, await process.stderr.read())
        yield int(found[1])
    finally:
        await ended(process)


async def through(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def write() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(write())
        got = await reader.read()
    writer.close()
    return got


async def test_several_connections_through_one_port_forward(kubectl: Kubectl, api: Served) -> None:
    async with forwarding(kubectl, 8080) as port:
        texts = [bytes([97 + i]) * (100_000 * (i + 1)) for i in range(5)]
        got = await asyncio.gather(*(through(port, text) for text in texts))
        assert got == [text.upper() for text in texts]
        assert [(r["kind"], r["port"]) for r in api.shell.requests] == [("portforward", 8080)] * 5
        assert await through(port, b"again") == b"AGAIN"
        await until(lambda: not api.hub.gateway.peers["edge-1"].streams, DEADLINE_S, "the streams' end")


async def test_a_port_where_nobody_listens_is_said(kubectl: Kubectl) -> None:
    process = await kubectl.start("port-forward", "web", ":1")
    assert process.stdout is not None and process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        found = re.match(rb"Forwarding from 127.0.0.1:(\d+)", line)
        assert found
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        writer.close()
        text = b""
        while b"nobody is there" not in text:
            more = await asyncio.wait_for(process.stderr.read(4096), DEADLINE_S)
            assert more, text
            text += more
    finally:
        await ended(process)


async def test_a_request_that_upgrades_to_nothing_known_is_refused_with_what_would_do(api: Served) -> None:
    path = f"{api.url}/api/v1/namespaces/default/pods/web/exec?command=say&command=x&stdout=true"
    upgrade = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    asked = [
        ({}, "Upgrade request required"),
        ({"Connection": "Upgrade", "Upgrade": "h2c"}, "Upgrade request required"),
        (upgrade, "unable to negotiate protocol: client supports none"),
        ({**upgrade, "X-Stream-Protocol-Version": "v1.x"}, "client supports v1.x, server v4.channel.k8s.io"),
    ]
    async with aiohttp.ClientSession() as http, asyncio.timeout(HTTP_DEADLINE_S):
        for headers, why in asked:
            async with http.post(path, headers=headers) as reply:
                assert reply.status == 400 and why in (await reply.json())["message"]
        async with http.put(path) as reply:
            assert reply.status == 405
    assert not api.shell.requests, "nothing is begun for a client that cannot be spoken with"


async def test_discovery_names_what_can_be_connected_to(api: Served) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{api.url}/api/v1") as reply:
        found = {r["name"]: r for r in (await reply.json())["resources"]}
    assert found["pods/exec"]["kind"] == "PodExecOptions" and found["pods/exec"]["verbs"] == ["create", "get"]
    assert found["pods/attach"]["kind"] == "PodAttachOptions"
    assert found["pods/portforward"]["kind"] == "PodPortForwardOptions"


async def test_a_hub_that_stops_ends_what_is_open_within_its_grace(pki: Pki, tmp_path: Path) -> None:
    async with served(pki) as api:
        open_now = []
        for binary in kubectl_binaries():
            kubectl = Kubectl(binary, api.url, tmp_path)
            for arguments in (("exec", "web", "--", "wait"), ("port-forward", "web", ":80")):
                open_now.append(await kubectl.start(*arguments))
        try:
            await until(lambda: len(api.shell.jobs) == 2, DEADLINE_S, "the commands")
            for process in open_now[1::2]:
                assert process.stdout is not None
                await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S / 2):
                await api.stop()
            await until(lambda: api.shell.hung_up == 2, DEADLINE_S, "the commands' end")
        finally:
            for process in open_now:
                await ended(process)
