"""Which trust domain speaks for which node, and the settings that say so."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.config import ConfigError, HubConfig, load
from hub.federation import Federation, FederationError, parse_bundles, parse_map
from security.identity import IdentityError, NodeId

OWN, A, B = "cloudhub.local", "a.example", "b.example"
MAP = parse_map([f"{A}=node:till-*", f"{A}=node:kiosk", f"{B}=site:berlin"], OWN)


def node(domain: str, name: str, site: str = "") -> NodeId:
    return NodeId(domain, "default", site or name, name)


@pytest.mark.parametrize(
    "who",
    [
        node(OWN, "n1"),
        node(A, "till-7"),
        node(A, "kiosk"),
        node(B, "n1", "berlin"),
        node(OWN, "kiosk-2"),
        node(OWN, "n2", "berlin-2"),
    ],
)
def test_who_is_mapped_is_accepted(who: NodeId) -> None:
    Federation(OWN, MAP).check(who)


@pytest.mark.parametrize(
    "who",
    [
        node(A, "n1"),
        node(A, "kiosk-2"),
        node(B, "till-7"),
        node(OWN, "till-7"),
        node(OWN, "n1", "berlin"),
        node("third.example", "till-7"),
        node("third.example", "n1"),
    ],
)
def test_nobody_else_is_accepted(who: NodeId) -> None:
    with pytest.raises(IdentityError):
        Federation(OWN, MAP).check(who)


def test_a_node_that_two_trust_domains_claim_is_refused_to_all() -> None:
    for domain in (OWN, A, B):
        with pytest.raises(IdentityError, match="several trust domains"):
            Federation(OWN, MAP).check(node(domain, "till-1", "berlin"))


names = st.from_regex(r"[a-z]{1,4}(-[a-z0-9]{1,3})?", fullmatch=True)


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.sampled_from(["node", "site"]), names, st.booleans()),
        max_size=6,
    ),
    names,
    names,
)
def test_one_trust_domain_at_most_speaks_for_a_node(
    entries: list[tuple[str, str, str, bool]], name: str, site: str
) -> None:
    texts = [f"{domain}={kind}:{pattern}{'*' if star else ''}" for domain, kind, pattern, star in entries]
    federation = Federation(OWN, parse_map(texts, OWN))
    accepted = []
    for domain in (OWN, A, B):
        try:
            federation.check(node(domain, name, site))
            accepted.append(domain)
        except IdentityError:
            pass
    assert len(accepted) <= 1
    if not entries:
        assert accepted == [OWN]


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"{A}=",
        f"{A}=node:",
        f"{A}=node:*",
        f"{A}=pool:x",
        f"{A}=node:a*b",
        f"{A}=node:A",
        f"{OWN}=node:x",
        "=node:x",
        "A.b=node:x",
    ],
)
def test_what_cannot_be_read_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(FederationError) as wrong:
        parse_map([text], OWN)
    assert repr(text) in str(wrong.value)


def test_a_bundle_names_a_trust_domain_once() -> None:
    assert parse_bundles([f"{A}=/x=y.pem"], OWN) == {A: "/x=y.pem"}
    for texts in ([A], [f"{A}="], [f"{A}=x", f"{A}=y"], [f"{OWN}=x"]):
        with pytest.raises(FederationError):
            parse_bundles(texts, OWN)


SPIRE: dict[str, Any] = {"spire_server": "127.0.0.1:8081", "spiffe_socket": "unix:///run/agent.sock"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"spiffe_socket": "unix:///x"}, "needs spire_server"),
        ({"spire_server": "127.0.0.1:8081"}, "SPIFFE_ENDPOINT_SOCKET"),
        (SPIRE | {"spiffe_socket": "/run/x"}, "neither unix:///path"),
        (SPIRE | {"spire_server": "nowhere"}, "not HOST:PORT"),
        (SPIRE | {"workload_identity": ("0=spiffe://cloudhub.local/x",)}, "SPIRE's own agent"),
        ({"workload_group": "staff"}, "need workload_identity"),
        ({"workload_identity": ("root=spiffe://cloudhub.local/x",)}, "number of the user"),
        ({"workload_identity": ("0=spiffe://other.example/x",)}, "of this trust domain"),
        ({"workload_identity": ("0=spiffe://cloudhub.local/hub/hub-1",)}, "hub's own"),
        ({"workload_identity": ("0=spiffe://cloudhub.local/a/../hub/x",)}, "segments"),
        ({"workload_identity": ("0=spiffe://cloudhub.local/a", "0=spiffe://cloudhub.local/b")}, "already"),
        ({"federated_node": (f"{A}=node:x",)}, "has no bundle"),
        ({"federated_bundle": (f"{A}=x.pem",)}, "has a bundle and no nodes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        HubConfig(data_dir="/x", **settings)


def test_the_environment_names_the_workload_api_only_where_spire_is_asked_for() -> None:
    assert load(None, {"data_dir": "/x"}, "unix:///env").spiffe_socket == ""
    asked = {"data_dir": "/x", "spire_server": "127.0.0.1:8081"}
    assert load(None, asked, "unix:///env").spiffe_socket == "unix:///env"
    assert load(None, asked | {"spiffe_socket": "unix:///own"}, "unix:///env").spiffe_socket == "unix:///own"
