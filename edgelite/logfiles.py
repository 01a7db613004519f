"""Log files of containers: rotation, the time of each line, and reading with Kubernetes' options.

The log itself is raw: what the container wrote, nothing else, written by a process that outlives the agent. Times lie in
an index beside it: records (wall clock, offset) made when the agent looks at the file, once a second while there is
something to look at. The file's modification time makes the last line before each look exact; lines between two looks are
interpolated, as are those that came while no agent ran.

Offsets are absolute: they go on over rotations. Rotation is copy-and-truncate, because the writer keeps its descriptor. What is
written between the last read of the copy and the truncation is lost: some microseconds' worth.
A file that outgrew twice its bound between two looks keeps its newest part.
"""

import os
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Wait
    from edgelite.runtimes.base import LogSink

CHUNK_BYTES = 32768
FOLLOW_S = 0.2
FLAGS: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # the latter is Windows'
LOOK_S = 1.0
RECORDS_MAX = 4096
_RECORD = ">dQ"
_RECORD_BYTES = 16
_BASE = -1.0  # the time of a record that tells where the current file begins


class LogFile:
    """One container's log: `path`, its older parts `path.1`... and its index `path.idx`.

    bytes_max: size at which the file is rotated; files: how many there are, the current one included."""

    def __init__(self, path: str, bytes_max: int, files: int) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self.files = files
        self.base = 0  # absolute offset of the current file's first byte
        self._records = 0
        self._seen = 0  # absolute offset of the end at the last look
        self._seen_at = 0.0
        self._recorded_at = 0.0
        self._load()

    def _load(self) -> None:
        records = self._index()
        for at, offset in records:
            if at == _BASE:
                self.base = offset
            else:
                self._seen, self._recorded_at = offset, at
        self._seen_at = self._recorded_at
        self._records = len(records)

    def look(self, now: float) -> bool:
        """Takes a sample, and rotates where it is time; True when the log has grown. now: wall clock, seconds.
        A full disk costs the sample or the rotation, which the next look tries again."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        end = self.base + status.st_size
        grown = end != self._seen
        if grown:
            # Idle time is marked, so that interpolation does not spread a burst over it.
            if self._seen_at - self._recorded_at > LOOK_S:
                self._record(self._seen_at, self._seen)
            self._record(max(min(status.st_mtime, now), self._recorded_at), end)
            self._seen = end
        self._seen_at = now
        if status.st_size > self.bytes_max:
            self._rotate()
        return grown

    def _record(self, at: float, offset: int) -> None:
        if self._records >= RECORDS_MAX:
            self._thin()
        try:
            with open(self.path + ".idx", "ab") as f:
                f.write(struct.pack(_RECORD, at, offset))
        except OSError:
            return  # a full disk: lines are then dated by their neighbours
        self._records += 1
        if at != _BASE:
            self._recorded_at = at

    def _thin(self) -> None:
        """Halves the index, and forgets what is older than the oldest file."""
        oldest = self._parts()[0][1]
        records = [r for r in self._index() if r[0] != _BASE and r[1] >= oldest]
        records = records[:1] + records[2::2]
        self._write_index([(_BASE, self.base)] + records)

    def _write_index(self, records: "list[tuple[float, int]]") -> None:
        try:
            with open(self.path + ".idx.new", "wb") as f:
                for at, offset in records:
                    f.write(struct.pack(_RECORD, at, offset))
            os.replace(self.path + ".idx.new", self.path + ".idx")
            self._records = len(records)
        except OSError:
            self._records = 0  # a full disk: tried again RECORDS_MAX records later

    def _index(self) -> "list[tuple[float, int]]":
        try:
            with open(self.path + ".idx", "rb") as f:
                data = f.read(_RECORD_BYTES * RECORDS_MAX * 2)
        except FileNotFoundError:
            return []
        whole = len(data) // _RECORD_BYTES * _RECORD_BYTES
        return [struct.unpack_from(_RECORD, data, at) for at in range(0, whole, _RECORD_BYTES)]

    def _rotate(self) -> None:
        fd = os.open(self.path, os.O_RDWR | FLAGS)
        try:
            size = os.fstat(fd).st_size
            start = size - self.bytes_max if size > 2 * self.bytes_max else 0
            kept = self._copy(fd, start)
            if self.files > 1:
                for n in range(self.files - 1, 1, -1):
                    older = "%s.%d" % (self.path, n - 1)
                    if os.path.exists(older):
                        os.replace(older, "%s.%d" % (self.path, n))
                os.replace(self.path + ".new", self.path + ".1")
            os.ftruncate(fd, 0)
        except OSError:
            # No room for the copy: the space is worth more than the lines.
            kept, start = 0, os.fstat(fd).st_size
            os.ftruncate(fd, 0)
            _unlink(self.path + ".new")
        finally:
            os.close(fd)
        self.base += start + kept
        self._seen = self.base
        self._record(_BASE, self.base)

    def _copy(self, fd: int, start: int) -> int:
        """Copies to `path.new` until nothing more comes; returns how much."""
        if self.files < 2:
            return 0
        to = os.open(self.path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | FLAGS, 0o600)
        try:
            copied = 0
            # Twice the bound: a writer that is faster than this copy must not keep it going for ever.
            while copied < 2 * self.bytes_max:
                sent = _send(to, fd, start + copied)
                if not sent:
                    break
                copied += sent
            return copied
        finally:
            os.close(to)

    def _parts(self) -> "list[tuple[str, int, int]]":
        """(path, absolute begin, absolute end) of the files there are, oldest first."""
        parts = []
        begin = self.base
        for n in range(1, self.files):
            path = "%s.%d" % (self.path, n)
            try:
                size = os.stat(path).st_size
            except FileNotFoundError:
                break
            begin -= size
            parts.append((path, begin, begin + size))
        parts.reverse()
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            size = 0
        parts.append((self.path, self.base, self.base + size))
        return parts

    def read(self, offset: int) -> "tuple[int, bytes]":
        """(absolute offset of the first byte, bytes): at most CHUNK_BYTES from `offset` on, or from what is oldest."""
        for path, begin, end in self._parts():
            if offset < end:
                at = max(offset, begin)
                try:
                    with open(path, "rb") as f:
                        f.seek(at - begin)
                        data = f.read(min(CHUNK_BYTES, end - at))
                except FileNotFoundError:
                    data = b""
                return at, data
        return offset, b""

    @property
    def end(self) -> int:
        return self._parts()[-1][2]

    def offset_of_tail(self, lines: int) -> int:
        """Where the last `lines` lines begin."""
        parts = self._parts()
        oldest, end = parts[0][1], parts[-1][2]
        if lines <= 0:
            return end
        wanted = lines
        at = end
        while at > oldest:
            begin = max(oldest, at - CHUNK_BYTES)
            data = b""
            while begin + len(data) < at:  # a chunk may lie in two files
                _, more = self.read(begin + len(data))
                if not more:
                    break
                data += more
            data = data[: at - begin]
            if at == end and data[-1:] == b"\n":
                wanted += 1
            cut = len(data)
            while True:
                cut = data.rfind(b"\n", 0, cut)
                if cut < 0:
                    break
                wanted -= 1
                if wanted == 0:
                    return begin + cut + 1
            at = begin
        return oldest

    def times(self) -> "Times":
        """The index, for dating lines; it is a copy: take a new one after `look`."""
        return Times([r for r in self._index() if r[0] != _BASE])


class Times:
    """Dates offsets of a log by its index."""

    def __init__(self, records: "list[tuple[float, int]]") -> None:
        self._records = records

    def at(self, offset: int) -> float:
        """When the byte before `offset` was written; a line is dated by its end."""
        records = self._records
        low, high = 0, len(records)
        while low < high:
            middle = (low + high) // 2
            if records[middle][1] < offset:
                low = middle + 1
            else:
                high = middle
        if not records:
            return 0.0
        if low == len(records):
            return records[-1][0]
        at, end = records[low]
        if low == 0 or end == offset:
            return at
        before, begin = records[low - 1]
        return before + (at - before) * (offset - begin) / max(1, end - begin)

    def offset(self, at: float) -> int:
        """An offset before which everything is older than `at`."""
        best = 0
        for when, offset in self._records:
            if when >= at:
                break
            best = offset
        return best


def stamp(at: float) -> bytes:
    """RFC 3339 with nanoseconds, as kubectl shows it."""
    whole = int(at)
    return (
        "%s.%09dZ " % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)), int((at - whole) * 1e9))
    ).encode()


class _Options:
    """What an OPEN message may ask for (see ARCHITECTURE.md), None where it does not."""

    def __init__(self, options: "dict[str, Any]") -> None:
        self.follow = bool(options.get("follow"))
        self.stamps = bool(options.get("timestamps"))
        self.tail: "int | None" = options.get("tail")
        self.since_s: "float | None" = options.get("since_s")
        limit: "int | None" = options.get("limit")
        self.left = limit if limit is not None else 1 << 62


class Reader:
    """Streams one log with the options of the OPEN message to a sink. `ended` tells whether the writer has ended."""

    def __init__(self, log: LogFile, options: "dict[str, Any]") -> None:
        self._log = log
        self._options = _Options(options)
        self._fresh = True  # at the beginning of a line
        self._since = -1.0

    def stream(self, out: "LogSink", ended: "Any") -> "Generator[Wait, bool, None]":
        """Generator. ended: a callable without arguments."""
        from edgelite.loop import Wait, now

        self._log.look(time.time())
        offset = self._begin()
        while self._options.left > 0:
            over = ended()
            self._log.look(time.time())
            at, data = self._log.read(offset)
            if data:
                offset = at + len(data)
                yield from self._write(out, at, data)
            elif not self._options.follow or over:
                return
            else:
                yield Wait(-1, 0, now() + FOLLOW_S)

    def _begin(self) -> int:
        options = self._options
        offset = 0
        if options.since_s is not None:
            self._since = time.time() - options.since_s
            offset = self._first_since()
        if options.tail is not None:
            offset = max(offset, self._log.offset_of_tail(options.tail))
        return offset

    def _first_since(self) -> int:
        """The first line whose time is not before `since`."""
        times = self._log.times()
        offset = self._aligned(times.offset(self._since))
        while True:
            at, data = self._log.read(offset)
            if not data:
                return max(at, offset)
            begin = 0
            while True:
                cut = data.find(b"\n", begin)
                if cut < 0:
                    break
                if times.at(at + cut + 1) >= self._since:
                    return at + begin
                begin = cut + 1
            if begin == 0 and len(data) < CHUNK_BYTES:
                return at + (0 if times.at(at + len(data)) >= self._since else len(data))
            offset = at + (begin or len(data))

    def _aligned(self, offset: int) -> int:
        """The beginning of the line that holds `offset`, as far as one chunk reaches."""
        begin = max(0, offset - CHUNK_BYTES)
        at, data = self._log.read(begin)
        if at >= offset:
            return offset
        return at + data.rfind(b"\n", 0, offset - at) + 1

    def _write(self, out: "LogSink", at: int, data: bytes) -> "Generator[Wait, bool, None]":
        if self._options.stamps:
            data = self._stamped(at, data)
        data = data[: self._options.left]
        self._options.left -= len(data)
        yield from out.write(data)

    def _stamped(self, at: int, data: bytes) -> bytes:
        times = self._log.times()
        lines = []
        for line in _lines(data):
            at += len(line)
            if self._fresh:
                lines.append(stamp(times.at(at)))
            lines.append(line)
            self._fresh = line.endswith(b"\n")
        return b"".join(lines)


def _lines(data: bytes) -> "list[bytes]":
    """splitlines for which only a newline ends a line."""
    parts = data.split(b"\n")
    return [p + b"\n" for p in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _send(to: int, fd: int, offset: int) -> int:
    """How many bytes it copied from there on, 0 at the end."""
    if sys.platform == "linux":  # elsewhere to sockets alone
        return os.sendfile(to, fd, offset, 1 << 20)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, 1 << 20)
    left = data
    while left:
        left = left[os.write(to, left) :]
    return len(data)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
