"""Neighbouring versions, of the protocol and of the store, and the renewal of certificates over the channel."""

import json
import sqlite3
import subprocess
import time
from typing import Any

from edgelite import credentials, wire
from edgelite.desired import version_of
from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, sleeper, wait_for
from tests.e2e.observe import (
    connect_now,
    documents_of,
    figures,
    journal_of,
    processes,
    still_run,
    wait_heartbeats,
    when,
)
from tests.e2e.rawpeer import Ended, RawPeer, peer_of, play_hub

FOREVER = "exec sleep 100000"
UNHEARD_OF = 200
"""A message type that no version has so far."""


def ended(peer: RawPeer) -> bool:
    try:
        peer.get()
    except Ended:
        return True
    return False


def test_an_agent_of_the_next_version_works_with_this_hub(cluster: Cluster) -> None:
    """It speaks protocols 1 and 2, has features of its own, and puts fields into everything that nobody here knows."""
    hub = cluster.hub()
    agent = cluster.agent("n1")
    agent.stop()
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1"))
    more: dict[str, Any] = {"later": {"than": ["this"]}}
    with peer_of(agent, hub) as peer:
        peer.hello(
            proto=[1, 2],
            features=["log", "teleport"],
            agent="99.0.0",
            limits={"document": 1 << 20, "frame": 1 << 20, "colour": 3},
            **more,
        )
        welcome = peer.expect(wire.WELCOME)
        assert (welcome["proto"], welcome["sync"]) == (1, "diff")
        assert "teleport" not in welcome["features"]
        peer.send(wire.PAIRS, {"pairs": [], **more})
        kind, body = peer.get()
        assert kind == wire.SET
        header, document = wire.split_set_body(body)
        key, version = json.loads(header)["k"], json.loads(header)["v"]
        assert version == version_of(document) and json.loads(document)["name"] == "web"
        peer.send(wire.ACK, {"a": [[key, version]], **more})
        assert peer.expect(wire.SYNCED)["r"] > 0
        status = {"phase": "Running", "aspect": "new", "conditions": [{"type": "Ready", "status": "True"}]}
        peer.send(wire.REPORT, {"e": [{"n": 1, "k": key, "t": "pod", "b": status, **more}], **more})
        assert peer.expect(wire.STORED)["n"] == [1]
        assert cluster.pod("web")["status"]["phase"] == "Running"
        # A kind of report that this hub does not know is answered, so that nothing waits behind it.
        peer.send(wire.REPORT, {"e": [{"n": 2, "k": "node", "t": "mood", "b": {}}]})
        assert peer.expect(wire.STORED)["refused"] == [[2, "unsupported"]]
        peer.heartbeat()


