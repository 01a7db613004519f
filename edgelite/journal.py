"""The agent's durable map of key -> bytes: what it acknowledged survives kill -9, power cuts and full disks.

An append-only file of records `[length u32][crc32 u32][payload]`, a map in memory, and compaction into a new file
that replaces the old one. A record holds one or more writes that become durable together; its payload is

    "J", batch u32, then per write: op u8 (1 put, 2 delete), key length u16, value length u32, key, value

and the first record of a file is "H", format u8. The batch counts up with every `sync`.

Invariant: when `sync` has returned, every earlier write is on the disk. After a failed write nothing more is
acknowledged (`failed` is set, `sync` raises) until a whole new file was written: what the old one then holds of
unacknowledged writes is unknown, and a page that an fsync failed on may be marked clean.

At open a torn tail is cut. What is readable in it and of an older batch than what came before is no record of this file, but
what its place on the disk held before (FAT, after a power cut); every rewrite begins a batch, so that this can be told. Damage before a later batch is not a torn write but lost data: what is readable on both
sides is kept, the old file is set aside as `<name>.damaged`, and `salvaged` says what happened, so that the agent
takes a new incarnation and says so; refusing to start would leave workloads without their agent.

Bounds: the file never exceeds `bytes_max`; what is live never exceeds half of it, so that compaction pays off.
Runs unmodified on CPython 3.9+ and MicroPython. `files` is the file system (see `edgelite.files.Files`).
"""

import binascii
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BYTES_MAX = 64 << 20
FORMAT = 1
KEY_BYTES_MAX = 1024
RECORD_BYTES_MAX = 4 << 20
RECORD_OVERHEAD = 8
WRITE_OVERHEAD = 7
COMPACT_SLACK = 64 << 10
PUT = 1
DELETE = 2


class JournalError(Exception):
    """Nothing written since the last successful `sync` may be acknowledged. Retrying `sync` is the remedy once the
    disk works or has room again."""


class JournalFull(JournalError):
    """The write was refused and changed nothing: the journal's bound is reached."""


class JournalFormat(JournalError):
    """The file was written by a newer edgelite, or is not a journal. Nothing was changed."""


