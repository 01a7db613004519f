"""Runs on CPython under pytest and, unmodified, in the MicroPython VM."""

import struct

from edgelite import journal
from edgelite.journal import Journal, JournalError, JournalFormat, JournalFull
from tests.edgelite import powercuts
from tests.edgelite.memory_files import MemoryFiles

CUTS = 24  # of a kind of disk; `make soak` makes 1,000 of each on every platform


def raises(kind, call, *args):
    try:
        call(*args)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


def written(*batches):
    """(bytes of a journal, its length after every sync) with the writes of each batch synced together."""
    files = MemoryFiles()
    book = Journal(files, "j")
    book.sync()
    ends = [len(files.data["j"])]
    for batch in batches:
        for key, value in batch:
            book.write([(key, value)])
        book.sync()
        ends.append(len(files.data["j"]))
    return files.data["j"], ends


def reopen(data, **more):
    contents = {"j": data}
    contents.update(more)
    files = MemoryFiles(contents)
    return Journal(files, "j"), files


def test_what_was_synced_is_there_after_reopening():
    files = MemoryFiles()
    book = Journal(files, "j")
    book.put("doc/a", b"1")
    book.put("doc/b", b"2")
    book.put("meta/x", b"")
    book.delete("doc/a")
    book.sync()
    again = Journal(MemoryFiles(files.durable), "j")
    assert again.items("doc/") == [("doc/b", b"2")]
    assert again.get("meta/x") == b""
    assert again.get("doc/a") is None
    assert again.live_bytes == book.live_bytes
    assert again.file_bytes == book.file_bytes
    assert again.compactions == 0


def test_nothing_is_durable_before_sync_and_one_sync_serves_many_writes():
    files = MemoryFiles()
    book = Journal(files, "j")
    book.sync()
    before = files.syncs
    for number in range(10):
        book.put(f"k{number}", b"v")
    assert Journal(MemoryFiles(files.durable), "j").keys() == []
    book.sync()
    book.sync()
    assert files.syncs == before + 1
    assert len(Journal(MemoryFiles(files.durable), "j").keys()) == 10


def test_a_file_cut_at_any_byte_keeps_every_synced_write_before_the_cut():
    data, ends = written([("a", b"1" * 9)], [("b", b"2" * 30), ("a", None)], [("c", b"JJJJ")])
    want = [[], [("a", b"1" * 9)], [("b", b"2" * 30)], [("b", b"2" * 30), ("c", b"JJJJ")]]
    for cut in range(ends[0], len(data) + 1):
        book, files = reopen(data[:cut])
        synced = len([e for e in ends if e <= cut]) - 1
        whole_but_unsynced = [("a", b"1" * 9), ("b", b"2" * 30)]
        assert book.items() == want[synced] or (synced == 1 and book.items() == whole_but_unsynced)
        assert book.salvaged == ""
        assert book.cut_bytes == 0 or "j.damaged" not in files.data
        book.put("after", b"x")
        book.sync()
        assert Journal(MemoryFiles(files.durable), "j").get("after") == b"x"


def test_any_flipped_byte_costs_at_most_the_record_it_is_in():
    batches = [[(f"k{n}", b"value %d" % n)] for n in range(6)]
    data, ends = written(*batches)
    for at in range(ends[0], len(data)):
        bad = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        book, files = reopen(bad)
        hit = len([e for e in ends if e <= at]) - 1
        for number in range(6):
            want = None if number == hit else b"value %d" % number
            assert book.get(f"k{number}") == want
        if hit < 5:
            assert "could not be read" in book.salvaged
            assert files.data["j.damaged"] == bad
        else:
            assert book.salvaged == ""  # the last record cannot be told from a torn one
        assert Journal(MemoryFiles(files.durable), "j").items() == book.items()


def test_pages_of_one_unsynced_batch_written_out_of_order_are_a_torn_tail_and_no_damage():
    data, ends = written([("a", b"1")], [("b", b"2" * 40), ("c", b"3" * 40)])
    bad = bytearray(data)
    bad[ends[1] + 30] ^= 1
    # The batch of "b" and "c" is the same, but differs from that of "a": salvage keeps "c".
    book, _ = reopen(bytes(bad))
    assert book.get("a") == b"1"
    data, ends = written([("a", b"1"), ("b", b"2" * 40), ("c", b"3" * 40)])
    bad = bytearray(data)
    bad[ends[0] + 60] ^= 1
    book, _ = reopen(bytes(bad))
    assert book.items() == [("a", b"1")]
    assert book.salvaged == ""
    assert book.cut_bytes > 0


def test_zeros_behind_the_written_end_are_cut():
    data, _ = written([("a", b"1")])
    book, files = reopen(data + bytes(4096))
    assert book.items() == [("a", b"1")]
    assert book.cut_bytes == 4096
    assert files.durable["j"] == files.data["j"]


def test_compaction_keeps_the_file_near_what_is_live():
    files = MemoryFiles()
    book = Journal(files, "j")
    for number in range(3000):
        book.put("counter", b"%d" % number + bytes(100))
        book.sync()
    assert book.compactions > 1
    assert book.file_bytes < 80 << 10
    assert book.file_bytes == len(files.data["j"])
    assert "j.new" not in files.data
    assert Journal(MemoryFiles(files.durable), "j").get("counter") == b"2999" + bytes(100)


def test_a_new_file_left_by_a_cut_is_ignored_beside_the_old_and_used_without_it():
    data, _ = written([("a", b"1")])
    other, _ = written([("b", b"2")])
    files = MemoryFiles({"j": data, "j.new": other[:-3]})
    assert Journal(files, "j").items() == [("a", b"1")]
    assert "j.new" not in files.data
    files = MemoryFiles({"j.new": other})
    assert Journal(files, "j").items() == [("b", b"2")]