def test_an_agent_that_has_left_this_version_behind_is_told_so(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    agent.stop()
    with peer_of(agent, hub) as peer:
        peer.hello(proto=[2, 3])
        goaway = peer.expect(wire.GOAWAY)
        assert goaway["code"] == "protocol"
        assert goaway["message"] == (
            "the agent speaks protocol 2 to 3, this hub 1 to 1; update the older of the two"
        )
        assert goaway["retry_s"], "an update of the hub is a reason to come back"
        assert ended(peer)
    assert "update the older of the two" in hub.log()
    agent.run()
    cluster.wait_ready("n1")


def restart_on_real_hub(hub: Hub, agent: Agent) -> None:
    hub.start()
    connect_now(agent)
    when(lambda: figures(hub)["nodes"] == 1, "the agent is back at the real hub", agent, hub)


def test_this_agent_works_with_a_hub_of_the_next_version(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1", script=FOREVER))
    cluster.wait_running("web")
    before = processes(agent)
    hub.stop()
    ((key, document),) = documents_of(agent).items()
    more: dict[str, Any] = {"later": {"than": ["this"]}}
    with play_hub(hub) as played:
        connect_now(agent)
        connection = played.accept()
        hello = connection.expect(wire.HELLO)
        assert hello["proto"] == [wire.PROTOCOL_MIN, wire.PROTOCOL_MAX] and hello["docs"] == 1
        claim = {**hello["claim"], "epoch": hello["claim"]["epoch"] + 1, "claim": "0123456789abcdef"}
        connection.welcome(
            **{**claim, **more, "features": ["log", "teleport"], "rev": hello["rev"], "heartbeat": 1.0}
        )
        connection.send(UNHEARD_OF, {"hello": "from the future"})
        connection.send(UNHEARD_OF, b"\xff\x00 not even JSON")
        connection.send(wire.PONG, more)
        # The pod under another rendering, with more in the header too.
        newer = json.dumps({**json.loads(document), **more}).encode()
        header = {"k": key, "v": version_of(newer), "r": hello["rev"] + 5, **more}
        connection.send(wire.SET, wire.set_body(json.dumps(header).encode(), newer))
        ack = connection.expect(wire.ACK, wire.PING, wire.REPORT)
        assert ack["a"] == [[key, version_of(newer)]]
        connection.send(UNHEARD_OF, b"")
        connection.expect(wire.PING, wire.REPORT)
    assert documents_of(agent) == {key: newer}
    assert json.loads(journal_of(agent)["meta/rev"]) == hello["rev"] + 5
    assert still_run(agent, before)


def test_this_agent_refuses_a_hub_that_chooses_a_protocol_which_it_does_not_speak(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1", script=FOREVER))
    cluster.wait_running("web")
    before = processes(agent)
    hub.stop()
    said = "the hub chose protocol 2, this agent speaks 1 to 1; update the older of the two"
    with play_hub(hub) as played:
        connect_now(agent)
        connection = played.accept()
        connection.expect(wire.HELLO)
        connection.welcome(proto=2)
        goaway = connection.expect(wire.GOAWAY)
        assert (goaway["code"], goaway["message"]) == ("protocol", said)
        assert connection.ended()
        wait_for(lambda: said in agent.log(), "the agent says why")
        assert still_run(agent, before)
    restart_on_real_hub(hub, agent)
    assert still_run(agent, before)


def test_a_store_of_a_newer_format_is_refused_and_left_as_it_is(cluster: Cluster) -> None:
    hub = cluster.hub()
    hub.api("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "kept"}})
    hub.stop()
    set_format(hub, 2)
    before = dump(hub)
    done = subprocess.run(hub.argv(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "the data has format 2, this hub knows up to 1: start a newer hub on it" in done.stderr
    assert "Traceback" not in done.stderr
    assert dump(hub) == before
    assert not (hub.data_dir / "endpoints.json").exists()
    set_format(hub, 1)
    hub.start()
    assert hub.api("GET", "/api/v1/namespaces/default/configmaps/kept")["metadata"]["name"] == "kept"


def set_format(hub: Hub, number: int) -> None:
    connection = sqlite3.connect(hub.data_dir / "store.db")
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(number),))
    connection.close()


def dump(hub: Hub) -> list[str]:
    connection = sqlite3.connect(hub.data_dir / "store.db")
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_certificate_is_renewed_at_half_life_within_the_session_and_used_from_the_next_on(
    cluster: Cluster,
) -> None:
    hub = cluster.hub(node_certificate="20s")
    agent = cluster.agent("n1")
    data_dir = str(agent.data_dir)
    first = credentials.certificate(data_dir)
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1", script=FOREVER))
    cluster.wait_running("web")
    before, connected = processes(agent), figures(hub)["handshakes"]

    when(
        lambda: credentials.certificate(data_dir).point != first.point,
        "a certificate for a new key is installed",
        agent,
        hub,
    )
    second = credentials.certificate(data_dir)
    assert second.uris == first.uris and second.not_after > first.not_after
    assert first.not_before < second.not_before < first.not_after
    # It is on the disk before it is said.
    when(lambda: "the new certificate is installed" in agent.log(), "it is said", agent, hub)
    assert (agent.data_dir / "identity.pem").stat().st_mode & 0o777 == 0o600
    if time.time() < first.not_after:  # on a machine that is not stalled
        seen = figures(hub)
        assert (seen["handshakes"], seen["nodes"]) == (connected, 1), "the session has gone on"

    # The connection ends with the certificate that it was made with; the next one shows the new one.
    when(lambda: figures(hub).get("closed resync") == 1, "the old certificate's connection ends", agent, hub)
    assert time.time() > first.not_after
    when(lambda: figures(hub)["nodes"] == 1, "the agent is back with its new certificate", agent, hub)
    assert figures(hub)["handshakes"] == connected + 1
    wait_heartbeats(hub)
    cluster.wait_ready("n1")
    assert still_run(agent, before)
