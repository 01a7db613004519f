"""Hostile peers on the edge-cloud channel: they are refused with a reason, and nobody else notices.

Every test runs beside a well-behaved agent with a workload, which it must not disturb (`hostile_fleet`).
"""

import contextlib
import json
import os
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from edgelite import wire
from security.ca import CertificateAuthority
from tests.e2e.cluster import Hub, sleeper, wait_for
from tests.e2e.hostile import (
    HUB_NAME,
    Identity,
    Impostor,
    authority,
    figures,
    forge,
    hello,
    nodes,
    objects,
    peer,
    stranger,
)
from tests.e2e.hostile_fleet import PODS, STEADY, Fleet

# -- identities ----------------------------------------------------------------------------------------------------------


def refused_in_tls(hub: Hub, context: ssl.SSLContext) -> str:
    """The TLS alert for a client certificate; under TLS 1.3 it comes with the first read."""
    with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
        with peer(hub, context) as one:
            one.send(wire.HELLO, hello())
            while one.sock.recv(4096):
                pass
            raise ConnectionError("closed without an alert")
    return str(refused.value)


def test_a_certificate_of_another_authority_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    other = forge(CertificateAuthority.open(str(tmp_path)), "good")
    before = objects(fleet.hub)
    handshakes = figures(fleet.hub)["handshakes"]
    said = refused_in_tls(fleet.hub, other.trusting(authority(fleet.hub).root_pem).client())
    assert "UNKNOWN_CA" in said, said
    assert figures(fleet.hub)["handshakes"] == handshakes, "it never got as far as a frame"
    assert objects(fleet.hub) == before


def test_an_expired_certificate_is_refused(fleet: Fleet) -> None:
    expired = forge(authority(fleet.hub), "good", time.time() - 100, 50)
    before = objects(fleet.hub)
    assert "EXPIRED" in refused_in_tls(fleet.hub, expired.client())
    assert objects(fleet.hub) == before


def test_certificates_of_hubs_and_users_are_no_nodes(fleet: Fleet) -> None:
    ca, now = authority(fleet.hub), time.time()
    user = Identity(ca.root_pem, *ca.issue_user("admin", ["system:masters"], ca.trust_domain, now))
    hub = Identity(ca.root_pem, *ca.issue_hub("evil", ca.trust_domain, [], [], now))
    for identity, name in ((user, "/user/admin"), (hub, "/hub/evil")):
        with peer(fleet.hub, identity.client()) as one:
            said = one.refusal()
        assert (said["code"], said["retry_s"]) == ("denied", None)
        assert f"{name} is no node; the edge port is for nodes" in said["message"]


def test_a_valid_certificate_without_a_node_gets_nothing_and_waits_for_an_operator(fleet: Fleet) -> None:
    ghost = forge(authority(fleet.hub), "ghost")
    with peer(fleet.hub, ghost.client()) as one:
        one.send(wire.HELLO, hello())
        welcome = one.receive(wire.WELCOME)
        assert welcome["sync"] == "hold" and "cloudhub confirm --node" in welcome["reason"]
        fleet.hub.api("POST", PODS, sleeper("haunt", "ghost"))
        one.send(wire.REPORT, {"e": [{"n": 1, "k": "node", "t": "node", "b": {"labels": {"x": "y"}}}]})
        one.send(wire.PING)
        one.receive(wire.PONG)
        assert not [kind for kind, _ in one.arrived if kind in (wire.SET, wire.STORED)]
    assert fleet.cluster.condition("ghost", "Unconfirmed") == "True"
    fleet.hub.api("DELETE", PODS + "/haunt?gracePeriodSeconds=0")
    fleet.hub.api("DELETE", "/api/v1/nodes/ghost")


