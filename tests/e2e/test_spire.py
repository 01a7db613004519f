"""A hub that has its identity and its authority from a real SPIRE: enrolment, a rotation of SPIRE's authority under traffic,
SPIRE away. Real processes; lifetimes are short."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite import credentials
from hub import kubeconfig
from hub.certpaths import CA_PATH
from security import tls
from security.spiffe.material import read_bundle, root_of
from tests.e2e.cluster import Agent, Hub, run_cloudhub, running_cluster, sleeper, wait_for
from tests.servers.spire import Spire

TD = "example.org"
HUB = f"spiffe://{TD}/hub/standalone"
SVID_S = 12


@pytest.fixture
def spire() -> Iterator[Spire]:
    with Spire(TD) as made:
        made.entry(HUB, uid=os.getuid(), dns="hub." + TD, downstream=True, ttl_s=SVID_S)
        yield made


def settings(spire: Spire) -> dict[str, Any]:
    return {
        "trust_domain": TD,
        "spire_server": spire.server_address,
        "spiffe_socket": spire.agent_socket,
        "node_certificate": "10m",
    }


def chain(agent: Agent) -> tuple[bytes, ...]:
    """The agent's certificate and what it presents with it, DER."""
    text = (agent.data_dir / credentials.IDENTITY).read_text()
    return read_bundle(
        text.partition("-----BEGIN PRIVATE KEY")[0].partition("-----BEGIN EC PRIVATE")[0].encode(), "x"
    )


def verified_by_openssl(agent: Agent, bundle_pem: str, directory: Path) -> str:
    """What `openssl verify` says of the agent's certificate, with the trust domain's bundle alone."""
    root, identity = directory / "bundle.pem", agent.data_dir / credentials.IDENTITY
    root.write_text(bundle_pem)
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(root),
         "-untrusted", str(identity), str(identity)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


class Follower:
    """`kubectl logs -f` of a pod: one stream over the node's connection, which ends with it."""

    def __init__(self, hub: Hub, pod: str) -> None:
        found = kubeconfig.read(hub.kubeconfig)
        context = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)
        self._connection = http.client.HTTPSConnection("127.0.0.1", hub.api_port, context=context, timeout=60)
        self._connection.request("GET", f"/api/v1/namespaces/default/pods/{pod}/log?follow=true")
        self._socket = self._connection.sock
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self.lines = 0
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while self._answer.readline():
                self.lines += 1
        except (OSError, http.client.HTTPException):
            pass  # it has ended, which is all that is asked
        self.ended = True

    def goes_on(self) -> None:
        """More lines arrive, on the same stream."""
        seen = self.lines
        wait_for(lambda: self.lines > seen, "the followed log goes on")
        assert not self.ended, "the stream was cut"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._answer.close()
        self._connection.close()


def test_a_fleet_lives_through_what_happens_to_spire(spire: Spire, tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        hub = cluster.hub(**settings(spire))
        agent = cluster.agent("n1")

        # Enrolled below SPIRE's authority: whoever has the bundle can verify the edge.
        first = chain(agent)
        assert len(first) == 2
        old_root = root_of(first, read_bundle(spire.bundle_pem().encode(), "the bundle"))
        assert "OK" in verified_by_openssl(agent, spire.bundle_pem(), tmp_path)

        ticking = "trap 'exit 0' TERM; while :; do echo tick; sleep 0.2 & wait $!; done"
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(sleeper("ticks", "n1", script=ticking)))
        cluster.wait_running("ticks")
        follower = Follower(hub, "ticks")
        follower.goes_on()

        # Another authority, while the log is followed.
        active = spire.authorities()["active"]["authority_id"]
        new = spire.prepare()
        wait_for(lambda: _roots(agent) == 2, "the agent trusts the prepared root", 60, hub.log)
        spire.activate(new)
        spire.taint(active)
        wait_for(
            lambda: old_root not in _root_of(agent, spire), "the agent's certificate is of the new root", 60,
            lambda: (hub.log()[-3000:], agent.log()[-1500:], spire.logs()),
        )  # fmt: skip
        told = wait_for(
            lambda: (s := hub.api("GET", CA_PATH))["nodes"]["renewed"] == 1 and s, "the hub says so"
        )
        assert [(r["phase"], r["nodes"]) for r in told["roots"] if r["nodes"]] == [("active", 1)]
        assert "trusted" in run_cloudhub("ca", "status", "--data-dir", str(hub.data_dir))
        ends = json.loads(run_cloudhub("cert", "list", "-o", "json", "--data-dir", str(hub.data_dir)))
        assert {("hub", HUB), ("node", "n1")} <= {(c["kind"], c["name"]) for c in ends["certificates"]}, ends
        refused = run_cloudhub("ca", "rotate", "--data-dir", str(hub.data_dir), code=1)
        assert "spire-server localauthority x509 prepare" in refused
        spire.revoke(active)
        wait_for(lambda: _roots(agent) == 1, "the agent trusts the old root no more", 60, hub.log)
        follower.goes_on()
        assert "OK" in verified_by_openssl(agent, spire.bundle_pem(), tmp_path)
        cluster.agent("n2")  # tokens name the new root

        # SPIRE is away for longer than half an SVID's life.
        spire.stop_agent()
        spire.stop_server()
        stopped = time.monotonic()
        agent.stop()
        agent.run()
        follower.close()
        cluster.wait_ready("n1")
        again = Follower(hub, "ticks")
        wait_for(lambda: time.monotonic() - stopped > SVID_S / 2 + 0.5, "half an SVID's life is over")
        again.goes_on()
        before = hub.log().count("a new SVID")
        spire.start_server()
        spire.start_agent()
        wait_for(lambda: hub.log().count("a new SVID") > before, "the hub has a new SVID", 60, hub.log)
        again.goes_on()
        again.close()
        cluster.agent("n3")
        for line in ("Traceback", "ended early"):
            assert line not in hub.log()


def _root_of(agent: Agent, spire: Spire) -> tuple[bytes, ...]:
    """The root of the agent's certificate."""
    return (root_of(chain(agent), read_bundle(spire.bundle_pem().encode(), "the bundle")),)


def _roots(agent: Agent) -> int:
    return (agent.data_dir / credentials.BUNDLE).read_text().count("BEGIN CERTIFICATE")
