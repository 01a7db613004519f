"""One attempt of one container as the process runtime knows it: its identity, its files, its record in `State`."""

import json
import os

from edgelite.runtimes.base import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.logfiles import LogFile

UNKNOWN_EXIT = 137
NOBODY = (0, 0)


class Container:
    """Its life: intended (a record without a shim), started (shim recorded; `starting` until the launcher has reported),
    running, ending (`ending_at` is set: what is left of it is being killed), ended (`status` is set).

    shim, work: (pid, start time in clock ticks) of the shim and of the workload, NOBODY when unknown.
    directory: the attempt's own; launch: a random id, in the environment of everything that belongs to it.
    """

    __slots__ = (
        "attempt",
        "boot",
        "directory",
        "ending_at",
        "fds",
        "launch",
        "log",
        "name",
        "reported",
        "shim",
        "started_at",
        "starting",
        "status",
        "stops",
        "uid",
        "work",
    )

    def __init__(self, uid: str, name: str, attempt: int, launch: str, directory: str, boot: str) -> None:
        self.uid = uid
        self.name = name
        self.attempt = attempt
        self.launch = launch
        self.directory = directory
        self.boot = boot
        self.started_at = 0.0  # wall clock, seconds
        self.shim = NOBODY
        self.work = NOBODY
        self.starting = False
        self.ending_at = 0.0  # the loop's clock
        self.status: "Status | None" = None
        self.reported = False  # its end has been handed out
        self.stops = 0  # how many `stop` wait for its end
        self.fds: "list[int]" = []  # pidfds of shim and workload
        self.log: "LogFile | None" = None

    @property
    def key(self) -> str:
        return "%s/%s/%d" % (self.uid, self.name, self.attempt)

    @property
    def group(self) -> str:
        """The path of its cgroup below the agent's."""
        return "%s/%s.%d" % (self.uid, self.name, self.attempt)

    @property
    def handle(self) -> str:
        return "process://" + self.launch

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def running(self) -> Status:
        return Status(self.uid, self.name, self.attempt, "running", self.started_at, self.handle)

    def exited(self, code: int, reason: str, message: str, finished_at: float) -> Status:
        status = Status(self.uid, self.name, self.attempt, "exited", self.started_at, self.handle)
        status.exit_code = code
        status.reason = reason
        status.message = message
        status.finished_at = max(finished_at, self.started_at)
        return status

    def record(self) -> bytes:
        """What is kept in `State`."""
        value: "dict[str, Any]" = {
            "launch": self.launch,
            "dir": self.directory,
            "boot": self.boot,
            "shim": list(self.shim),
            "started": self.started_at,
        }
        if self.status is not None:
            s = self.status
            value["exit"] = [s.exit_code, s.reason, s.message, s.finished_at]
        return json.dumps(value).encode()

    def written(self, name: str) -> "int | None":
        """The number that the shim wrote to "pid" or "exit", None when it has not (yet)."""
        try:
            with open(self.path(name), "rb") as f:
                text = f.readline(32)
        except FileNotFoundError:
            return None
        return int(text[:-2]) if text.endswith(b".\n") and text[:-2].isdigit() else None

    def find_workload(self, proc: str) -> bool:
        """Looks up the workload of a living shim; False while the shim has not started it."""
        from edgelite.runtimes import process_proc  # Linux alone has it

        pid = self.written("pid")
        if pid is None:
            return False
        found = process_proc.read(pid, proc)
        if found is not None and found.parent == self.shim[0]:
            self.work = (pid, found.start)
        return True


def parse(key: str, value: bytes) -> Container:
    """A container from its record. Raises ValueError, KeyError for what is none."""
    uid, name, attempt = key.split("/")
    data = json.loads(value.decode())
    c = Container(uid, name, int(attempt), data["launch"], data["dir"], data["boot"])
    c.shim = (int(data["shim"][0]), int(data["shim"][1]))
    c.started_at = float(data["started"])
    if "exit" in data:
        code, reason, message, finished_at = data["exit"]
        c.status = c.exited(code, reason, message, finished_at)
        c.reported = True
    return c
