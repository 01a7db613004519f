"""SPIFFE IDs: strict to parse, one text each."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.identity import HubId, IdentityError, NodeId, UserId, check_name, from_peercert, parse

LABEL = st.text("az09-", max_size=8).map(lambda middle: "a" + middle + "0")
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@given(NAME, NAME, NAME, NAME)
def test_what_is_written_is_read_back(domain: str, tenant: str, affinity: str, node: str) -> None:
    for identity in (NodeId(domain, tenant, affinity, node), HubId(domain, node), UserId(domain, node)):
        assert parse(identity.uri()) == identity


@given(st.text(max_size=60))
def test_whatever_parses_has_exactly_that_text(tail: str) -> None:
    uri = "spiffe://" + tail
    try:
        assert parse(uri).uri() == uri
    except IdentityError:
        pass


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe:///node/default/a/b",
        "https://cloudhub.local/node/default/a/b",
        "SPIFFE://cloudhub.local/node/default/a/b",
        "spiffe://cloudhub.local",
        "spiffe://cloudhub.local/",
        "spiffe://cloudhub.local/node/default/a",
        "spiffe://cloudhub.local/node/default/a/b/",
        "spiffe://cloudhub.local/node/default/a/b/c",
        "spiffe://cloudhub.local/node/default//b",
        "spiffe://cloudhub.local/node/default/../b",
        "spiffe://cloudhub.local/node/default/a/..",
        "spiffe://cloudhub.local/node/default/a/%62",
        "spiffe://cloudhub.local/node/default/a/b%2f",
        "spiffe://cloudhub.local/node/default/a/B",
        "spiffe://cloudhub.local/node/default/a/b\n",
        "spiffe://cloudhub.local/node/default/a/b\0",
        "spiffe://cloudhub.local/node/default/a/b?x=1",
        "spiffe://cloudhub.local/node/default/a/b#x",
        "spiffe://cloudhub.local:8443/node/default/a/b",
        "spiffe://user@cloudhub.local/node/default/a/b",
        "spiffe://CloudHub.local/node/default/a/b",
        "spiffe://cloudhub.local./node/default/a/b",
        "spiffe://cloudhub.local/node/default/a/b\u0661",  # a digit, but not an ASCII one
        "spiffe://cloudhub.local/node/default/a/\uff42",
        "spiffe://cloudhub.local/Node/default/a/b",
        "spiffe://cloudhub.local/hub",
        "spiffe://cloudhub.local/hub/",
        "spiffe://cloudhub.local/hub/a/b",
        "spiffe://cloudhub.local/user/..",
        "spiffe://cloudhub.local/user/a b",
        "spiffe://cloudhub.local/user/\u00e4",
        "spiffe://cloudhub.local/relay/site-1",
        "spiffe://cloudhub.local/workload/x",
        " spiffe://cloudhub.local/hub/a",
        "spiffe://cloudhub.local/hub/" + "a" * 64,
        "spiffe://cloudhub.local/hub/" + "a." * 126 + "ab",
        "spiffe://" + "a." * 124 + "ab/hub/a",
        "spiffe://cloudhub.local/user/" + "a" * 3000,
    ],
)
def test_every_other_spelling_is_refused_with_a_reason(uri: str) -> None:
    with pytest.raises(IdentityError) as e:
        parse(uri)
    assert 10 < len(str(e.value)) < 600


def test_names_are_checked_when_an_identity_is_made() -> None:
    for bad in ("", "a/b", "..", "A", "-a", "a" * 254):
        with pytest.raises(IdentityError):
            NodeId("cloudhub.local", "default", "a", bad)
        with pytest.raises(IdentityError):
            NodeId("cloudhub.local", "default", bad, "a")
        with pytest.raises(IdentityError):
            NodeId("cloudhub.local", bad, "a", "a")
    assert check_name("node name", "a" * 63 + "." + "b" * 63)
    assert UserId("cloudhub.local", "Anna.Ek_2")


def peercert(*names: tuple[str, str]) -> dict[str, Any]:
    return {"subject": (), "subjectAltName": names}


def test_a_peer_is_who_its_one_uri_says() -> None:
    node = NodeId("cloudhub.local", "default", "shop", "till-1")
    assert from_peercert(peercert(("URI", node.uri()))) == node
    hub = HubId("cloudhub.local", "hub-0")
    assert from_peercert(peercert(("DNS", "hub.cloudhub.local"), ("URI", hub.uri())), "cloudhub.local") == hub


@pytest.mark.parametrize(
    "cert",
    [
        None,
        {},
        {"subject": ((("commonName", "till-1"),),)},
        peercert(),
        peercert(("DNS", "spiffe://cloudhub.local/hub/a")),
        peercert(("URI", "spiffe://cloudhub.local/hub/a"), ("URI", "spiffe://cloudhub.local/hub/b")),
        peercert(("URI", "spiffe://cloudhub.local/hub/a"), ("URI", "spiffe://cloudhub.local/hub/a")),
        peercert(("URI", "spiffe://cloudhub.local/hub/a"), ("URI", "https://example.com")),
        peercert(("URI", "https://example.com")),
    ],
)
def test_none_or_several_uris_identify_nobody(cert: dict[str, Any] | None) -> None:
    with pytest.raises(IdentityError):
        from_peercert(cert)


def test_another_trust_domain_is_nobody_here() -> None:
    cert = peercert(("URI", "spiffe://elsewhere.example/hub/a"))
    assert from_peercert(cert) == HubId("elsewhere.example", "a")
    with pytest.raises(IdentityError, match="another trust domain"):
        from_peercert(cert, "cloudhub.local")