def test_a_full_disk_acknowledges_nothing_until_a_whole_rewrite_succeeded():
    files = MemoryFiles()
    book = Journal(files, "j")
    book.put("a", b"1")
    book.sync()
    files.room = 20
    book.put("b", b"2" * 100)
    assert "No space left" in raises(JournalError, book.sync)
    assert book.failed is not None
    book.put("c", b"3")
    raises(JournalError, book.sync)
    assert Journal(MemoryFiles(files.durable), "j").items() == [("a", b"1")]
    assert "j.new" not in files.data, "a half-written copy would keep the disk full"
    files.room = None
    book.sync()
    assert book.failed is None
    want = [("a", b"1"), ("b", b"2" * 100), ("c", b"3")]
    assert Journal(MemoryFiles(files.durable), "j").items() == want


def test_after_a_failed_fsync_only_a_new_file_counts():
    for fault in ("sync", "write", "replace"):
        files = MemoryFiles()
        book = Journal(files, "j")
        book.put("a", b"1")
        book.sync()
        compactions = book.compactions
        files.fail = "sync" if fault != "write" else "write"
        book.put("b", b"2")
        raises(JournalError, book.sync)
        files.fail = fault
        raises(JournalError, book.sync)
        files.fail = None
        book.sync()
        assert book.compactions == compactions + 1
        assert Journal(MemoryFiles(files.durable), "j").items() == [("a", b"1"), ("b", b"2")]


def test_the_bound_refuses_a_write_and_changes_nothing():
    files = MemoryFiles()
    book = Journal(files, "j", 4096)
    book.put("a", bytes(1500))
    assert "at most 2048" in raises(JournalFull, book.put, "b", bytes(1000))
    assert book.get("b") is None
    book.put("a", b"")
    book.put("b", bytes(1000))
    for _ in range(20):
        book.put("b", bytes(1000))
        assert len(files.data["j"]) <= 4096
    book.delete("b")
    book.sync()
    assert Journal(MemoryFiles(files.durable), "j").items() == [("a", b"")]


def test_writes_of_one_call_are_durable_together_or_not_at_all():
    files = MemoryFiles()
    book = Journal(files, "j")
    book.sync()
    whole = len(files.data["j"])
    book.write([("claim", b"new"), ("rev", None), ("x", b"y")])
    book.sync()
    data = files.data["j"]
    for cut in range(whole, len(data)):
        assert reopen(data[:cut])[0].items() == []
    assert reopen(data)[0].items() == [("claim", b"new"), ("x", b"y")]


def test_a_newer_format_and_a_foreign_file_are_refused_untouched():
    data, _ = written([("a", b"1")])
    newer = journal._frame(b"H" + bytes([9])) + data[10:]
    for content, word in (
        (newer, "newer"),
        (b"#!/bin/sh\necho hello, this is a script\n", "not an edgelite"),
    ):
        files = MemoryFiles({"j": content})
        assert word in raises(JournalFormat, Journal, files, "j")
        assert files.data == {"j": content}


def test_keys_and_records_have_bounds():
    book = Journal(MemoryFiles(), "j")
    raises(ValueError, book.put, "", b"")
    raises(ValueError, book.put, "k" * 1025, b"")
    raises(ValueError, book.put, "k", bytes(4 << 20))
    assert book.keys() == []


def test_a_damaged_length_does_not_hide_the_records_behind_it():
    data, ends = written([("a", b"1")], [("b", b"2")], [("c", b"3")])
    bad = data[: ends[1]] + struct.pack(">I", 0x7FFFFFFF) + data[ends[1] + 4 :]
    book, _ = reopen(bad)
    assert book.items() == [("a", b"1"), ("c", b"3")]
    assert book.salvaged


def test_salvage_with_a_full_disk_loses_nothing_more():
    data, ends = written([("a", b"1")], [("b", b"2")], [("c", b"3")])
    bad = data[: ends[1]] + b"\xff" + data[ends[1] + 1 :]
    files = MemoryFiles({"j": bad})
    files.room = 5
    book = Journal(files, "j")
    assert book.items() == [("a", b"1"), ("c", b"3")]
    assert files.data["j"] == bad
    raises(JournalError, book.sync)
    files.room = None
    book.sync()
    assert files.data["j.damaged"] == bad
    assert Journal(MemoryFiles(files.durable), "j").items() == [("a", b"1"), ("c", b"3")]


def test_power_cuts_on_any_disk_lose_nothing_that_was_committed_and_tear_nothing():
    for kind in powercuts.KINDS:
        counts = powercuts.run(kind, CUTS, 1)
        assert counts["writing"] and counts["compacting"], counts


def test_the_check_of_power_cuts_finds_a_disk_that_forgets_to_sync():
    for kind in powercuts.KINDS:
        assert kind in raises(powercuts.Lost, powercuts.run, kind, CUTS, 1, True)


def test_a_record_that_lay_on_the_disk_before_is_none_of_this_journal():
    files = MemoryFiles()
    book = Journal(files, "j")
    book.put("a", b"old")
    book.sync()
    before = files.data["j"]
    book.put("a", b"new")
    book.compact()
    after = files.data["j"]
    # A sector that a power cut kept from being written holds what was there: readable, whole, and out of date.
    for gap in (b"", bytes(40)):
        book, _ = reopen(after + gap + before)
        assert book.items() == [("a", b"new")]
        assert book.salvaged == "" and book.cut_bytes == len(gap + before)
