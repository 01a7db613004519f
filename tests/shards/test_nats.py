"""The NATS driver against real servers: what the bus contract does not say."""

import asyncio
import gc
from pathlib import Path

import pytest
import uvloop

from shards.bus import BusError
from shards.nats import NatsBus, NatsConfig
from tests.contract.test_bus import WAIT_S, Ear, running
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import until
from tests.servers.nats import NatsServers


async def test_a_frozen_server_is_noticed_and_another_one_is_used() -> None:
    loop = asyncio.get_running_loop()
    servers = await loop.run_in_executor(None, NatsServers, 2)
    try:
        bus = NatsBus(NatsConfig(tuple(servers.urls)))
        async with running(bus):
            ear = Ear()
            bus.listen(ear)
            url = bus._config.urls[(bus._turn - 1) % 2]
            frozen = servers.urls.index(url)
            servers.freeze(frozen)
            began = loop.time()
            await until(lambda: "lost" in ear.told, WAIT_S, "the loss")
            noticed = loop.time() - began
            await until(lambda: bus.connected, WAIT_S, "the other server")
            print(
                f"a frozen server was noticed after {noticed:.1f} s, replaced after {loop.time() - began:.1f} s"
            )
            servers.thaw(frozen)
    finally:
        await loop.run_in_executor(None, servers.close)


def test_a_connection_that_breaks_with_unsent_data_is_made_anew_without_a_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def breaks() -> None:
        bus = NatsBus(NatsConfig(tuple(servers.urls)))
        async with running(bus):
            ear = Ear()
            bus.listen(ear)
            await bus.subscribe("a", Ear())
            client = bus._client
            assert client is not None and client._transport is not None
            tasks = [s._wait_for_msgs_task for s in client._subs.values()]
            client._transport._io_writer.transport.abort()  # type: ignore[attr-defined]
            client._pending = [b"PUB b 1\r\nx\r\n"]
            client._pending_data_size = len(client._pending[0])
            await until(lambda: "lost" in ear.told, WAIT_S, "the loss")
            await until(lambda: bus.connected and bus._client is not client, WAIT_S, "another connection")
            assert tasks and all(task is not None and task.done() for task in tasks)

    servers = NatsServers(1)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(breaks())
        gc.collect()  # a task that was forgotten says so now
    finally:
        servers.close()
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


async def test_a_bus_starts_without_servers_and_stops_without_them() -> None:
    bus = NatsBus(NatsConfig(("nats://127.0.0.1:1",)))
    task = asyncio.create_task(bus.run())
    await bus.subscribe("a", Ear())
    await asyncio.sleep(0)
    assert not bus.connected and not bus.publish("a", b"")
    task.cancel()
    await asyncio.wait([task], timeout=WAIT_S)
    assert task.cancelled()


@pytest.mark.parametrize("urls", [(), ("localhost:4222",), ("http://x",)])
def test_what_is_no_url_of_a_server_is_refused_by_name(urls: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="nats:"):
        NatsConfig(urls)


def test_certificate_files_that_cannot_be_used_are_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="certificate files"):
        NatsBus(NatsConfig(("tls://127.0.0.1:1",), ca_file=str(tmp_path / "none")))


PERMISSIONS = """
tls {{
  cert_file: "{dir}/hub.crt"
  key_file: "{dir}/hub.key"
  ca_file: "{dir}/ca.crt"
  verify_and_map: true
}}
authorization {{
  users: [
    {{ user: "spiffe://cloudhub.local/hub/hub-0", permissions: {{ publish: "u.>", subscribe: "u.>" }} }}
    {{ user: "spiffe://cloudhub.local/node/default/edge-1/edge-1",
       permissions: {{ publish: {{ deny: ">" }}, subscribe: ">" }} }}
  ]
}}
"""


async def test_only_hub_identities_may_publish(tmp_path: Path) -> None:
    """The configuration that ARCHITECTURE.md shows: a node's certificate may at most listen; one that the servers do not
    name does not even get in."""
    pki = Pki(str(tmp_path))
    for name, text in {
        "hub.crt": pki.hub_cert,
        "hub.key": pki.hub_key,
        "ca.crt": pki.ca.root_pem,
        "node.crt": pki.node_cert("edge-1"),
        "other.crt": pki.node_cert("edge-2"),
        "node.key": pki.key_pem,
    }.items():
        (tmp_path / name).write_text(text)

    def config(name: str, key: str) -> NatsConfig:
        return NatsConfig(
            tuple(servers.urls), str(tmp_path / "ca.crt"), str(tmp_path / name), str(tmp_path / key), name
        )

    loop = asyncio.get_running_loop()
    servers = await loop.run_in_executor(
        None, lambda: NatsServers(1, PERMISSIONS.format(dir=tmp_path), scheme="tls")
    )
    try:
        hub, node = NatsBus(config("hub.crt", "hub.key")), NatsBus(config("node.crt", "node.key"))
        other = NatsBus(config("other.crt", "node.key"))
        stranger = asyncio.create_task(other.run())
        async with running(hub, node):
            ear = Ear()
            await hub.subscribe("u.slot.1.1.up", ear)
            node.publish("u.slot.1.1.up", b"from a node")
            await until(lambda: "Publish Violation" in servers.log(), WAIT_S, "the server's refusal")
            hub.publish("u.slot.1.1.up", b"from a hub")
            await until(lambda: ear.heard, WAIT_S)
            assert ear.heard == [("u.slot.1.1.up", b"from a hub")]
            await until(lambda: other._complained, WAIT_S, "the refusal of an identity that nobody named")
            assert other.connections == 0
        stranger.cancel()
        await asyncio.wait([stranger], timeout=WAIT_S)
    finally:
        await loop.run_in_executor(None, servers.close)
