"""Power cuts in the middle of the journal's writes and compactions, on disks that keep what was synced and of the rest whatever
they like. Runs on CPython 3.9+, also on Windows, and, unmodified, in the MicroPython VM.

    python -m tests.edgelite.powercuts 1000 7       1,000 cuts on every kind of disk, from seed 7; one JSON line a kind

What a cut leaves, by kind (all lengths in bytes, at sectors of SECTOR):

- `posix`: of what was not synced each sector has come, has not (zeros), or in part; the length is any. Names change in one step.
- `fat`: as `posix`, but a sector that has not come holds what lay there before, such as a journal that was replaced; a rename
  removes its target first, and the power may go in between.
- `ntfs`: as `posix`, but a rename is on the disk only with the next sync of a file.
- `littlefs`: a file is as it was synced last.

`lies`: a disk that forgets to sync, to see that the check finds it.
"""

import json
import sys

from edgelite.journal import Journal, JournalFormat, JournalFull

SECTOR = 64
KINDS = ("posix", "ntfs", "fat", "littlefs")
JOURNAL_BYTES_MAX = 4096
STEPS_MAX = 90
"""The power goes at the latest after so many operations of the disk."""
LIVES = 12
"""Cuts that one disk lives through."""
KEYS = 6
ROOM = 160
STALE_MAX = 8


class PowerCut(Exception):
    pass


class Lost(Exception):
    """The journal broke its word."""


class Dice:
    """The same numbers on every platform (xorshift32)."""

    def __init__(self, seed):
        self.state = (seed * 2654435761 + 97) & 0xFFFFFFFF or 1

    def below(self, limit):
        x = self.state
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        self.state = x
        return x % limit


class Inode:
    def __init__(self, data=b""):
        self.data = data
        self.synced = data


class Handle:
    def __init__(self, disk, inode):
        self.disk = disk
        self.inode = inode

    def write(self, data):
        self.disk.step()
        self.inode.data = self.inode.data + data
        return len(data)

    def close(self):
        pass


