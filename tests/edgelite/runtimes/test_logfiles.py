"""Log files: rotation loses nothing that was written before it, and lines keep their times."""

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from edgelite.logfiles import CHUNK_BYTES, RECORDS_MAX, LogFile, Reader, Times, stamp
from tests.edgelite.runtimes.harness import Sink


class Written:
    """A log and the writer's end of it; `at` is the clock."""

    def __init__(self, path: Path, bytes_max: int = 1000, files: int = 3) -> None:
        self.path = str(path / "log")
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.log = LogFile(self.path, bytes_max, files)
        self.at = 1_700_000_000.0

    def write(self, data: bytes, after_s: float = 1.0) -> None:
        self.at += after_s
        os.write(self.fd, data)
        os.utime(self.path, (self.at, self.at))

    def look(self) -> None:
        self.log.look(self.at)

    def read(self, monkeypatch: pytest.MonkeyPatch | None = None, **options: Any) -> bytes:
        sink = Sink()
        if monkeypatch is not None:
            monkeypatch.setattr("edgelite.logfiles.time.time", lambda: self.at)
        for _ in Reader(self.log, options).stream(sink, lambda: True):
            raise AssertionError("nothing to wait for")
        return bytes(sink.data)


def test_rotation_keeps_the_newest_files_and_the_writers_descriptor(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=100, files=3)
    lines = [b"line %04d\n" % n for n in range(100)]
    for line in lines:
        w.write(line)
        w.look()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2", "log.idx"]
    kept = w.read()
    assert b"".join(lines).endswith(kept) and len(kept) >= 200
    assert all(os.stat(tmp_path / name).st_size <= 110 for name in ("log", "log.1", "log.2"))


def test_a_file_that_outgrew_its_bound_keeps_its_newest_part(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=1000)
    w.write(b"".join(b"line %04d\n" % n for n in range(1000)))
    w.look()
    assert len(w.read()) == 1000 and w.read().endswith(b"line 0999\n")
    w.write(b"more\n")
    assert w.read().endswith(b"line 0999\nmore\n")


def test_reading_goes_on_over_a_rotation(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=200)
    seen, offset = b"", 0
    for n in range(200):
        w.write(b"line %04d\n" % n)
        if n % 7 == 0:
            w.look()
        if n % 3 == 0:
            at, data = w.log.read(offset)
            seen += data
            offset = at + len(data)
    while True:
        at, data = w.log.read(offset)
        if not data:
            break
        seen += data
        offset = at + len(data)
    assert seen == b"".join(b"line %04d\n" % n for n in range(200))


def test_a_restarted_agent_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=100)
    for n in range(30):
        w.write(b"line %04d\n" % n)
        w.look()
    again = LogFile(w.path, 100, 3)
    assert (again.base, again.end) == (w.log.base, w.log.end)
    before = w.read(timestamps=True)
    w.log = again
    assert w.read(timestamps=True) == before


def test_a_line_that_was_looked_at_has_its_own_time(tmp_path: Path) -> None:
    w = Written(tmp_path)
    for n in range(5):
        w.write(b"line %d\n" % n, after_s=10.0)
        w.look()
    dated = w.read(timestamps=True).decode().splitlines()
    assert dated[0] == "2023-11-14T22:13:30.000000000Z line 0"
    assert dated[4] == "2023-11-14T22:14:10.000000000Z line 4"


def test_a_burst_after_silence_is_not_spread_over_the_silence(tmp_path: Path) -> None:
    w = Written(tmp_path)
    w.write(b"early\n")
    w.look()
    for _ in range(100):  # silence, looked at
        w.at += 1.0
        w.look()
    w.write(b"a\nb\nc\n", after_s=0.9)
    w.look()
    times = [
        float(f"{m[1]}.{m[2]}")
        for m in re.finditer(r":(\d\d)\.(\d+)Z [abc]", w.read(timestamps=True).decode())
    ]
    assert len(times) == 3 and times == sorted(times) and times[-1] - times[0] < 1.0


def test_what_came_while_no_agent_ran_is_interpolated(tmp_path: Path) -> None:
    w = Written(tmp_path)
    w.write(b"0\n")
    w.look()
    w.write(b"1\n2\n3\n4\n", after_s=100.0)
    w.look()
    times = w.log.times()
    assert [round(times.at(2 + 2 * n) - times.at(2)) for n in range(5)] == [0, 25, 50, 75, 100]


def test_since_and_tail_choose_the_lines_that_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = Written(tmp_path, bytes_max=100)
    lines = [b"line %04d\n" % n for n in range(25)]
    for line in lines:
        w.write(line, after_s=10.0)
        w.look()
    assert w.read(monkeypatch, since_s=95.0) == b"".join(lines[-10:])
    assert w.read(monkeypatch, since_s=5.0) == lines[-1]
    assert w.read(monkeypatch, since_s=0.0) == lines[-1]
    w.at += 60
    assert w.read(monkeypatch, since_s=30.0) == b""
    for n in range(25):
        assert w.read(monkeypatch, tail=n) == b"".join(lines[25 - n :])
    assert w.read(monkeypatch, tail=3, since_s=10_000.0) == b"".join(lines[-3:])
    assert w.read(monkeypatch, tail=2, limit=5) == b"line "


def test_tail_agrees_with_a_simple_twin_on_any_content(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for round_ in range(30):
        directory = tmp_path / str(round_)
        directory.mkdir()
        w = Written(directory, bytes_max=rng.choice([50, 3000, 200_000]))
        for _ in range(rng.randrange(12)):
            w.write(bytes(rng.choice(b"ab\n") for _ in range(rng.choice([1, 30, 4000, CHUNK_BYTES + 5]))))
            if rng.random() < 0.5:
                w.look()
        w.look()
        everything = w.read()
        lines = everything.splitlines(keepends=True)
        for n in (0, 1, 2, 7, 10_000):
            assert w.read(tail=n) == b"".join(lines[len(lines) - min(n, len(lines)) :]), (seed, round_, n)


def test_long_lines_are_dated_once(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=1 << 20)
    w.write(b"x" * (3 * CHUNK_BYTES) + b"\nshort\r\n")
    w.look()
    assert w.read(timestamps=True).count(b"Z ") == 2


def test_the_index_is_bounded(tmp_path: Path) -> None:
    w = Written(tmp_path, bytes_max=1 << 20)
    for _ in range(RECORDS_MAX + 500):
        w.write(b"x\n", after_s=1.0)
        w.look()
    assert os.stat(w.path + ".idx").st_size <= 16 * RECORDS_MAX
    first, last = w.log.times().at(2), w.log.times().at(w.log.end)
    assert last == w.at and first < w.at - RECORDS_MAX


def test_a_full_disk_costs_lines_and_not_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = Written(tmp_path, bytes_max=100)
    w.write(b"x" * 200)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgelite.logfiles.os.sendfile", full)
    w.look()
    assert os.stat(w.path).st_size == 0
    assert sorted(os.listdir(tmp_path)) == ["log", "log.idx"]
    w.write(b"after\n")
    assert w.read() == b"after\n"


def test_no_index_is_no_error(tmp_path: Path) -> None:
    assert Times([]).at(5) == 0.0
    assert Times([]).offset(5.0) == 0
    assert stamp(0.5) == b"1970-01-01T00:00:00.500000000Z "
