"""Two trust domains in one TLS context: each is believed about its own nodes alone. Real handshakes."""

import ssl

import pytest

from security import tls
from security.identity import from_peercert
from security.spiffe.anchors import constrained
from security.spiffe.material import SpiffeError, pem_of
from tests.security.spiffe.authority import Authority, root
from tests.security.test_tls import handshake

OWN, FOREIGN = "cloudhub.local", "partner.example"


@pytest.fixture(scope="module")
def roots() -> dict[str, Authority]:
    return {OWN: root(OWN), FOREIGN: root(FOREIGN)}


@pytest.fixture(scope="module")
def server(roots: dict[str, Authority]) -> ssl.SSLContext:
    cert, key = roots[OWN].leaf(f"spiffe://{OWN}/hub/hub-0", ("hub." + OWN,))
    anchors = constrained({domain: [authority.der] for domain, authority in roots.items()})
    return tls.edge_server_context(cert, key, anchors)


def node(domain: str, name: str = "n1") -> str:
    return f"spiffe://{domain}/node/default/{name}/{name}"


def client(roots: dict[str, Authority], issuer: Authority, uri: str) -> ssl.SSLContext:
    return tls.client_context(pem_of([roots[OWN].der]), *issuer.leaf(uri))


@pytest.mark.parametrize("domain", [OWN, FOREIGN])
@pytest.mark.parametrize("between", [0, 1, 2])
def test_each_trust_domain_names_its_own_nodes(
    roots: dict[str, Authority], server: ssl.SSLContext, domain: str, between: int
) -> None:
    issuer = roots[domain]
    for _ in range(between):
        issuer = issuer.below(domain)
    at_server, _ = handshake(server, client(roots, issuer, node(domain)))
    assert from_peercert(at_server.getpeercert()).uri() == node(domain)


@pytest.mark.parametrize(
    ("domain", "uri"),
    [
        (FOREIGN, node(OWN)),
        (OWN, node(FOREIGN)),
        (FOREIGN, node("third.example")),
        (FOREIGN, node("sub." + FOREIGN)),
        (FOREIGN, f"spiffe://{OWN}/x@{FOREIGN}:443/node"),
        (FOREIGN, f"spiffe://{OWN}:443/node/default/n1/n1"),
    ],
)
@pytest.mark.parametrize("between", [0, 1])
def test_no_trust_domain_names_nodes_of_another(
    roots: dict[str, Authority], server: ssl.SSLContext, domain: str, uri: str, between: int
) -> None:
    issuer = roots[domain].below(domain) if between else roots[domain]
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client(roots, issuer, uri))


def test_an_intermediate_that_claims_another_trust_domain_is_refused(
    roots: dict[str, Authority], server: ssl.SSLContext
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        handshake(server, client(roots, roots[FOREIGN].below(OWN), node(FOREIGN)))


def test_a_root_of_neither_bundle_is_refused(roots: dict[str, Authority], server: ssl.SSLContext) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client(roots, root(OWN), node(OWN)))


def test_a_root_that_is_constrained_already_is_refused_by_name() -> None:
    with pytest.raises(SpiffeError, match="name constraints of its own"):
        constrained({FOREIGN: [root(FOREIGN, name_constraint=FOREIGN).der]})


def test_a_leaf_in_a_bundle_is_refused_by_name(roots: dict[str, Authority]) -> None:
    cert, _ = roots[OWN].leaf(node(OWN))
    with pytest.raises(SpiffeError, match="no certificate authority"):
        constrained({OWN: [ssl.PEM_cert_to_DER_cert(cert)]})
