"""By which chains an expired node is taken back. What hub and agent do with it: tests/hub/test_returns.py."""

import os
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from edgelite import der, p256
from edgelite.returning import proof
from security.ca import CertificateAuthority
from security.identity import NodeId
from security.returning import ReturnRefused, check
from security.spiffe.material import pem_of
from tests.fuzz.__main__ import CORPUS
from tests.security.spiffe.authority import Authority, root

TD = "example.org"
NODE = NodeId(TD, "default", "n1", "n1")
NONCE = "00" * 16


def returned(chain: str, key_pem: str, roots: list[str]) -> NodeId:
    """The identity of a node that comes back an hour late."""
    key = load_pem_private_key(key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    private = key.private_numbers().private_value
    csr = p256.request_pem(private, "x")
    signature = p256.signature_der(private, proof(NONCE, csr)).hex()
    return check(chain, csr, signature, NONCE, roots, TD, time.time() + 3600, 86400.0).identity


def leaf(issuer: Authority) -> tuple[str, str]:
    return issuer.leaf(NODE.uri(), ends_s=60)


@pytest.mark.parametrize("between", [0, 1, 2])
def test_a_node_comes_back_by_a_chain_to_a_root_that_is_trusted(between: int) -> None:
    top = root(TD)
    issuer = top
    for _ in range(between):
        issuer = issuer.below(TD)
    assert returned(*leaf(issuer), [pem_of([root(TD).der]), pem_of([top.der])]) == NODE


def test_no_other_chain_takes_it_back() -> None:
    top, other = root(TD), root(TD)
    trusted = [pem_of([top.der])]
    chain, key = leaf(top.below(TD))
    alone = x509.load_pem_x509_certificate(chain.encode()).public_bytes(Encoding.PEM).decode()
    deep = top
    for _ in range(4):
        deep = deep.below(TD)
    constrained = root(TD, name_constraint=TD)
    for tried, signed_by, roots in (
        (leaf(other.below(TD))[0], None, trusted),
        (alone, key, trusted),
        (alone + pem_of([other.below(TD).der]), key, trusted),
        (*leaf(deep), trusted),
        (*leaf(constrained), [pem_of([constrained.der])]),
    ):
        with pytest.raises(ReturnRefused) as no:
            returned(tried, signed_by or leaf(top)[1], roots)
        assert no.value.reason == "UnknownAuthority"


@pytest.mark.parametrize(("seed", "says"), [("twice", "Duplicate"), ("issuer", "issuer")])
def test_a_certificate_that_no_parser_takes_is_refused_as_such(seed: str, says: str) -> None:
    """One that names an extension twice, one whose issuer is no text; issued and signed by nobody."""
    raw = (CORPUS / "greeting" / seed).read_bytes()
    text = der.pem("CERTIFICATE", raw[raw.index(b"\x30\x82") :])
    with pytest.raises(ReturnRefused, match=says) as no:
        check(text, "", "", NONCE, [pem_of([root(TD).der])], TD, time.time(), 86400.0)
    assert no.value.reason == "ProofInvalid"


def test_no_node_is_an_authority_and_no_authority_stands_below_the_embedded_root() -> None:
    own = CertificateAuthority.create(TD, time.time())
    private = p256.generate(os.urandom(48))
    text = own.issue_node(p256.request_pem(private, "x"), NodeId(TD, "default", "n2", "n2"), time.time())
    node = x509.load_pem_x509_certificate(text.encode())
    key = ec.derive_private_key(private, ec.SECP256R1())
    posing = Authority(node, key)
    posing.above = (posing.der,)
    with pytest.raises(ReturnRefused) as no:
        returned(*leaf(posing), [own.root_pem])
    assert no.value.reason == "UnknownAuthority"