def test_reports_about_another_nodes_objects_are_refused_and_change_nothing(fleet: Fleet) -> None:
    hub, key = fleet.hub, fleet.key()
    hub.api(
        "POST", "/api/v1/namespaces/default/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}}
    )
    with peer(hub, fleet.mallory.client()) as mallory:
        mallory.send(wire.HELLO, hello())
        assert mallory.receive(wire.WELCOME)["sync"] in ("diff", "match")
        mallory.send(wire.PAIRS, {"pairs": []})
        mallory.receive(wire.SYNCED)
        own = "/api/v1/nodes -/mallory"  # becomes Ready meanwhile
        before = {**objects(hub), own: ""}
        events = len(hub.api("GET", "/api/v1/events")["items"])
        failed = {"phase": "Failed", "containerStatuses": []}
        event = {
            "reason": "Evil",
            "message": "m",
            "type": "Warning",
            "count": 1,
            "first": 1,
            "last": 1,
            "field": "",
        }
        entries = [
            {"n": 1, "k": key, "t": "pod", "b": failed},
            {"n": 2, "k": key, "t": "gone", "b": {}},
            {"n": 3, "k": key, "t": "event", "b": event},
            {"n": 4, "k": "secret/default/s", "t": "event", "b": event},
            {"n": 5, "k": "good", "t": "node", "b": {"labels": {"evil": "yes"}}},
            {"n": 6, "k": "nodes/good", "t": "evict", "b": {}},
        ]
        mallory.send(wire.REPORT, {"e": entries})
        answered: dict[int, str] = {}
        while len(answered) < len(entries):
            stored = mallory.receive(wire.STORED)
            assert stored["n"] == []
            answered |= dict(stored["refused"])
        assert answered == {
            1: "obsolete",
            2: "obsolete",
            3: "obsolete",
            4: "obsolete",
            5: "obsolete",
            6: "unsupported",
        }
        assert [kind for kind, _ in mallory.arrived if kind == wire.SET] == [], "it is sent nothing of others"
        assert {**objects(hub), own: ""} == before
        assert len(hub.api("GET", "/api/v1/events")["items"]) == events
    hub.api("DELETE", "/api/v1/namespaces/default/secrets/s")


def test_a_node_cannot_give_itself_labels_that_attract_workloads(fleet: Fleet) -> None:
    hub = fleet.hub
    report = {
        "labels": {
            "cloudhub.dev/site": "vault",
            "node-role.kubernetes.io/control-plane": "",
            "trusted": "yes",
        }
    }
    conditions = [
        {"type": "Unconfirmed", "status": "False"},
        {"type": "Ready", "status": "True", "reason": "Forged"},
    ]
    before = hub.api("GET", "/api/v1/nodes/mallory")["metadata"]["labels"]
    with peer(hub, fleet.mallory.client()) as mallory:
        mallory.send(wire.HELLO, hello())
        mallory.receive(wire.WELCOME)
        mallory.send(wire.PAIRS, {"pairs": []})
        body = {**report, "conditions": conditions}
        mallory.send(wire.REPORT, {"e": [{"n": 1, "k": "node", "t": "node", "b": body}]})
        assert mallory.receive(wire.STORED)["n"] == [1]
    node = hub.api("GET", "/api/v1/nodes/mallory")
    assert node["metadata"]["labels"] == before
    assert not [c for c in node["status"]["conditions"] if c.get("reason") == "Forged"]


def test_an_agent_refuses_whoever_poses_as_its_hub(fleet: Fleet, tmp_path: Path) -> None:
    """A node's certificate of the right authority, and a hub's of another: the agent tells neither anything, keeps its
    workloads, and goes on with its hub when that is back."""
    cluster, hub = fleet.cluster, fleet.hub
    agent = cluster.agent("homing")
    hub.api("POST", PODS, sleeper("steady", "homing", STEADY))
    cluster.wait_running("steady")
    running = sorted(p.pid for p in agent.workloads())
    foreign = CertificateAuthority.open(str(tmp_path))
    cert, key = foreign.issue_hub(
        "standalone", foreign.trust_domain, ["localhost"], ["127.0.0.1"], foreign.not_after - 9e7
    )
    node = fleet.mallory
    facts_path = agent.data_dir / "node.json"
    facts = json.loads(facts_path.read_text())
    for n, impostor in enumerate(
        (Impostor(node.root, node.cert, node.key), Impostor(foreign.root_pem, cert, key)), start=1
    ):
        try:
            agent.stop()
            facts_path.write_text(json.dumps({**facts, "edge": impostor.address}))
            agent.run()
            text = f"{impostor.address} is not this node's hub ({HUB_NAME})"
            wait_for(lambda text=text: agent.log().count(text) >= 1, "refused", detail=agent.log)  # type: ignore[misc]
            assert impostor.visits >= 1 and impostor.heard == b"", n
        finally:
            impostor.close()
        assert sorted(p.pid for p in agent.workloads()) == running
    agent.stop()
    facts_path.write_text(json.dumps(facts))
    connected = agent.log().count('"connected"')
    agent.run()
    wait_for(lambda: agent.log().count('"connected"') > connected, "it is back", detail=agent.log)
    assert sorted(p.pid for p in agent.workloads()) == running
    hub.api("DELETE", PODS + "/steady")
    cluster.wait_gone("steady")
    agent.stop()
    wait_for(lambda: figures(hub)["nodes"] == 1, "homing has left")