class Journal:
    """See the module. Open with `Journal(files, path)`; it then holds the map as it was last written."""

    def __init__(self, files: "Any", path: str, bytes_max: int = BYTES_MAX) -> None:
        self._files = files
        self._path = path
        self.bytes_max = bytes_max
        self.live_bytes_max = bytes_max // 2
        self._map: "dict[str, bytes]" = {}
        self._file: "Any" = None
        self._dirty = False
        self._set_aside = False
        self._batch = 1
        self.live_bytes = 0
        self.file_bytes = 0
        self.cut_bytes = 0
        self.compactions = 0
        self.salvaged = ""
        self.failed: "JournalError | None" = None
        self._open()

    # What is in it

    def get(self, key: str) -> "bytes | None":
        return self._map.get(key)

    def keys(self, prefix: str = "") -> "list[str]":
        """The keys that begin with `prefix`, sorted."""
        return sorted([k for k in self._map if k.startswith(prefix)])

    def items(self, prefix: str = "") -> "list[tuple[str, bytes]]":
        """(key, value) of the keys that begin with `prefix`, sorted by key."""
        return [(k, self._map[k]) for k in self.keys(prefix)]

    # Writing

    def put(self, key: str, value: bytes) -> None:
        """Sets a key; durable after `sync`. Raises JournalFull."""
        self.write([(key, value)])

    def delete(self, key: str) -> None:
        """Removes a key, if it is there; durable after `sync`."""
        if key in self._map:
            self.write([(key, None)])

    def write(self, writes: "list[tuple[str, bytes | None]]") -> None:
        """Puts (value) and deletes (None), durable together after `sync`.

        Raises JournalFull or ValueError, with nothing changed. An I/O error is remembered and raised by `sync`."""
        record = _record(self._batch, writes)
        after = self._live_after(writes)
        if after > self.live_bytes_max and after > self.live_bytes:
            raise JournalFull(
                "the journal would hold %d bytes, at most %d are allowed; remove workloads or their "
                "ConfigMaps from this node" % (after, self.live_bytes_max)
            )
        for key, value in writes:
            if value is None:
                self._map.pop(key, None)
            else:
                self._map[key] = value
        self.live_bytes = after
        self._dirty = True
        if self.failed is not None:
            return
        if self.file_bytes + len(record) > min(self.bytes_max, 2 * self.live_bytes + COMPACT_SLACK):
            # The new file is written from the map, so this record is in it.
            self._try(self._rewrite)
        else:
            self._try(self._append, record)

    def sync(self) -> None:
        """Makes all earlier writes durable. Raises JournalError when that failed; call again to retry, which
        writes a whole new file."""
        if self.failed is not None:
            self._try(self._rewrite)
        elif self._dirty:
            self._try(self._sync_file)
        if self.failed is not None:
            raise self.failed
        self._dirty = False
        self._batch = (self._batch + 1) & 0xFFFFFFFF

    def compact(self) -> None:
        """Replaces the file by one that holds what is live alone; durable on return. Raises JournalError."""
        self._try(self._rewrite)
        self.sync()

    def close(self) -> None:
        """Syncs and closes. Raises JournalError; the file is closed in any case."""
        try:
            self.sync()
        finally:
            self._close_file()

    # Files

    def _try(self, action: "Any", *args: "Any") -> None:
        try:
            action(*args)
            self.failed = None
        except OSError as error:
            self.failed = JournalError("cannot write %s: %s" % (self._path, error))
            self._close_file()

    def _append(self, record: bytes) -> None:
        self._file.write(record)
        self.file_bytes += len(record)

    def _sync_file(self) -> None:
        self._files.sync(self._file)

    def _close_file(self) -> None:
        file = self._file
        self._file = None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass  # flushing failed: `failed` says so already, or sync() was never asked for

    def _rewrite(self) -> None:
        new = self._path + ".new"
        self._close_file()
        size = 0
        self._batch = (self._batch + 1) & 0xFFFFFFFF
        file = self._files.create(new)
        try:
            size += _write(file, _frame(b"H" + bytes([FORMAT])))
            for key, value in self.items():
                size += _write(file, _record(self._batch, [(key, value)]))
            self._files.sync(file)
        except OSError:
            try:
                file.close()
            except OSError:
                pass  # the write that failed is what is reported
            self._discard(new)  # a half-written copy would keep the disk full
            raise
        file.close()
        if self._set_aside:
            self._files.replace(self._path, self._path + ".damaged")
            self._set_aside = False
        self._files.replace(new, self._path)
        self._file = self._files.append(self._path)
        self.file_bytes = size
        self.compactions += 1

    def _discard(self, path: str) -> None:
        try:
            self._files.remove(path)
        except OSError:
            pass  # replaced at the next rewrite, ignored at boot

    def _live_after(self, writes: "list[tuple[str, bytes | None]]") -> int:
        live = self.live_bytes
        seen: "dict[str, int]" = {}
        for key, value in writes:
            if key in seen:
                live -= seen[key]
            elif key in self._map:
                live -= _cost(key, self._map[key])
            seen[key] = 0 if value is None else _cost(key, value)
            live += seen[key]
        return live

    # Opening

    def _open(self) -> None:
        new = self._path + ".new"
        if not self._files.exists(self._path) and self._files.exists(new):
            # FAT's rename removes its target first: the new file was complete before it was renamed. One that is not is of the
            # very first start.
            if _payload_at(self._files.read(new), 0) is None:
                self._discard(new)
            else:
                self._files.replace(new, self._path)
        data = self._files.read(self._path) if self._files.exists(self._path) else b""
        clean = self._load(data)
        self.live_bytes = sum([_cost(k, v) for k, v in self._map.items()])
        self.file_bytes = len(data)
        self._set_aside = bool(self.salvaged)
        if clean and data:
            self._discard(new)
            try:
                self._file = self._files.append(self._path)
            except OSError as error:
                self.failed = JournalError("cannot open %s for writing: %s" % (self._path, error))
        else:
            self._try(self._rewrite)

    def _load(self, data: bytes) -> bool:
        """Reads the records; True when the file is whole and can be appended to."""
        if not data:
            return True
        at, end, last = 0, len(data), 0
        while at < end:
            payload = _payload_at(data, at)
            if payload is None or (at > 0 and _is_of_before(payload, last)):
                return self._damage(data, at, last)
            last = self._apply(payload, at, last)
            at += RECORD_OVERHEAD + len(payload)
        self._batch = (last + 1) & 0xFFFFFFFF
        return True

    def _apply(self, payload: bytes, at: int, last: int) -> int:
        kind = payload[:1]
        if kind == b"H":
            if len(payload) != 2 or payload[1] > FORMAT:
                raise JournalFormat(
                    "%s has a format newer than %d; use the edgelite that wrote it" % (self._path, FORMAT)
                )
            return last
        if kind != b"J" or at == 0:
            raise JournalFormat("%s is not an edgelite journal; move it away" % self._path)
        for key, value in _writes(payload):
            if value is None:
                self._map.pop(key, None)
            else:
                self._map[key] = value
        batch: int = struct.unpack(">I", payload[1:5])[0]
        return batch

    def _damage(self, data: bytes, at: int, last: int) -> bool:
        """The record at `at` is bad: a torn tail when nothing of a later batch follows, else lost data."""
        found = _resume(data, at)
        if at == 0 and found < 0:
            if len(data) >= RECORD_OVERHEAD and data[:2] != b"\0\0":
                raise JournalFormat("%s is not an edgelite journal; move it away" % self._path)
        first_bad, batch = at, last
        lost = 0
        while found >= 0:
            payload = _payload_at(data, found)
            if payload is None:
                start, found = found, _resume(data, found)
                lost += (found if found >= 0 else len(data)) - start
                continue
            if not _is_of_before(payload, batch):
                later = struct.unpack(">I", payload[1:5])[0]
                if later == last and not self.salvaged:
                    break  # the same unsynced batch: its pages reached the disk out of order
                if not self.salvaged:
                    self.salvaged = "damaged"
                    lost += found - first_bad
                batch = self._apply(payload, found, batch)
            found += RECORD_OVERHEAD + len(payload)
            if found >= len(data):
                break
        self._batch = (batch + 1) & 0xFFFFFFFF
        if self.salvaged:
            self.salvaged = (
                "%d bytes of %s at offset %d could not be read; what came before and after was kept, the file was "
                "set aside as %s.damaged" % (lost, self._path, first_bad, self._path)
            )
        else:
            self.cut_bytes = len(data) - first_bad
        return False


