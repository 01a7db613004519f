from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.kv import Event, KeyValue, WatchBatch
from shards.merge import MergeFull, RevisionMerge


def event(key: str, revision: int, value: bytes = b"v") -> Event:
    return Event(key, KeyValue(key, value, revision, revision), None)


@dataclass
class SlowMerge:
    """The twin: keeps everything for ever and looks at all of it at every step."""

    reached: dict[str, int] = field(default_factory=dict)
    told: list[tuple[int, str, Event]] = field(default_factory=list)
    emitted: int = 0

    def batches(self) -> list[WatchBatch]:
        if not self.reached:
            return []
        through = min(self.reached.values())
        made = []
        for revision in range(self.emitted + 1, through + 1):
            events = tuple(e for r, _, e in self.told if r == revision)
            if events or revision == through:
                made.append(WatchBatch(revision, events))
        self.emitted = max(through, self.emitted)
        return made


@given(st.data())
def test_the_merge_gives_what_the_slow_twin_gives(data):
    fast, slow = RevisionMerge[str](), SlowMerge()
    for _ in range(data.draw(st.integers(1, 40))):
        known = sorted(slow.reached)
        step = data.draw(st.sampled_from(["add", "remove", "feed", "feed", "feed", "progress", "all"]))
        if step == "add":
            name = f"s{data.draw(st.integers(0, 4))}"
            if name in slow.reached:
                with pytest.raises(ValueError, match="merged already"):
                    fast.add(name, 10_000)
                continue
            after = slow.emitted + data.draw(st.integers(0, 5))
            if not slow.reached:
                slow.emitted = after
            slow.reached[name] = after
            fast.add(name, after)
        elif not known:
            continue
        elif step == "all":
            revision = slow.emitted + data.draw(st.integers(0, 6))
            slow.reached = {s: max(r, revision) for s, r in slow.reached.items()}
            assert fast.progress_all(revision) == slow.batches()
        else:
            name = data.draw(st.sampled_from(known))
            if step == "remove":
                del slow.reached[name]
                slow.told = [t for t in slow.told if t[1] != name]
                assert fast.remove(name) == slow.batches()
            elif step == "progress":
                revision = slow.emitted + data.draw(st.integers(0, 8))
                slow.reached[name] = max(slow.reached[name], revision)
                assert fast.progress(name, revision) == slow.batches()
            else:
                revision = slow.reached[name] + data.draw(st.integers(1, 4))
                events = [event(f"{name}/{i}", revision) for i in range(data.draw(st.integers(0, 3)))]
                slow.reached[name] = revision
                slow.told += [(revision, name, e) for e in events]
                assert fast.feed(name, revision, events) == slow.batches()
        assert fast.emitted == slow.emitted
        assert fast.held == sum(r > slow.emitted for r, _, _ in slow.told)
        assert fast.held_bytes == fast.held


def test_a_move_between_two_ranges_is_one_batch():
    merge = RevisionMerge[str]()
    merge.add("a", 5)
    merge.add("b", 5)
    gone, come = Event("a/x", None, None), event("b/x", 6)
    assert merge.feed("b", 6, [come]) == []
    assert merge.held == 1
    assert merge.feed("a", 6, [gone]) == [WatchBatch(6, (come, gone))]
    assert merge.held == 0


def test_a_range_added_while_running_holds_the_merge_until_it_is_listed():
    merge = RevisionMerge[str]()
    merge.add("a", 5)
    assert merge.feed("a", 7, []) == [WatchBatch(7, ())]
    merge.add("b", merge.emitted)
    assert merge.feed("a", 9, [event("a/x", 9)]) == []
    assert [b.revision for b in merge.progress("b", 8)] == [8]
    assert [b.revision for b in merge.progress("b", 9)] == [9]


def test_a_source_that_would_come_too_late_is_refused():
    merge = RevisionMerge[str]()
    merge.add("a", 5)
    merge.progress("a", 9)
    with pytest.raises(ValueError, match="9 has been given out"):
        merge.add("b", 8)


def test_a_revision_told_twice_is_refused():
    merge = RevisionMerge[str]()
    merge.add("a", 5)
    merge.feed("a", 6, [event("a/x", 6)])
    with pytest.raises(ValueError, match="revision 6 after 6"):
        merge.feed("a", 6, [event("a/x", 6)])


@pytest.mark.parametrize("bound", [{"events_max": 10}, {"bytes_max": 10}])
def test_what_is_held_has_a_bound_that_names_the_slowest_source(bound):
    merge = RevisionMerge[str](**bound)
    merge.add("fast", 0)
    merge.add("slow", 0)
    for revision in range(1, 11):
        merge.feed("fast", revision, [event("k", revision)])
    with pytest.raises(MergeFull, match="held for 'slow'"):
        merge.feed("fast", 11, [event("k", 11)])


def test_a_source_that_is_removed_takes_its_held_events_along():
    merge = RevisionMerge[str]()
    for name in ("a", "b", "c"):
        merge.add(name, 0)
    merge.feed("a", 1, [event("a/x", 1)])
    merge.feed("b", 1, [event("b/x", 1)])
    assert merge.remove("b") == []
    assert merge.held == 1
    assert merge.remove("c") == [WatchBatch(1, (event("a/x", 1),))]
