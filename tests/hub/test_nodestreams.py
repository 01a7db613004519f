"""Duplex streams between a client and a node: in one replica, and through another one, over a bus here and real NATS."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from hub.duplex import ERROR, RESIZE, STDERR, STDIN, STDOUT, DuplexStream, check_body
from hub.errors import ApiError, BadRequest, ServiceUnavailable, TooManyRequests
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, until
from tests.hub.test_relaying import BUSES, DEADLINE_S, buses, replicas, slot
from tests.sim.fleet import SimNode
from tests.sim.shell import Shell


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


def command(*words: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "exec", "pod": "u", "container": "main", "command": list(words),
        "stdin": True, "stdout": True, "stderr": True, "tty": False, **fields,
    }  # fmt: skip


async def connected(h: Hub, name: str = "edge-1", **options: Any) -> SimNode:
    edge = await h.enrol(name)
    edge.shell = Shell(edge.send, **options)
    await h.connect(edge)
    return edge


async def all_of(stream: DuplexStream) -> dict[int, bytes]:
    """What came, by channel."""
    got: dict[int, bytes] = {}
    async with asyncio.timeout(DEADLINE_S):
        async for channel, data in stream.read():
            got[channel] = got.get(channel, b"") + data
    return got


def exit_code(got: dict[int, bytes]) -> int:
    status = orjson.loads(got[ERROR])
    return 0 if status["status"] == "Success" else int(status["details"]["causes"][0]["message"])


@pytest.fixture(params=["owner", "local", "nats"])
async def line(request: pytest.FixtureRequest, pki: Pki) -> AsyncIterator[tuple[Any, SimNode]]:
    """What opens streams (a gateway, or the relay of a replica that owns nothing), and a node with a shell."""
    if request.param == "owner":
        async with hub(pki) as h:
            yield h.gateway, await connected(h)
        return
    async with buses(request.param) as (two, _), replicas(pki, two) as (a, b):
        yield b.relay, await connected(a.hub)


async def test_a_command_writes_to_both_outputs_and_says_how_it_ended(line: tuple[Any, SimNode]) -> None:
    opener, edge = line
    for words, channel, code in ((("say", "yes"), STDOUT, 0), (("complain", "no"), STDERR, 0)):
        stream = await opener.open_stream("edge-1", command(*words))
        await stream.started()
        got = await all_of(stream)
        assert got[channel] == words[1].encode() and exit_code(got) == code
    got = await all_of(await opener.open_stream("edge-1", command("exit", "7")))
    assert exit_code(got) == 7
    assert edge.shell is not None and edge.shell.requests[0]["command"] == ["say", "yes"]
    assert edge.shell.hung_up == 0


async def test_more_than_the_credit_passes_in_both_directions(
    line: tuple[Any, SimNode],
) -> None:
    opener, _ = line
    stream = await opener.open_stream("edge-1", command("cat"))
    sent = bytes(range(256)) * 3072

    async def write() -> None:
        assert await stream.send(STDIN, sent)
        assert await stream.finish(STDIN)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        got = await all_of(stream)
    assert got[STDOUT] == sent and exit_code(got) == 0


async def test_a_client_that_does_not_read_stops_the_node_not_the_connection(
    line: tuple[Any, SimNode],
) -> None:
    opener, edge = line
    stuck = await opener.open_stream("edge-1", command("flood", str(2 << 20)))
    await stuck.started()
    assert edge.shell is not None
    (job,) = edge.shell.jobs.values()
    await until(lambda: job.credit < 2, DEADLINE_S, "the credit to be used up")
    assert len(job.out) > 1 << 20
    got = await all_of(await opener.open_stream("edge-1", command("say", "beside it")))
    assert got[STDOUT] == b"beside it"
    assert len((await all_of(stuck))[STDOUT]) == 2 << 20


async def test_sizes_of_a_terminal_arrive_in_order(line: tuple[Any, SimNode]) -> None:
    opener, _ = line
    stream = await opener.open_stream("edge-1", command("sizes", "2", tty=True, stderr=False))
    await stream.send(RESIZE, b'{"Width":80,"Height":24}')
    await stream.send(RESIZE, b'{"Width":132,"Height":50}')
    assert (await all_of(stream))[STDOUT] == b"80x24\n132x50\n"


async def test_what_the_node_refuses_is_the_clients_error_before_it_began(line: tuple[Any, SimNode]) -> None:
    opener, _ = line
    stream = await opener.open_stream("edge-1", command("refuse"))
    with pytest.raises(BadRequest, match="nobody is there"):
        await stream.started()
    stream = await opener.open_stream("edge-1", {"kind": "portforward", "pod": "u", "port": 1})
    with pytest.raises(BadRequest, match="nobody is there"):
        await stream.started()


async def test_a_client_that_leaves_ends_the_command_at_the_node(line: tuple[Any, SimNode]) -> None:
    opener, edge = line
    stream = await opener.open_stream("edge-1", command("wait"))
    await stream.started()
    stream.close()
    stream.close()
    assert edge.shell is not None
    await until(lambda: edge.shell is not None and edge.shell.hung_up == 1, DEADLINE_S)
    assert not edge.shell.jobs and not await stream.send(STDIN, b"x")


async def test_a_node_that_is_lost_ends_its_streams_with_a_reason(line: tuple[Any, SimNode]) -> None:
    opener, edge = line
    stream = await opener.open_stream("edge-1", command("wait"))
    await stream.started()
    edge.drop()
    with pytest.raises(ServiceUnavailable, match="connection to node"):
        await all_of(stream)
    with pytest.raises(ServiceUnavailable, match="not connected"):
        again = await opener.open_stream("edge-1", command("wait"))
        await again.started()


async def test_an_agent_without_the_feature_is_not_asked(pki: Pki) -> None:
    async with hub(pki) as h:
        await connected(h, "edge-1", features=("portforward",))
        with pytest.raises(BadRequest, match="does not know exec; update edgelite"):
            await h.gateway.open_stream("edge-1", command("say", "x"))
        ports = await h.gateway.open_stream("edge-1", {"kind": "portforward", "pod": "u", "port": 80})
        await ports.started()
        ports.close()


async def test_streams_of_a_node_are_limited_in_number(pki: Pki) -> None:
    async with hub(pki, streams_max=2) as h:
        await connected(h)
        kept = [await h.gateway.open_stream("edge-1", command("wait")) for _ in range(2)]
        with pytest.raises(TooManyRequests, match="serves 2 streams already"):
            await h.gateway.open_stream("edge-1", command("wait"))
        kept[0].close()
        await h.gateway.open_stream("edge-1", command("wait"))


async def test_a_small_node_gets_no_more_at_a_time_than_it_takes(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await a.hub.enrol("edge-1")
        edge.shell = Shell(edge.send)
        edge.limits = {"document": 4096, "frame": 300}
        edge.decoder.frame_bytes_max = 300
        edge.connect(a.address)
        await until(lambda: edge.welcome is not None, DEADLINE_S)
        edge.decoder.frame_bytes_max = 300
        for opener in (a.relay, b.relay):
            stream = await opener.open_stream("edge-1", command("cat"))
            await stream.send(STDIN, b"z" * 2000)
            await stream.finish(STDIN)
            assert (await all_of(stream))[STDOUT] == b"z" * 2000


async def test_a_suspended_hub_passes_nothing_down_and_goes_on_when_it_may(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, _):
        edge = await connected(a.hub)
        stream = await a.gateway.open_stream("edge-1", command("cat"))
        await stream.started()
        a.own.suspend()
        sending = asyncio.create_task(stream.send(STDIN, b"late"))
        with pytest.raises(ServiceUnavailable, match="may not act"):
            await a.gateway.open_stream("edge-1", command("cat"))
        for _ in range(5):
            await asyncio.sleep(0)  # the sender's turns, in which nothing may leave
        assert not sending.done()
        assert edge.shell is not None
        (job,) = edge.shell.jobs.values()
        assert not job.out
        a.own.resume()
        assert await asyncio.wait_for(sending, DEADLINE_S)
        await stream.finish(STDIN)
        assert (await all_of(stream))[STDOUT] == b"late"


@BUSES
async def test_a_lost_bus_ends_relayed_streams_with_a_reason(pki: Pki, kind: str) -> None:
    async with buses(kind) as (two, servers), replicas(pki, two) as (a, b):
        edge = await connected(a.hub)
        stream = await b.relay.open_stream("edge-1", command("wait"))
        await stream.started()
        if servers is not None:
            await asyncio.get_running_loop().run_in_executor(None, servers.kill)
        else:
            two[1].cut()  # type: ignore[attr-defined]
            two[0].cut()  # type: ignore[attr-defined]
        with pytest.raises(ServiceUnavailable):
            await all_of(stream)
        assert edge.shell is not None
        await until(lambda: edge.shell is not None and edge.shell.hung_up == 1, DEADLINE_S, "the node's end")
        assert not a.relay.far.logs and not len(b.relay.near)


async def test_a_message_that_the_bus_swallows_ends_the_stream_instead_of_a_hole_in_it(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        await connected(a.hub)
        real, dropped = two[0].publish, []

        def lossy(subject: str, data: bytes) -> bool:
            if not dropped and b"fff" in data:
                dropped.append(subject)
                return True
            return real(subject, data)

        two[0].publish = lossy  # type: ignore[method-assign]
        lost = await b.relay.open_stream("edge-1", command("flood", "100000"))
        with pytest.raises(ServiceUnavailable, match="stream of node"):
            await all_of(lost)
        assert dropped
        again = await b.relay.open_stream("edge-1", command("flood", "100000"))
        assert len((await all_of(again))[STDOUT]) == 100_000


async def test_a_stream_of_a_relayed_node_reaches_a_client_at_either_replica(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await a.hub.enrol("edge-1")
        edge.shell = Shell(edge.send)
        edge.connect(b.address)
        await until(lambda: edge.welcome is not None, DEADLINE_S, "WELCOME over the relay")
        for replica in (a, b):
            got = await all_of(await replica.relay.open_stream("edge-1", command("say", replica.own.id)))
            assert got[STDOUT] == replica.own.id.encode()


async def test_a_slot_that_moves_ends_its_streams(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        await connected(a.hub)
        streams = [await r.relay.open_stream("edge-1", command("wait")) for r in (a, b)]
        for stream in streams:
            await stream.started()
        await a.own.give([slot("edge-1")])
        for stream in streams:
            with pytest.raises(ServiceUnavailable):
                await all_of(stream)
        assert not a.relay.far.logs


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"kind": "log", "pod": "u"}, "no streams of kind"),
        ({"kind": "exec", "pod": ""}, "UID"),
        (command(), "1 to 1024 words"),
        (command("a\0b"), "without NUL"),
        (command("x" * 20_000), "longer than"),
        (command("x", container=""), "container"),
        (command("x", stdin=False, stdout=False, stderr=False), "at least 1 of"),
        (command("x", tty=True), "one output"),
        ({"kind": "portforward", "pod": "u", "port": 70_000}, "1 to 65535"),
        ({"kind": "portforward", "pod": "u", "port": True}, "1 to 65535"),
    ],
)
def test_a_body_that_no_node_could_serve_is_refused_with_its_reason(body: dict[str, Any], why: str) -> None:
    with pytest.raises(ApiError, match=why):
        check_body(body)