def _is_of_before(payload: bytes, last: int) -> bool:
    """Is this record, in a place behind one of the batch `last`, of a file that lay there before?"""
    return payload[:1] != b"J" or (struct.unpack(">I", payload[1:5])[0] - last) & 0xFFFFFFFF > 0x7FFFFFFF


def _cost(key: str, value: bytes) -> int:
    return RECORD_OVERHEAD + 5 + WRITE_OVERHEAD + len(key.encode()) + len(value)


def _write(file: "Any", record: bytes) -> int:
    file.write(record)
    return len(record)


def _frame(payload: bytes) -> bytes:
    return struct.pack(">II", len(payload), binascii.crc32(payload) & 0xFFFFFFFF) + payload


def _record(batch: int, writes: "list[tuple[str, bytes | None]]") -> bytes:
    out = bytearray(b"J" + struct.pack(">I", batch))
    for key, value in writes:
        name = key.encode()
        if not 0 < len(name) <= KEY_BYTES_MAX:
            raise ValueError("a journal key has 1 to %d bytes, this one %d" % (KEY_BYTES_MAX, len(name)))
        out.extend(
            struct.pack(
                ">BHI", DELETE if value is None else PUT, len(name), 0 if value is None else len(value)
            )
        )
        out.extend(name)
        if value is not None:
            out.extend(value)
    if len(out) > RECORD_BYTES_MAX:
        raise ValueError("a journal record has at most %d bytes, this one %d" % (RECORD_BYTES_MAX, len(out)))
    return _frame(bytes(out))


def _writes(payload: bytes) -> "list[tuple[str, bytes | None]]":
    out: "list[tuple[str, bytes | None]]" = []
    at = 5
    while at < len(payload):
        op, name, size = struct.unpack(">BHI", payload[at : at + WRITE_OVERHEAD])
        at += WRITE_OVERHEAD
        key = payload[at : at + name].decode()
        at += name
        out.append((key, payload[at : at + size] if op == PUT else None))
        at += size
    return out


def _payload_at(data: bytes, at: int) -> "bytes | None":
    """The payload of the record at `at`, or None when there is no whole and undamaged one."""
    if at + RECORD_OVERHEAD > len(data):
        return None
    length, crc = struct.unpack(">II", data[at : at + RECORD_OVERHEAD])
    if length < 2 or length > RECORD_BYTES_MAX or at + RECORD_OVERHEAD + length > len(data):
        return None  # zeros, as a power cut leaves them behind the written end, are no record
    payload = data[at + RECORD_OVERHEAD : at + RECORD_OVERHEAD + length]
    return payload if binascii.crc32(payload) & 0xFFFFFFFF == crc else None


def _resume(data: bytes, bad: int) -> int:
    """Where the next good record after the bad one at `bad` begins, or -1.

    A payload begins with "J", so only such places are tried; the CRC work is bounded to eight times the file."""
    budget = 8 * len(data)
    at = data.find(b"J", bad + RECORD_OVERHEAD + 1)
    while at >= 0 and budget > 0:
        start = at - RECORD_OVERHEAD
        budget -= min(struct.unpack(">I", data[start : start + 4])[0], len(data))
        if _payload_at(data, start) is not None:
            return start
        at = data.find(b"J", at + 1)
    return -1
