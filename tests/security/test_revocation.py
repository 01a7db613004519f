"""Whom entries mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.revocation import KINDS, NODE, SERIAL, TOKEN, Entry, Revoked, entry_of
from security.serials import serial_text


def test_a_node_is_refused_by_what_it_had_and_not_by_what_it_got_later() -> None:
    revoked = Revoked()
    revoked.put("one", entry_of(NODE, "n1", 100.0, "stolen"))
    assert revoked.certificate("n1", "ab", 99.0) and revoked.certificate("n1", "ab", 100.0)
    after = revoked.begins_after("n1")
    assert after is not None and revoked.certificate("n1", "cd", after) is None
    assert revoked.certificate("n2", "ab", 99.0) is None and revoked.begins_after("n2") is None
    revoked.put("two", entry_of(NODE, "n1", 200.0))
    assert revoked.certificate("n1", "cd", after) and revoked.begins_after("n1") == 201.0
    revoked.drop("two")
    assert revoked.certificate("n1", "cd", after) is None
    assert "stolen" in revoked.certificate("n1", "ab", 99.0).message()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("made", "after"), [(None, 101.0), (100.25, 100.25), (100.0, 100.0), (99.0, 101.0), (101.0, 101.0)]
)
def test_tokens_are_told_apart_within_the_second_where_the_moment_is_known(
    made: float | None, after: float
) -> None:
    revoked = Revoked()
    revoked.put("one", entry_of(NODE, "n1", 100.0, "", made))
    assert revoked.tokens_after("n1") == after and revoked.tokens_after("n2") is None
    assert revoked.begins_after("n1") == 101.0, "certificates know seconds alone"
    revoked.put("earlier", entry_of(NODE, "n1", 50.0, "", 50.5))
    assert revoked.tokens_after("n1") == after


@pytest.mark.parametrize(
    ("text", "serial"),
    [
        ("0A:bC:01", "abc01"),
        ("0x00ff", "ff"),
        (" 7F ", "7f"),
        ("", ""),
        ("0", ""),
        ("xyz", ""),
        ("1" * 41, ""),
        ("-1", ""),
    ],
)
def test_a_serial_number_has_one_form(text: str, serial: str) -> None:
    assert serial_text(text) == serial


names = st.sampled_from(["o1", "o2", "o3"])
values = st.sampled_from(["a", "b"])


@given(st.lists(st.tuples(names, st.sampled_from([*KINDS, ""]), values, st.integers(1, 5)), max_size=30))
def test_the_index_says_what_a_list_of_all_entries_says(steps: list[tuple[str, str, str, int]]) -> None:
    revoked, twin = Revoked(), dict[str, Entry]()
    for name, kind, value, at in steps:
        if kind:
            twin[name] = entry_of(kind, value, float(at))
            revoked.put(name, twin[name])
        else:
            twin.pop(name, None)
            revoked.drop(name)
        entries = list(twin.values())
        assert len(revoked) == len(twin) and revoked.tokens == any(e.kind == TOKEN for e in entries)
        for wanted in ("a", "b"):
            assert (revoked.token(wanted) is None) == (not any(e[:2] == (TOKEN, wanted) for e in entries))
            assert (revoked.serial(wanted) is None) == (not any(e[:2] == (SERIAL, wanted) for e in entries))
            for begins in range(6):
                refused = any(e[:2] == (NODE, wanted) and begins <= e.at for e in entries)
                assert (revoked.certificate(wanted, "", float(begins)) is not None) == refused