def test_an_agent_whose_certificate_has_expired_says_so_and_keeps_its_workloads(fleet: Fleet) -> None:
    cluster, hub = fleet.cluster, fleet.hub
    agent = cluster.agent("aged")
    hub.api("POST", PODS, sleeper("old", "aged", STEADY))
    cluster.wait_running("old")
    running = sorted(p.pid for p in agent.workloads())
    own = (agent.data_dir / "identity.pem").read_text()
    expired = forge(authority(hub), "aged", time.time() - 100, 50)
    agent.stop()
    (agent.data_dir / "identity.pem").write_text(expired.cert + expired.key)
    agent.run()
    ended = "this node's certificate has ended: asking the hub to take the node back"
    wait_for(lambda: ended in agent.log(), "the agent says why", detail=agent.log)
    assert sorted(p.pid for p in agent.workloads()) == running
    agent.stop()
    (agent.data_dir / "identity.pem").write_text(own)
    agent.run()
    hub.api("DELETE", PODS + "/old")
    cluster.wait_gone("old")
    agent.stop()
    wait_for(lambda: figures(hub)["nodes"] == 1, "aged has left")


# -- frames --------------------------------------------------------------------------------------------------------------

HUGE = struct.pack(wire.HEADER, wire.HELLO, 0, 0, 100 << 20)


def test_a_frame_of_100_mb_is_refused_from_its_announcement(fleet: Fleet) -> None:
    for context, most in ((fleet.mallory.client(), 1 << 20), (stranger(fleet.hub), 16384)):
        with peer(fleet.hub, context) as one:
            one.raw(HUGE)
            said = one.refusal()
        assert said["code"] == "frame"
        assert said["message"] == f"frame of {100 << 20} bytes announced, at most {most} allowed"


def test_a_message_that_never_ends_is_refused_at_its_bound(fleet: Fleet) -> None:
    with peer(fleet.hub, fleet.mallory.client()) as one:
        part = struct.pack(wire.HEADER, wire.REPORT, wire.MORE, 0, 1 << 19) + b"x" * (1 << 19)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(200):  # 100 MB in all
                one.raw(part)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert one.refusal()["code"] == "frame"
    assert figures(fleet.hub)["closed.frame"] >= 1


def test_garbage_instead_of_frames_closes_the_connection(fleet: Fleet) -> None:
    for garbage in (b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n", os.urandom(4096), b"\xff" * 64, b"\0" * 64):
        for context in (fleet.mallory.client(), stranger(fleet.hub)):
            with peer(fleet.hub, context) as one:
                one.raw(garbage)
                said = one.refusal()
            assert said["code"] in ("frame", "denied", "protocol") and said["message"], said


def test_garbage_instead_of_tls_closes_the_connection(fleet: Fleet) -> None:
    failed = figures(fleet.hub).get("closed.handshake-failed", 0)
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
        os.urandom(4096),
        b"\x16\x03\x01\xff\xff" + b"\xff" * 70000,
    ):
        with socket.create_connection(("127.0.0.1", fleet.hub.edge_port), timeout=30) as raw:
            with contextlib.suppress(OSError):  # the hub may have closed it meanwhile
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):  # an alert, perhaps
                    pass
    wait_for(lambda: figures(fleet.hub)["closed.handshake-failed"] >= failed + 3, "all three are closed")


def test_old_tls_and_weak_ciphers_are_refused(fleet: Fleet) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)), peer(fleet.hub, context):
        pass


MALFORMED: dict[str, Any] = {
    "text where a number belongs": hello(boot="one"),
    "a number where text belongs": hello(inc=7),
    "an incarnation that is none": hello(inc="z" * 32),
    "a negative count": hello(conn=-1),
    "a count beyond all bounds": hello(rev=1 << 80),
    "no digest": {k: v for k, v in hello().items() if k != "digest"},
    "a list": [1, 2, 3],
    "null": None,
    "too many features": hello(features=["f"] * 1000),
    "a long agent name": hello(agent="a" * 10_000),
    "limits of zero": hello(limits={"document": 0, "frame": 0}),
    "a claim of the wrong shape": hello(claim={"store": [], "gen": {}, "slot": None}),
}


