"""Join tokens: who may become which node, with no clock and no randomness of their own."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security import join
from security.identity import NodeId
from security.join import JoinRefused, TokenRequest, TokenRequestError, enrol, mint, parse_token, redeem

NOW = 1_800_000_000.0
ENTROPY = bytes(range(join.ENTROPY_BYTES))
NODE = TokenRequest("cloudhub.local", b"r" * 32, node="till-1")
POOL = TokenRequest("cloudhub.local", b"r" * 32, pool="tills", count=3)
KEY, OTHER = "ab" * 32, "cd" * 32


def minted(request: TokenRequest) -> tuple[dict[str, Any], bytes]:
    record, text = mint(request, NOW, ENTROPY)
    return record, parse_token(text).secret


def refusal(
    record: dict[str, Any], secret: bytes, key: str = KEY, name: str | None = None, now: float = NOW
) -> str:
    before = json.dumps(record)
    with pytest.raises(JoinRefused) as e:
        redeem(record, secret, key, name, now)
    assert json.dumps(record) == before
    assert len(e.value.message) > 20
    return e.value.reason


def test_a_token_carries_what_the_agent_must_know_and_the_record_no_secret() -> None:
    record, text = mint(replace(NODE, site="shop-7"), NOW, ENTROPY)
    token = parse_token(text)
    assert (token.id, token.root_sha256, token.trust_domain) == (record["id"], b"r" * 32, "cloudhub.local")
    assert json.loads(json.dumps(record)) == record
    stored = json.dumps(record)
    assert token.secret.hex() not in stored and text.split(".")[2] not in stored


def test_a_node_token_gives_its_node_its_own_affinity() -> None:
    record, secret = minted(NODE)
    record, node = redeem(record, secret, KEY, None, NOW)
    assert node == NodeId("cloudhub.local", "default", "till-1", "till-1")
    assert record["used"] == {KEY: "till-1"}


def test_site_and_tenant_come_from_the_token() -> None:
    record, secret = minted(replace(NODE, site="shop-7", tenant="acme"))
    assert redeem(record, secret, KEY, "till-1", NOW)[1] == NodeId(
        "cloudhub.local", "acme", "shop-7", "till-1"
    )


def test_the_same_key_may_repeat_until_the_token_ends() -> None:
    record, secret = minted(NODE)
    first, node = redeem(record, secret, KEY, None, NOW)
    again, same = redeem(first, secret, KEY, None, NOW + 3599)
    assert (again, same) == (first, node)
    assert refusal(first, secret, now=NOW + 3600) == "TokenExpired"


def test_another_key_finds_the_node_token_used() -> None:
    record, secret = minted(NODE)
    used, _ = redeem(record, secret, KEY, None, NOW)
    assert refusal(used, secret, OTHER) == "TokenUsed"


def test_a_node_token_is_for_no_other_node() -> None:
    record, secret = minted(NODE)
    assert refusal(record, secret, name="till-2") == "NameNotAllowed"


def test_a_wrong_secret_and_an_unknown_token_look_the_same() -> None:
    record, secret = minted(NODE)
    wrong = bytes([secret[0] ^ 1]) + secret[1:]
    with pytest.raises(JoinRefused) as e:
        redeem(record, wrong, KEY, None, NOW)
    assert (e.value.reason, e.value.message) == (join.unknown_token().reason, join.unknown_token().message)
    for bad in (b"", secret[:-1], secret + b"\0"):
        assert refusal(record, bad) == "TokenInvalid"


def test_a_wrong_secret_learns_nothing_of_expiry_or_use() -> None:
    record, secret = minted(NODE)
    used, _ = redeem(record, secret, KEY, None, NOW)
    assert refusal(used, b"x" * 24, KEY, "other", NOW + 1e6) == "TokenInvalid"


def test_junk_is_no_token() -> None:
    for text in ("", "chub1", "chub1.a.b.c.d", "x" * 10000, "chub1." + "\u00e9" * 20):
        with pytest.raises(JoinRefused) as e:
            parse_token(text)
        assert e.value.reason == "TokenInvalid"


def test_a_pool_names_nodes_after_their_keys_or_as_they_wish() -> None:
    record, secret = minted(POOL)
    record, first = redeem(record, secret, KEY, None, NOW)
    assert (first.node, first.affinity) == ("tills-abababab", "tills-abababab")
    record, second = redeem(record, secret, OTHER, "front-till", NOW)
    assert second.node == "front-till"
    assert refusal(record, secret, "ee" * 32, "front-till") == "NameTaken"
    assert refusal(record, secret, OTHER, "back-till") == "NameNotAllowed"
    record, _ = redeem(record, secret, "ee" * 32, "", NOW)
    assert refusal(record, secret, "ff" * 32) == "PoolExhausted"
    assert redeem(record, secret, OTHER, None, NOW)[1] == second


def test_a_pool_name_that_collides_is_made_longer() -> None:
    record, secret = minted(POOL)
    record, _ = redeem(record, secret, KEY, None, NOW)
    record, longer = redeem(record, secret, KEY[:12] + "0" * 52, None, NOW, taken={"tills-" + KEY[:12]})
    assert longer.node == "tills-" + KEY[:12] + "0000"
    with pytest.raises(JoinRefused) as e:
        redeem(
            record, secret, KEY[:16] + "0" * 48, None, NOW, taken=["tills-" + KEY[:n] for n in (8, 12, 16)]
        )
    assert e.value.reason == "NameTaken"


@pytest.mark.parametrize("name", ["Till", "a/b", "..", "a" * 254, "till_1", "\u00e4"])
def test_a_wish_must_be_a_valid_name(name: str) -> None:
    record, secret = minted(POOL)
    assert refusal(record, secret, name=name) == "NameInvalid"


def test_a_record_of_a_newer_format_is_not_guessed_at() -> None:
    record, secret = minted(NODE)
    assert refusal({**record, "format": 2}, secret) == "TokenInvalid"


@pytest.mark.parametrize(
    "request_",
    [
        replace(NODE, node=None),
        replace(NODE, pool="tills"),
        replace(NODE, count=2),
        replace(NODE, node="Till"),
        replace(NODE, node=""),
        replace(POOL, pool="a" * 245),
        replace(POOL, pool="a_b"),
        replace(POOL, count=0),
        replace(POOL, count=join.POOL_COUNT_MAX + 1),
        replace(NODE, site="a/b"),
        replace(NODE, site=""),
        replace(NODE, tenant=""),
        replace(NODE, trust_domain="Cloud"),
        replace(NODE, root_sha256=b"short"),
        replace(NODE, ttl_s=0),
        replace(NODE, ttl_s=30 * 86400 + 1),
        replace(NODE, ttl_s=float("nan")),
    ],
)
def test_a_token_that_cannot_work_is_never_made(request_: TokenRequest) -> None:
    with pytest.raises(TokenRequestError):
        mint(request_, NOW, ENTROPY)


def test_lifetimes_have_their_defaults_and_limit() -> None:
    for request, ttl_s in ((NODE, 3600), (POOL, 86400), (replace(POOL, ttl_s=30 * 86400), 30 * 86400)):
        assert mint(request, NOW, ENTROPY)[0]["expires"] == NOW + ttl_s


def test_the_fullest_pool_record_fits_the_store() -> None:
    record, _ = minted(replace(POOL, count=join.POOL_COUNT_MAX))
    record["used"] = {f"{i:064x}": f"{i:0253d}" for i in range(join.POOL_COUNT_MAX)}
    assert len(json.dumps(record, separators=(",", ":"))) < 1_450_000


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, "a", "b", "c"])), max_size=20))
def test_no_history_gives_one_name_to_two_keys_or_exceeds_the_count(
    steps: list[tuple[int, str | None]],
) -> None:
    record, secret = minted(POOL)
    names: dict[str, str] = {}
    for number, wish in steps:
        key = f"{number:02x}" * 32
        try:
            record, node = redeem(record, secret, key, wish, NOW)
        except JoinRefused:
            continue
        assert names.setdefault(key, node.node) == node.node
    assert len(set(names.values())) == len(names) <= 3
    assert record["used"] == names


def test_enrolment_remembers_whose_the_name_is() -> None:
    record, secret = minted(NODE)
    record, node = redeem(record, secret, KEY, None, NOW)
    enrolled = enrol(None, record, node, KEY, NOW)
    assert enrolled["key"] == KEY and json.loads(json.dumps(enrolled)) == enrolled
    assert enrol(enrolled, record, node, KEY, NOW + 5) == enrolled


def test_a_name_goes_to_another_key_only_with_permission() -> None:
    owner, secret = minted(NODE)
    owner, node = redeem(owner, secret, KEY, None, NOW)
    enrolled = enrol(None, owner, node, KEY, NOW)
    pool, secret = minted(POOL)
    pool, thief = redeem(pool, secret, OTHER, "till-1", NOW)
    with pytest.raises(JoinRefused) as e:
        enrol(enrolled, pool, thief, OTHER, NOW)
    assert e.value.reason == "NameTaken"
    with pytest.raises(JoinRefused) as e:
        enrol(enrolled, owner, node, OTHER, NOW)
    assert e.value.reason == "RejoinNotAllowed"
    assert "--replace" in e.value.message and "allow-rejoin till-1" in e.value.message
    replacing, _ = minted(replace(NODE, replace=True))
    for token, allowed in ((replacing, False), (owner, True), (pool, True)):
        new = enrol(enrolled, token, node, OTHER, NOW + 9, allowed)
        assert (new["key"], new["enrolled"], new["void_before"]) == (OTHER, NOW + 9, NOW + 9)
        assert enrol(new, token, node, OTHER, NOW + 20) == new, "the same key again changes nothing"
    assert "void_before" not in enrolled
    with pytest.raises(TokenRequestError, match="replace: goes with a node"):
        minted(replace(POOL, replace=True))


def test_who_has_come_in_time_may_wait_for_approval_beyond_the_tokens_end() -> None:
    record, secret = minted(replace(NODE, approval=True))
    used, node = redeem(record, secret, KEY, None, NOW)
    late = NOW + 3600 + join.WAITING_S
    assert redeem(used, secret, KEY, None, late - 1) == (used, node)
    assert refusal(used, secret, now=late) == "TokenExpired"
    assert refusal(record, secret, now=NOW + 3600) == "TokenExpired", "nobody comes for the first time"
    plain, secret = minted(NODE)
    plain, node = redeem(plain, secret, KEY, None, NOW, waits=True)
    assert redeem(plain, secret, KEY, None, late - 1, waits=True)[1] == node, "the hub may have all wait"
    assert refusal(plain, secret, now=NOW + 3600) == "TokenExpired"


def test_no_token_moves_a_node_to_another_site_or_tenant() -> None:
    record, secret = minted(NODE)
    record, node = redeem(record, secret, KEY, None, NOW)
    enrolled = enrol(None, record, node, KEY, NOW)
    for change in ({"site": "shop-7"}, {"tenant": "acme"}):
        other, secret = minted(replace(NODE, **change))  # type: ignore[arg-type]
        other, moved = redeem(other, secret, KEY, None, NOW)
        with pytest.raises(JoinRefused) as e:
            enrol(enrolled, other, moved, KEY, NOW)
        assert e.value.reason == "SiteMismatch"
