"""Whether an edge's memory belongs to a store's history."""

from hypothesis import given
from hypothesis import strategies as st

from shards import claims
from shards.claims import CLAIMS_MAX, KEEP_S, Claim, EdgeClaim, SlotRecord, judge
from shards.ring import slot_of


def record(*firsts: int) -> SlotRecord:
    made = SlotRecord()
    for first in firsts:
        made, _ = claims.claim(made, f"id{first}", first, now=0.0)
    return made


def held(epoch: int, claim_id: str, *, store: str = "S", gen: int = 1) -> EdgeClaim:
    return EdgeClaim(store=store, gen=gen, slot=0, epoch=epoch, id=claim_id)


def verdict(
    edge: EdgeClaim | None, revision: int, kept: SlotRecord, head: int = 1000, generation: int = 1
) -> bool:
    return judge(edge, revision, store="S", generation=generation, record=kept, head=head) is None


def test_an_edge_that_never_synchronised_is_known() -> None:
    assert verdict(None, 0, record(10))


def test_an_edge_of_an_earlier_claim_is_known_up_to_the_claims_end() -> None:
    kept = record(10, 50)
    assert verdict(held(1, "id10"), 50, kept)
    assert not verdict(held(1, "id10"), 51, kept)


def test_an_edge_beyond_the_head_has_parted() -> None:
    assert verdict(held(1, "id10"), 100, record(10), head=100)
    assert not verdict(held(1, "id10"), 101, record(10), head=100)


def test_a_later_claim_at_a_lower_revision_tells_of_a_store_that_went_back() -> None:
    """A claim that was on its way when an older state was brought back may be carried out in that state."""
    kept = record(10, 5000, 30)
    assert not verdict(held(1, "id10"), 40, kept)
    assert verdict(held(1, "id10"), 30, kept)


def test_an_unknown_claim_another_store_and_a_later_generation_have_parted() -> None:
    assert not verdict(held(1, "other"), 5, record(10))
    assert not verdict(held(2, "id10"), 5, record(10))
    assert not verdict(held(1, "id10", store="T"), 5, record(10))
    assert not verdict(held(1, "id10", gen=2), 5, record(10))


def test_a_higher_generation_of_the_store_is_a_confirmed_one() -> None:
    assert verdict(held(9, "whatever", gen=1), 10**9, record(10), generation=2)


def test_claims_are_kept_for_120_days_and_bounded() -> None:
    made = SlotRecord()
    for day in range(200):
        made, _ = claims.claim(made, str(day), day, now=day * 86400.0)
    assert made.epoch == 200
    assert [c.id for c in made.claims] == [str(day) for day in range(80, 200)]
    assert KEEP_S == 120 * 86400
    for n in range(2 * CLAIMS_MAX):
        made, _ = claims.claim(made, f"x{n}", n, now=200 * 86400.0)
    assert len(made.claims) == CLAIMS_MAX


@given(
    st.lists(st.tuples(st.integers(1, 100), st.text(max_size=8), st.integers(0, 10**6), st.floats(0, 10**9)))
)
def test_a_record_survives_its_encoding(rows: list[tuple[int, str, int, float]]) -> None:
    made = SlotRecord(7, tuple(Claim(*row) for row in rows))
    assert claims.parse(claims.dump(made)) == made


def test_nodes_spread_over_all_slots() -> None:
    assert {slot_of(f"n{i}", 8) for i in range(200)} == set(range(8))