class Disk:
    """Has the methods of `edgelite.files.Files`. `steps`: how many operations are left, None for ever."""

    def __init__(self, kind, lies=False):
        self.kind = kind
        self.lies = lies
        self.names = {}
        self.pending = []
        self.stale = [b"of somebody else" * SECTOR]
        self.steps = None

    def step(self):
        if self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                raise PowerCut()

    def exists(self, path):
        return path in self.names

    def read(self, path):
        self.step()
        return self.names[path].data

    def create(self, path):
        self.step()
        self._replaced(path)
        inode = Inode()
        self._name(path, inode)
        return Handle(self, inode)

    def append(self, path):
        return Handle(self, self.names[path])

    def sync(self, file):
        self.step()
        if not self.lies:
            file.inode.synced = file.inode.data
            if self.kind == "ntfs":
                self.pending = []
        self.step()

    def replace(self, source, target):
        self.step()
        inode = self.names[source]
        self._replaced(target)
        if self.kind == "fat":
            self._name(target, None)
            self.step()
        self._name(target, inode, source)
        self.step()
        if self.kind != "ntfs":
            self.pending = []  # the directory is synced

    def remove(self, path):
        self.step()
        if path not in self.names:
            raise OSError(2, "No such file or directory")
        self._replaced(path)
        self._name(path, None)

    def _replaced(self, path):
        if path in self.names:
            self.stale.append(self.names[path].data)
            del self.stale[:-STALE_MAX]

    def _name(self, path, inode, source=None):
        """One step of the directory: what it was before is kept until it is synced."""
        self.pending.append(dict(self.names))
        if inode is None:
            self.names.pop(path, None)
        else:
            self.names[path] = inode
        if source is not None:
            self.names.pop(source)

    def after_cut(self, dice):
        """The disk as it is found when the power is back."""
        states = list(self.pending)
        states.append(self.names)
        names = states[dice.below(len(states))]
        found = Disk(self.kind, self.lies)
        found.stale = self.stale
        for path in names:
            found.names[path] = Inode(self._left(names[path], dice))
        return found

    def _left(self, inode, dice):
        if self.kind == "littlefs":
            return inode.synced
        whole = inode.data
        at = len(inode.synced)
        size = at + dice.below(len(whole) - at + 1)
        left = whole[:at]
        while at < size:
            end = min(size, (at // SECTOR + 1) * SECTOR)
            come = (end, end, at, at + dice.below(end - at + 1))[dice.below(4)]
            left = left + whole[at:come] + self._before(come, end, dice)
            at = end
        return left

    def _before(self, start, end, dice):
        """What lay in the place of these bytes."""
        if self.kind == "fat" and self.stale:
            old = self.stale[dice.below(len(self.stale))]
            sector = dice.below(len(old) // SECTOR + 1) * SECTOR + start % SECTOR
            old = old[sector : sector + end - start]
        else:
            old = b""
        return old + bytes(end - start - len(old))


class Ledger:
    """What was promised: `committed` is what was synced last, `groups` are the writes since, each all or nothing."""

    def __init__(self):
        self.committed = {}
        self.groups = []

    def synced(self):
        for group in self.groups:
            for key, value in group:
                if value is None:
                    self.committed.pop(key, None)
                else:
                    self.committed[key] = value
        self.groups = []

    def check(self, found):
        """Raises Lost. `found`: {key: value}; every value was written only once."""
        born = {}
        for number, group in enumerate(self.groups):
            for key, value in group:
                if value is not None:
                    born[(key, value)] = number
        oldest = {}
        for key in set(list(found) + list(self.committed) + [k for group in self.groups for k, _ in group]):
            value = found.get(key)
            if value is not None and (key, value) in born:
                oldest[key] = born[(key, value)]
            elif value is None and any((key, None) in group for group in self.groups):
                oldest[key] = len(self.groups)  # any of them may have removed it
            elif value == self.committed.get(key):
                oldest[key] = -1
            else:
                raise Lost(f"{key} is {value}, committed was {self.committed.get(key)}")
        for key in oldest:
            number = oldest[key]
            if 0 <= number < len(self.groups):
                for other, value in self.groups[number]:
                    if oldest[other] < number and found.get(other) != value:
                        raise Lost(f"{key} and {other} were written as one, and only the first is there")
        self.committed = dict(found)
        self.groups = []


class Life:
    """One disk, its journal and its cuts."""

    def __init__(self, kind, dice, lies=False):
        self.disk = Disk(kind, lies)
        self.dice = dice
        self.ledger = Ledger()
        self.written = 0
        self.cuts = {"opening": 0, "writing": 0, "syncing": 0, "compacting": 0}
        self.false_alarms = 0
        self._doing = ""

    def cut(self):
        """Works until the power goes, and looks at what is left. Raises Lost."""
        self.disk.steps = 1 + self.dice.below(STEPS_MAX)
        try:
            self._work()
        except PowerCut:
            pass
        compacting = "j.new" in self.disk.names or "j" not in self.disk.names
        self.cuts["compacting" if compacting and self._doing != "opening" else self._doing] += 1
        self.disk = self.disk.after_cut(self.dice)
        left = Disk(self.disk.kind)
        left.names = {path: Inode(self.disk.names[path].data) for path in self.disk.names}
        try:
            book = Journal(left, "j", JOURNAL_BYTES_MAX)
        except JournalFormat as error:
            raise Lost(f"it cannot be opened: {error}") from error
        self.false_alarms += bool(book.salvaged)
        self.ledger.check(dict(book.items()))

    def _work(self):
        self._doing = "opening"
        book = Journal(self.disk, "j", JOURNAL_BYTES_MAX)
        while True:
            self._doing = "writing"
            for _ in range(1 + self.dice.below(4)):
                self._write(book)
            self._doing = "syncing" if self.dice.below(8) else "compacting"
            if self._doing == "syncing":
                book.sync()
            else:
                book.compact()
            self.ledger.synced()

    def _write(self, book):
        group = [("always", self._value())]
        for _ in range(self.dice.below(3)):
            key = f"k{self.dice.below(KEYS)}"
            group.append((key, self._value() if self.dice.below(5) else None))
        # Before: what a cut in the middle leaves may be there or not.
        self.ledger.groups.append(group)
        try:
            book.write(group)
        except JournalFull:
            self.ledger.groups.pop()

    def _value(self):
        self.written += 1
        # Bytes that look like the beginning of a record are among them.
        return b"J%d" % self.written + b"J" * self.dice.below(ROOM)


def run(kind, cuts, seed, lies=False):
    """{what was done when the power went: how often}, and `false alarms`: how often the journal took it for damage. Raises Lost,
    whose message says how to see it again."""
    dice = Dice(seed)
    counts = {}
    false_alarms = done = 0
    while done < cuts:
        life = Life(kind, dice, lies)
        for _ in range(min(LIVES, cuts - done)):
            done += 1
            try:
                life.cut()
            except Lost as lost:
                raise Lost(f"{kind}, seed {seed}, cut {done}: {lost}") from lost
        for what in life.cuts:
            counts[what] = counts.get(what, 0) + life.cuts[what]
        false_alarms += life.false_alarms
    counts["false alarms"] = false_alarms
    return counts


def steps(cuts, seed):
    """Generator of what `main` prints, in small steps: None, or a kind's result. Each step has a seed of its own."""
    for kind in KINDS:
        total = {}
        for begin in range(0, cuts, LIVES):
            counts = run(kind, min(LIVES, cuts - begin), seed + begin)
            for what in counts:
                total[what] = total.get(what, 0) + counts[what]
            yield None
        yield {"disk": kind, "cuts": cuts, "seed": seed, "by": total}


def main(cuts, seed):
    for found in steps(cuts, seed):
        if found is not None:
            print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