def test_a_malformed_hello_is_refused_by_name(fleet: Fleet) -> None:
    for what, body in MALFORMED.items():
        with peer(fleet.hub, fleet.mallory.client()) as one:
            one.raw(wire.message(wire.HELLO, json.dumps(body).encode()))
            said = one.refusal()
        assert said["code"] == "protocol" and said["message"].startswith("HELLO is malformed: "), (what, said)


def test_a_hello_that_is_no_json_or_too_long_or_of_another_protocol_is_refused(fleet: Fleet) -> None:
    for body, code, message in (
        (b"\xff\xfe{", "protocol", "HELLO is malformed"),
        (b"[" * 10_000, "protocol", "HELLO is malformed"),
        (b"x" * 20_000, "frame", "HELLO of 20000 bytes from a node, at most 16384 are allowed"),
        (json.dumps(hello(proto=[7, 9])).encode(), "protocol", "update the older of the two"),
    ):
        with peer(fleet.hub, fleet.mallory.client()) as one:
            one.raw(wire.message(wire.HELLO, body))
            said = one.refusal()
        assert said["code"] == code and message in said["message"], said


def test_frames_before_hello_are_refused_by_name(fleet: Fleet) -> None:
    for kind in (wire.PING, wire.PAIRS, wire.ACK, wire.NACK, wire.REPORT, wire.DATA, wire.CLOSE, wire.RENEW):
        with peer(fleet.hub, fleet.mallory.client()) as one:
            one.send(kind, {} if kind != wire.PING else None)
            said = one.refusal()
        assert (said["code"], said["message"]) == ("protocol", f"{wire.NAMES[kind]} before HELLO")
    for kind in (wire.WELCOME, wire.SET, wire.DEL, wire.STORED, wire.OPEN, wire.JOIN, wire.WRAP):
        with peer(fleet.hub, fleet.mallory.client()) as one:
            one.send(kind, {})
            said = one.refusal()
        assert said["code"] == "denied" and f"may not send a message {wire.NAMES[kind]}" in said["message"], (
            said
        )


def test_who_has_no_certificate_may_only_join(fleet: Fleet) -> None:
    before = nodes(fleet.hub)
    for kind in (wire.HELLO, wire.PING, wire.PAIRS, wire.REPORT, wire.ACK, wire.RENEW, wire.WRAP):
        with peer(fleet.hub, stranger(fleet.hub)) as one:
            one.send(kind, hello())
            said = one.refusal()
        assert said["code"] == "denied" and "a stranger may not send" in said["message"], said
    for body in (
        b"{",
        b"[]",
        b"{}",
        json.dumps({"token": "x" * 1000, "csr": ""}).encode(),
        json.dumps({"token": "x", "csr": 1}).encode(),
    ):
        with peer(fleet.hub, stranger(fleet.hub)) as one:
            one.raw(wire.message(wire.JOIN, body))
            said = one.refusal()
        assert "JOIN is malformed" in said["message"] and said["reason"] == "Malformed", said
    assert nodes(fleet.hub) == before


POISON: tuple[dict[str, Any], ...] = (
    {"phase": "Running", "conditions": [{"type": "Ready", "status": 5}]},
    {"phase": "Running", "conditions": [{"type": [], "status": "True"}]},
    {"phase": "Running", "containerStatuses": [{"name": "main", "state": "running"}]},
    {"phase": "Running", "startTime": "yesterday"},
)


def test_a_status_that_nobody_could_read_is_refused_and_everyone_elses_pods_are_listed(fleet: Fleet) -> None:
    """Of its own pod, which it may report on: once stored, the hub itself and every client would fall over it."""
    hub = fleet.hub
    made = hub.api("POST", PODS, sleeper("poisoned", "mallory"))
    key = f"pod/default/poisoned/{made['metadata']['uid']}"
    with peer(hub, fleet.mallory.client()) as mallory:
        mallory.send(wire.HELLO, hello())
        mallory.receive(wire.WELCOME)
        mallory.send(wire.PAIRS, {"pairs": []})
        mallory.receive(wire.SYNCED)
        entries = [{"n": n, "k": key, "t": "pod", "b": body} for n, body in enumerate(POISON, 1)]
        mallory.send(wire.REPORT, {"e": entries})
        answered: dict[int, str] = {}
        while len(answered) < len(entries):
            stored = mallory.receive(wire.STORED)
            assert stored["n"] == [], "it was stored"
            answered |= dict(stored["refused"])
        assert all(reason.startswith("malformed: ") for reason in answered.values()), answered
    assert "work" in fleet.cluster.kubectl("get", "pods")
    hub.api("DELETE", PODS + "/poisoned?gracePeriodSeconds=0")
