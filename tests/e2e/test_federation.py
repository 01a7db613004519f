"""An edge of another trust domain at a hub that has its bundle: accepted as mapped, and only so. Real processes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from spiffe import WorkloadApiClient

from edgelite import credentials
from edgelite.enroll import EnrollError, join
from hub.certpaths import ROTATION_PATH
from security.spiffe.material import pem_of
from tests.e2e.cluster import Agent, Cluster, run_cloudhub, sleeper, wait_for
from tests.security.spiffe.authority import Authority, root

OWN, FOREIGN = "cloudhub.local", "partner.example"


def identity(partner: Authority, name: str) -> str:
    """identity.pem, as the partner's authority issues it."""
    chain, key = partner.below(FOREIGN).leaf(f"spiffe://{FOREIGN}/node/default/{name}/{name}")
    key = subprocess.run(
        ["openssl", "ec"], input=key, capture_output=True, text=True, check=True
    ).stdout  # as agents keep theirs: SEC 1
    return chain + key


def serial_of(pem: str) -> str:
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"


def foreign_agent(cluster: Cluster, partner: Authority, name: str) -> Agent:
    """An agent whose identity another authority has issued and an operator has put in place, with this hub's bundle."""
    agent = Agent(name, cluster.root / f"agent-{name}")
    cluster.agents[name] = agent
    agent.data_dir.mkdir(mode=0o700)
    home = cluster.agents["n1"].data_dir
    facts = {"node": name, "trust_domain": FOREIGN, "hub": "hub." + OWN, "edge": cluster.main.edge}
    for file, text in (
        (credentials.BUNDLE, (home / credentials.BUNDLE).read_text()),
        (credentials.FACTS, json.dumps(facts)),
        (credentials.IDENTITY, identity(partner, name)),
    ):
        credentials.write_file(str(agent.data_dir), file, text)
    return agent


def test_an_edge_of_another_trust_domain_is_served_as_mapped_and_no_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    partner = root(FOREIGN)
    bundle = tmp_path / "partner.pem"
    bundle.write_text(pem_of([root(FOREIGN).der]))  # of yesterday
    hub = cluster.hub(
        federated_bundle=[f"{FOREIGN}={bundle}"],
        federated_node=[f"{FOREIGN}=node:till-*"],
        workload_identity=[f"{os.getuid()}=spiffe://{OWN}/app/meter"],
    )
    bundle.write_text(pem_of([partner.der]))
    cluster.agent("n1", wait=False)
    wait_for(lambda: "partner.example has a new bundle" in hub.log(), "the file was read again", 30, hub.log)
    cluster.wait_ready("n1")
    for name in ("till-1", "n2"):
        foreign_agent(cluster, partner, name).run()
    wait_for(
        lambda: cluster.condition("till-1", "Unconfirmed") == "True",
        "its Node waits for an operator",
        60,
        hub.log,
    )
    run_cloudhub("confirm", "--node", "till-1", "--data-dir", str(hub.data_dir))
    cluster.wait_ready("till-1")

    wait_for(
        lambda: "cloudhub.local speaks for a node 'n2'" in hub.log(),
        "who is not mapped is refused",
        30,
        hub.log,
    )
    # Its own authority renews it: what is put in place is connected with, without a restart.
    agent = cluster.agents["till-1"]
    old = serial_of(Path(agent.data_dir, credentials.IDENTITY).read_text())
    credentials.write_file(str(agent.data_dir), credentials.IDENTITY, identity(partner, "till-1"))
    wait_for(
        lambda: "left: resync this node has another certificate" in hub.log(), "it is noticed", 30, agent.log
    )
    run_cloudhub("revoke", "serial", old, "--data-dir", str(hub.data_dir))
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("late", "till-1"))
    cluster.wait_running("late")

    names = {n["metadata"]["name"] for n in hub.api("GET", "/api/v1/nodes")["items"]}
    assert names == {"n1", "till-1"}
    poser = hub.token("--node", "till-2")
    with pytest.raises(EnrollError, match=r"partner\.example speaks for a node 'till-2'"):
        join(hub.edge, poser, None, {}, str(tmp_path / "poser"))

    # The embedded authority as a provider of the Workload API: what it gives has both bundles, and follows a rotation.
    client = WorkloadApiClient(f"unix://{hub.data_dir}/workload.sock")
    try:
        context = client.fetch_x509_context(timeout=30)
        assert str(context.default_svid.spiffe_id) == f"spiffe://{OWN}/app/meter"
        assert {b.trust_domain.name for b in context.x509_bundle_set.bundles} == {OWN, FOREIGN}
        hub.api("POST", ROTATION_PATH, {})
        wait_for(
            lambda: max(
                len(b.x509_authorities) for b in client.fetch_x509_bundles(timeout=30).bundles
            ) == 2,
            "the prepared root is in the bundle",
        )  # fmt: skip
    finally:
        client.close()
