"""What the hub answers to HELLO: invariant I9 as a table."""

import pytest

from hub.hello import Standing, answer, protocol_of, welcome
from security.frames import Hello, decode_hello
from shards.claims import Claim, SlotRecord
from tests.hub.channel_fakes import hello

OLD, NOW = Claim(1, "old", 100, 0.0), Claim(2, "now", 200, 0.0)
RECORD = SlotRecord(2, (OLD, NOW))


def standing(**fields: object) -> Standing:
    base: dict[str, object] = {
        "store": "s",
        "generation": 1,
        "slot": 3,
        "claim": NOW,
        "edge_record": RECORD,
        "head": 300,
    }
    return Standing(**{**base, **fields})  # type: ignore[arg-type]


def said(claim: str | None = None, rev: int = 0, **fields: object) -> Hello:
    held = None
    if claim is not None:
        store, gen, epoch, ident = claim.split(":")
        held = {"store": store, "gen": int(gen), "slot": 3, "epoch": int(epoch), "id": ident}
    return decode_hello(hello(claim=held, rev=rev, **fields))


@pytest.mark.parametrize(
    "claim, rev, sync, why",
    [
        (None, 0, "match", "it has never synchronised"),
        ("s:1:2:now", 300, "match", "our own claim, up to our head"),
        ("s:1:1:old", 200, "match", "the claim before, up to its end"),
        ("s:1:1:old", 201, "hold", "it saw more under the old claim than this store has of it"),
        ("s:1:2:now", 301, "hold", "it saw more than our head"),
        ("s:1:2:other", 1, "hold", "a claim this store never made"),
        ("t:1:2:now", 1, "hold", "another store"),
        ("s:2:2:now", 1, "hold", "a later generation: this is an old backup"),
    ],
)
def test_a_hub_that_knows_less_than_the_edge_holds(claim: str | None, rev: int, sync: str, why: str) -> None:
    decided = answer(said(claim, rev), standing(), said().digest)
    assert decided.sync == sync, why
    assert decided.condition == ("HistoryParted" if sync == "hold" else "")


def test_a_restore_that_raised_the_generation_needs_no_confirmation() -> None:
    assert answer(said("s:1:9:gone", 10_000), standing(generation=2), "0" * 64).sync == "diff"


def test_only_the_very_claim_that_was_confirmed_is_passed_over() -> None:
    parted = said("t:1:7:theirs", 5)
    assert answer(parted, standing(confirmed="another"), "x").sync == "hold"
    decided = answer(parted, standing(confirmed="theirs", parted="theirs"), "x")
    assert (decided.sync, decided.confirmed, decided.taken_over) == ("diff", "theirs", True)


def test_an_unconfirmed_node_waits_and_a_lost_answer_does_not_make_it_wait_again() -> None:
    assert answer(said(), standing(unconfirmed=True), "x").condition == "Unconfirmed"
    decided = answer(said(), standing(unconfirmed=True, parted="-", confirmed="-"), "x")
    assert decided.taken_over and decided.confirmed is None
    again = answer(said("s:1:2:now", 250), standing(unconfirmed=True, parted="-", confirmed="-"), "x")
    assert again.taken_over
    foreign = answer(said("t:1:2:x", 250), standing(unconfirmed=True, parted="-", confirmed="-"), "x")
    assert foreign.sync == "hold"


def test_welcome_names_the_highest_common_protocol_and_features() -> None:
    import json

    wide = said(proto=[0, 7], features=["log", "teleport"])
    assert protocol_of(wide) == 1 and protocol_of(said(proto=[2, 3])) is None
    decided = answer(wide, standing(), wide.digest)
    body = json.loads(welcome(wide, standing(), decided, heartbeat_s=30.0, window=64, now_unix=1.0))
    assert body == {
        "proto": 1, "features": ["log"], "store": "s", "gen": 1, "slot": 3, "epoch": 2, "claim": "now", "rev": 300,
        "heartbeat": 30.0, "window": 64, "time": 1.0, "sync": "match",
    }  # fmt: skip
