"""A node whose certificate ended while it was away: the real agent, a real edge port, certificates that last a second."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgelite import credentials, p256, wire
from edgelite.config import Config, save_config
from edgelite.returning import proof
from hub.objects import NODES
from hub.reports import ENROLLED
from security.ca import CertificateAuthority
from security.identity import NodeId
from security.returning import ReturnRefused, check
from security.revocation import NODE, entry_of
from tests.e2e.cluster import ROOT
from tests.hub.edge_pki import TRUST_DOMAIN, Pki
from tests.hub.hub_fixture import Hub, hub, until
from tests.hub.test_joining import enrol, token

DAY_S = 86400.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Edge:
    """A machine that joined, and whose certificate has ended since."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = str(data_dir)
        self.log = data_dir.parent / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, **environment: str) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgelite", "run", "--data-dir", self.data_dir],
                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
            )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """As `edgelite status` shows it."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((Path(self.data_dir) / "status.json").read_text())
            return found
        return {}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.asynccontextmanager
async def expired(pki: Pki, tmp_path: Path, **config: Any) -> AsyncIterator[tuple[Hub, Edge]]:
    """A hub, and a machine whose certificate has ended a moment ago."""
    async with hub(pki, node_ttl_s=1.0, **config) as h:
        edge = Edge(tmp_path / "edge")
        await enrol(h, await token(h, node="edge-1"), tmp_path / "edge")
        save_config(edge.data_dir, Config(runtime="process"))
        h.gateway.joining._node_ttl_s = 14 * DAY_S
        ends = credentials.certificate(edge.data_dir).not_after
        await until(lambda: time.time() > ends, what="the certificate has ended")
        try:
            yield h, edge
        finally:
            edge.end()


@pytest.mark.parametrize("clock", ["right", "behind"])
async def test_a_node_comes_back_by_its_expired_certificate(pki: Pki, tmp_path: Path, clock: str) -> None:
    """With a clock that is behind the agent believes its certificate until the hub says otherwise."""
    async with expired(pki, tmp_path) as (h, edge):
        before = (await h.node("edge-1"))["metadata"]["uid"]
        edge.run(
            **(
                {"LD_PRELOAD": faketime(), "FAKETIME": "-4m", "DONT_FAKE_MONOTONIC": "1"}
                if clock == "behind"
                else {}
            )
        )
        await until(lambda: "edge-1" in h.gateway.peers, what="the node is back", seconds=60)
        assert h.gateway.returns.granted == 1
        assert credentials.certificate(edge.data_dir).not_after > time.time() + 13 * DAY_S
        assert (await h.node("edge-1"))["metadata"]["uid"] == before
        assert not (tmp_path / "edge" / credentials.IDENTITY_NEXT).exists()


def faketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "libfaketime is missing: `make deps-ci` installs it"
    return str(found[0])


def later(node: Any) -> Any:
    """As if the Node had been deleted, and another machine had joined under its name two hours from now."""
    held = json.loads(node["metadata"]["annotations"][ENROLLED])
    node["metadata"]["annotations"][ENROLLED] = json.dumps({**held, "enrolled": time.time() + 7200})
    return node


@pytest.mark.parametrize("why", ["revoked", "late", "never", "deleted", "reused"])
async def test_a_node_that_is_not_taken_back_is_told_how_to_join_anew(
    pki: Pki, tmp_path: Path, why: str
) -> None:
    async with expired(pki, tmp_path, return_s=0.0 if why == "never" else 30 * DAY_S) as (h, edge):
        expected = {
            "revoked": "was revoked",
            "late": "days ago",
            "never": "takes no node back",
            "deleted": "no Node 'edge-1'",
            "reused": "was enrolled anew",
        }
        if why == "revoked":
            h.gateway.revoked.put("r", entry_of(NODE, "edge-1", time.time()))
            h.gateway.joining.revoked = h.gateway.revoked
        elif why == "late":
            h.gateway.wall = lambda: time.time() + 31 * DAY_S
        elif why == "deleted":
            await h.registry.remove(NODES, await h.registry.get(NODES, "", "edge-1"))
        elif why == "reused":
            await h.registry.mutate(NODES, "", "edge-1", later)
        edge.run()
        await until(lambda: edge.status().get("state") == "refused", what="the agent is told", seconds=60)
        detail = edge.status()["detail"]
        assert expected[why] in detail and "edgelite join --again" in detail
        assert expected[why] in edge.log.read_text()
        assert h.gateway.returns.granted == 0


async def test_a_nonce_is_of_one_connection_and_of_one_use(pki: Pki, tmp_path: Path) -> None:
    async with expired(pki, tmp_path) as (h, edge):
        session = credentials.returning(edge.data_dir)
        one, other = h.sim_stranger(), h.sim_stranger()
        for peer in (one, other):
            peer.connect()
        one.send(wire.BUNDLE, {})
        await until(lambda: "nonce" in one.bundle, what="a nonce")
        (sent,) = session.receive(wire.BUNDLE, 0, json.dumps(one.bundle).encode(), 0.0)
        other.raw(sent.data)
        await until(lambda: other.goaway, what="GOAWAY")
        assert other.goaway is not None and other.goaway["reason"] == "ProofInvalid"
        one.raw(sent.data)
        await until(lambda: one.joined or one.goaway, what="an answer")
        assert one.joined is not None, one.goaway
        one.raw(sent.data)
        await until(lambda: one.goaway, what="GOAWAY for the second use")


NOW = 1_800_000_000.0
PRIVATE = p256.generate(b"\x07" * p256.ENTROPY_BYTES)


class Case:
    """A good proof, of which each test spoils one thing."""

    def __init__(self) -> None:
        self.ca = CertificateAuthority.create(TRUST_DOMAIN, NOW - 100 * DAY_S)
        own = p256.request_pem(PRIVATE, "n")
        identity = NodeId(TRUST_DOMAIN, "default", "n", "n")
        self.chain = self.ca.issue_node(own, identity, NOW - 20 * DAY_S, 14 * DAY_S)
        self.csr = p256.request_pem(p256.generate(b"\x08" * p256.ENTROPY_BYTES), "n")
        self.nonce, self.roots, self.now = "ab" * 16, [self.ca.root_pem], NOW
        self.sign = lambda: p256.signature_der(PRIVATE, proof(self.nonce, self.csr)).hex()

    def check(self, **other: Any) -> None:
        given = {
            "chain_pem": self.chain, "csr_pem": self.csr, "signature": self.sign(), "nonce": self.nonce,
            "roots_pem": self.roots, "trust_domain": TRUST_DOMAIN, "now": self.now, "return_s": 30 * DAY_S,
        }  # fmt: skip
        assert check(**{**given, **other}).identity.node == "n"  # type: ignore[arg-type]


def test_a_good_proof_is_taken() -> None:
    Case().check()
    Case().check(now=NOW - 7 * DAY_S)  # one that has not ended, as for a clock that is ahead


def spoiled(case: Case) -> dict[str, tuple[str, dict[str, Any]]]:
    thief = p256.generate(b"\x09" * p256.ENTROPY_BYTES)
    other = CertificateAuthority.create(TRUST_DOMAIN, NOW - 100 * DAY_S)
    hub_cert, _ = case.ca.issue_hub("h", TRUST_DOMAIN, [], [], NOW - 20 * DAY_S)
    user_cert, _ = case.ca.issue_user("n", [], TRUST_DOMAIN, NOW - 20 * DAY_S, 14 * DAY_S)
    return {
        "another key": (
            "ProofInvalid",
            {"signature": p256.signature_der(thief, proof(case.nonce, case.csr)).hex()},
        ),
        "another nonce": ("ProofInvalid", {"nonce": "cd" * 16}),
        "no nonce": ("ProofInvalid", {"nonce": ""}),
        "another request": ("ProofInvalid", {"csr_pem": csr_of(thief)}),
        "no hex": ("ProofInvalid", {"signature": "zz"}),
        "too late": ("ReturnTooLate", {"now": NOW + 25 * DAY_S}),
        "switched off": ("ReturnOff", {"return_s": 0.0}),
        "not begun": ("ProofInvalid", {"now": NOW - 30 * DAY_S}),
        "a root of the same name": ("UnknownAuthority", {"roots_pem": [other.root_pem]}),
        "no roots": ("UnknownAuthority", {"roots_pem": []}),
        "another trust domain": ("ProofInvalid", {"trust_domain": "other.example"}),
        "a hub": ("ProofInvalid", {"chain_pem": hub_cert}),
        "a user": ("ProofInvalid", {"chain_pem": user_cert}),
        "the root itself": ("ProofInvalid", {"chain_pem": case.ca.root_pem}),
        "no certificate": ("ProofInvalid", {"chain_pem": "hello"}),
    }


def csr_of(private: int) -> str:
    return p256.request_pem(private, "n")


@pytest.mark.parametrize("how", list(spoiled(Case())))
def test_a_proof_with_anything_wrong_is_refused(how: str) -> None:
    case = Case()
    reason, other = spoiled(case)[how]
    with pytest.raises(ReturnRefused) as refused:
        case.check(**other)
    assert refused.value.reason == reason


async def test_a_node_that_was_revoked_joins_anew_in_its_directory_with_a_later_token(
    pki: Pki, tmp_path: Path
) -> None:
    async with hub(pki) as h:
        joining = h.gateway.joining
        now, joining._now = joining._now, lambda: time.time() - 10
        await enrol(h, await token(h, ago_s=10.0, node="edge-1"), tmp_path / "edge")
        joining._now = now
        before = credentials.certificate_mark(str(tmp_path / "edge"))
        h.gateway.revoked.put("r", entry_of(NODE, "edge-1", time.time() - 5))
        h.gateway.joining.revoked = h.gateway.revoked
        with pytest.raises(credentials.EnrollError, match=r"--again|has joined a hub already"):
            await enrol(h, await token(h, node="edge-1"), tmp_path / "edge")
        with pytest.raises(credentials.EnrollError, match="is node edge-1"):
            await enrol(h, await token(h, node="edge-2"), tmp_path / "edge", again=True)
        assert credentials.certificate_mark(str(tmp_path / "edge")) == before
        await enrol(h, await token(h, node="edge-1"), tmp_path / "edge", again=True)
        await h.connect(h.fleet.node("edge-1", credentials.client_context(str(tmp_path / "edge"))))
