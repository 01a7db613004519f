"""A file system in memory whose disk fills up, fails and loses what was not synced. Runs on MicroPython too."""


class MemoryFile:
    def __init__(self, disk, path):
        self.disk = disk
        self.path = path

    def write(self, data):
        self.disk.spend(len(data))
        self.disk.data[self.path] = self.disk.data[self.path] + data
        return len(data)

    def close(self):
        pass


class MemoryFiles:
    """`data` is what a reader sees, `durable` what a power cut leaves. `room`: bytes until ENOSPC, None for ever."""

    def __init__(self, data=None):
        self.data = dict(data or {})
        self.durable = dict(self.data)
        self.room = None
        self.fail = None
        self.syncs = 0

    def spend(self, size):
        if self.fail == "write":
            raise OSError(5, "Input/output error")
        if self.room is not None:
            if size > self.room:
                raise OSError(28, "No space left on device")
            self.room -= size

    def exists(self, path):
        return path in self.data

    def read(self, path):
        return self.data[path]

    def size(self, path):
        return len(self.data.get(path, b""))

    def parts(self, path):
        if path not in self.data:
            raise OSError(2, "No such file or directory")
        yield self.data[path]

    def create(self, path):
        self.spend(0)
        self.data[path] = b""
        return MemoryFile(self, path)

    def append(self, path):
        return MemoryFile(self, path)

    def sync(self, file):
        if self.fail == "sync":
            raise OSError(5, "Input/output error")
        self.syncs += 1
        self.durable[file.path] = self.data[file.path]

    def replace(self, source, target):
        if self.fail == "replace":
            raise OSError(5, "Input/output error")
        self.data[target] = self.data.pop(source)
        self.durable[target] = self.durable.pop(source)

    def remove(self, path):
        if path not in self.data:
            raise OSError(2, "No such file or directory")
        self.data.pop(path)
        self.durable.pop(path, None)
