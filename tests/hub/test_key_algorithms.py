"""Fleets whose authority and hub have keys of each algorithm: an agent's own enrolment, its process, and TLS by both versions."""

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edgelite.credentials import client_context
from hub.objects import NODES
from security import keys
from security.identity import NodeId
from security.keys import ED25519, P384, RSA2048, RSA3072
from security.tls import client_context as context_of
from tests.e2e.cluster import ROOT
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import eventually, hub
from tests.hub.test_joining import token


@pytest.mark.parametrize("algorithm", [P384, ED25519, RSA2048, RSA3072])
async def test_an_agent_joins_and_is_served_by_a_fleet_of_each_algorithm(
    tmp_path: Path, algorithm: str
) -> None:
    pki = Pki(str(tmp_path), algorithm)
    data_dir = tmp_path / "agent"
    async with hub(pki) as h:
        address = f"{h.address[0]}:{h.address[1]}"
        text = await token(h, node="edge-1")
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgelite", "join", "--hub", address, "--token", text, "--data-dir", str(data_dir),
            "--runtime", "process", cwd=ROOT, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:

            async def is_ready() -> bool:
                found = await h.registry.find(NODES, "", "edge-1")
                conditions = found.obj().get("status", {}).get("conditions", []) if found else []
                return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

            await eventually(is_ready)
        finally:
            agent.send_signal(signal.SIGTERM)
            await agent.wait()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = client_context(str(data_dir))
            context.minimum_version = context.maximum_version = version
            _, writer = await asyncio.open_connection(
                *h.address, ssl=context, server_hostname="hub.cloudhub.local"
            )
            shown = writer.get_extra_info("ssl_object")
            assert shown.version() == version.name.replace("_", ".")
            wanted = "ECDHE-RSA" if algorithm.startswith("rsa") else "ECDHE-ECDSA"
            assert version is ssl.TLSVersion.TLSv1_3 or shown.cipher()[0].startswith(wanted)
            writer.transport.abort()


async def test_nodes_with_keys_of_other_algorithms_are_served(tmp_path: Path) -> None:
    """An agent that is not ours may bring another key: what counts is that it has it."""
    pki = Pki(str(tmp_path))
    async with hub(pki) as h:
        for algorithm in (P384, ED25519, RSA2048):
            key = keys.generate(algorithm)
            asked = (
                x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key.signer, key.hash)
            )
            csr = asked.public_bytes(serialization.Encoding.PEM).decode()
            text = await token(h, node=f"node-{algorithm}")
            joined = json.loads(
                await h.gateway.joining.join(json.dumps({"token": text, "csr": csr}).encode())
            )
            node = h.fleet.node(joined["node"], context_of(pki.ca.root_pem, joined["cert"], key.pem()))
            assert (await h.connect(node))["sync"] == "match"
            identity = NodeId("cloudhub.local", "default", joined["node"], joined["node"])
            renewed = json.loads(h.gateway.joining.renew(identity, csr, None)[1])
            assert "BEGIN CERTIFICATE" in renewed["cert"]
