"""A journal that is cut at any byte can be opened, and holds nothing but what the whole one has held. Runs on every platform of the
suite, also in the MicroPython VM.

    python everycut.py <directory with edgelite> <journal> <stride>     prints {"checked": cuts}
"""

import json
import sys


class Cut:
    """The files of a journal that holds `data`; written files are of this process alone."""

    def __init__(self, data):
        self.data = {"j": data}

    def exists(self, path):
        return path in self.data

    def read(self, path):
        return self.data[path]

    def create(self, path):
        self.data[path] = b""
        return Handle(self, path)

    def append(self, path):
        return Handle(self, path)

    def sync(self, file):
        pass

    def replace(self, source, target):
        self.data[target] = self.data.pop(source)

    def remove(self, path):
        if self.data.pop(path, None) is None:
            raise OSError(2, "No such file or directory")


class Handle:
    def __init__(self, files, path):
        self.files = files
        self.path = path

    def write(self, data):
        self.files.data[self.path] = self.files.data[self.path] + data

    def close(self):
        pass


def check(path, stride):
    """Raises ValueError, naming the byte."""
    return list(steps(path, stride))[-1]


def steps(path, stride):
    """Generator: a step for each cut, its value how many there were so far."""
    from edgelite.journal import Journal

    with open(path, "rb") as file:
        whole = file.read()
    seen = set()
    for at in range(0, len(whole) + 1, stride):
        book = Journal(Cut(whole[:at]), "j")
        if book.salvaged or book.failed is not None:
            raise ValueError(f"cut at byte {at}: {book.salvaged or book.failed}")
        for key, value in book.items():
            if (key, value) not in seen and value not in whole:
                raise ValueError(f"cut at byte {at}: {key} holds what was never written")
            seen.add((key, value))
        yield at // stride + 1


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    print(json.dumps({"checked": check(sys.argv[2], int(sys.argv[3]))}))
