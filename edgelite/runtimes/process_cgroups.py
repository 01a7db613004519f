"""Control groups, versions 1 and 2: limits, and the sure way to find every process of a container. [Linux]

One group per attempt, `edgelite/<instance>/<pod uid>/<container>.<attempt>`, below the root of each hierarchy that the agent may
write to, else below the agent's own group: as Docker and the kubelet do it, so that a restart of the agent's
service does not take the workloads along. `instance` keeps two agents on one machine apart.
Where nothing is writable, nothing is used: `limits` is empty and `tracking` False.
"""

import os
import signal

ROOT = "edgelite"
CPU_PERIOD_US = 100_000
WANTED = ("memory", "cpu", "pids")
KILL_ROUNDS = 64

_SUFFIX = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}


def quantity(text: "str | int | float") -> float:
    """A Kubernetes quantity ("500m", "64Mi", "1e3", 2) as a number. Raises ValueError."""
    if not isinstance(text, str):
        return float(text)
    if " " in text:
        raise ValueError("%r is no quantity" % text)
    end = len(text)
    while end and text[end - 1].isalpha():
        end -= 1
    if text[end:] in _SUFFIX:
        return float(text[:end]) * _SUFFIX[text[end:]]
    return float(text)


class Limits:
    """Bounds of one container: memory in bytes, cpu and cpu_request in cores, pids as a count; 0 is no bound."""

    __slots__ = ("cpu", "cpu_request", "memory", "pids")

    def __init__(self, memory: int = 0, cpu: float = 0.0, cpu_request: float = 0.0, pids: int = 0) -> None:
        self.memory = memory
        self.cpu = cpu
        self.cpu_request = cpu_request
        self.pids = pids

    def settings(self, controller: str, version: int) -> "list[tuple[str, str, bool]]":
        """(file, value, must): `must` is False for what an older kernel may lack without loss of the bound."""
        if controller == "memory" and self.memory:
            value = str(self.memory)
            if version == 2:
                return [("memory.max", value, True), ("memory.swap.max", "0", False)]
            return [("memory.limit_in_bytes", value, True), ("memory.memsw.limit_in_bytes", value, False)]
        if controller == "pids" and self.pids:
            return [("pids.max", str(self.pids), True)]
        if controller == "cpu":
            return self._cpu(version)
        return []

    def _cpu(self, version: int) -> "list[tuple[str, str, bool]]":
        found: "list[tuple[str, str, bool]]" = []
        if self.cpu:
            quota = max(1000, int(self.cpu * CPU_PERIOD_US))
            if version == 2:
                found.append(("cpu.max", "%d %d" % (quota, CPU_PERIOD_US), True))
            else:
                found.append(("cpu.cfs_period_us", str(CPU_PERIOD_US), True))
                found.append(("cpu.cfs_quota_us", str(quota), True))
        if self.cpu_request:
            shares = min(262144, max(2, int(self.cpu_request * 1024)))
            if version == 2:
                found.append(("cpu.weight", str(1 + (shares - 2) * 9999 // 262142), False))
            else:
                found.append(("cpu.shares", str(shares), False))
        return found


class Hierarchy:
    """One mounted hierarchy: the directory below which this agent's groups lie, and what it controls."""

    __slots__ = ("base", "controllers", "version")

    def __init__(self, base: str, version: int, controllers: "tuple[str, ...]") -> None:
        self.base = base
        self.version = version
        self.controllers = controllers


class Cgroups:
    """The hierarchies that this agent can use. mounts, own: paths of /proc/self/mounts and /proc/self/cgroup."""

    def __init__(
        self, instance: str, mounts: str = "/proc/self/mounts", own: str = "/proc/self/cgroup"
    ) -> None:
        self._instance = instance
        self._hierarchies: "list[Hierarchy]" = []
        paths = _own_paths(own)
        for point, version, controllers in _mounted(mounts):
            wanted = tuple(c for c in WANTED if c in controllers)
            if version == 2 or wanted:
                key = "" if version == 2 else controllers[0]
                hierarchy = self._usable(point, version, wanted, paths.get(key, "/"))
                if hierarchy is not None:
                    self._hierarchies.append(hierarchy)
        # Version 2 first: killing a whole group there is one write that nothing can outrun.
        self._hierarchies.sort(key=lambda h: -h.version)

    @property
    def tracking(self) -> bool:
        """Whether the processes of a container can be found through its group."""
        return bool(self._hierarchies)

    @property
    def limits(self) -> "set[str]":
        """Those of "memory", "cpu", "pids" that can be limited."""
        return {c for h in self._hierarchies for c in h.controllers}

    def _usable(self, point: str, version: int, wanted: "tuple[str, ...]", own: str) -> "Hierarchy | None":
        places = [point]
        if own != "/" and ".." not in own:
            places.append(point + own)
        for place in places:
            base = os.path.join(place, ROOT, self._instance)
            try:
                _make(base)
            except OSError:
                continue
            if not os.access(os.path.join(base, "cgroup.procs"), os.W_OK):
                continue
            if version == 2:
                wanted = _delegated(place, base)
            return Hierarchy(base, version, wanted)
        return None

    def create(self, group: str, limits: Limits) -> "list[str]":
        """Makes the group with its limits and returns the files to which a process writes 0 to join. Raises OSError."""
        joins = []
        for h in self._hierarchies:
            path = os.path.join(h.base, group)
            _make(path)
            if h.version == 2:
                _delegated(h.base, os.path.dirname(path))
            for controller in h.controllers:
                for name, value, must in limits.settings(controller, h.version):
                    _set(os.path.join(path, name), value, must)
            joins.append(os.path.join(path, "cgroup.procs"))
        return joins

    def pids(self, group: str) -> "list[int]":
        """The processes of a group and of the groups that they made below it."""
        found: "set[int]" = set()
        for h in self._hierarchies:
            for directory, _, _ in os.walk(os.path.join(h.base, group)):
                found.update(_pids(directory))
        return sorted(found)

    def paths(self, group: str) -> "list[tuple[int, str]]":
        """(version, directory) of a group, in each hierarchy."""
        return [(h.version, os.path.join(h.base, group)) for h in self._hierarchies]

    def kill(self, group: str) -> None:
        """SIGKILL to all of them, at once where the kernel can."""
        for h in self._hierarchies:
            path = os.path.join(h.base, group)
            if h.version == 2 and _try(os.path.join(path, "cgroup.kill"), "1"):
                continue
            for _ in range(KILL_ROUNDS):
                pids = [p for directory, _, _ in os.walk(path) for p in _pids(directory)]
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                if not pids:
                    break

    def oom_killed(self, group: str) -> bool:
        """Whether the kernel killed something of the group for its memory limit."""
        for h in self._hierarchies:
            if "memory" in h.controllers:
                name = "memory.events" if h.version == 2 else "memory.oom_control"
                for line in _lines(os.path.join(h.base, group, name)):
                    word = line.split()
                    if len(word) == 2 and word[0] == "oom_kill" and word[1] != "0":
                        return True
        return False

    def remove(self, group: str) -> bool:
        """Removes the emptied group, and the directories above it that are empty then. False: something still runs."""
        gone = True
        for h in self._hierarchies:
            for directory, _, _ in os.walk(os.path.join(h.base, group), topdown=False):
                gone = _rmdir(directory) and gone
            above = os.path.dirname(os.path.join(h.base, group))
            while len(above) > len(h.base) and _rmdir(above):
                above = os.path.dirname(above)
        return gone

    def close(self) -> None:
        """Removes this agent's own directories where they are empty; `create` makes them again."""
        for h in self._hierarchies:
            if _rmdir(h.base):
                _rmdir(os.path.dirname(h.base))


def _make(path: str) -> None:
    """makedirs, though another agent may remove an empty directory above at any moment. Raises OSError."""
    for _ in range(8):
        try:
            os.makedirs(path, exist_ok=True)
            return
        except FileNotFoundError:
            pass
    os.makedirs(path, exist_ok=True)


def _mounted(path: str) -> "list[tuple[str, int, tuple[str, ...]]]":
    """(mount point, version, controllers) of each hierarchy."""
    found = []
    for line in _lines(path):
        word = line.split()
        if len(word) > 3 and word[2] == "cgroup2":
            found.append((word[1], 2, tuple(" ".join(_lines(word[1] + "/cgroup.controllers")).split())))
        elif len(word) > 3 and word[2] == "cgroup":
            options = tuple(
                o for o in word[3].split(",") if o not in ("rw", "ro", "relatime", "nosuid", "nodev")
            )
            found.append((word[1], 1, tuple(o for o in options if o in WANTED) + options))
    return found


def _own_paths(path: str) -> "dict[str, str]":
    """controller -> this process's group; "" for version 2."""
    found = {}
    for line in _lines(path):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for controller in controllers.split(","):
            found[controller] = group.rstrip("/") or "/"
    return found


def _delegated(top: str, bottom: str) -> "tuple[str, ...]":
    """Version 2: hands the wanted controllers down from `top` to the children of `bottom`; returns those that got there.
    A group that holds processes itself (the agent's own) cannot hand any down."""
    level = top
    chain = [top]
    for part in os.path.relpath(bottom, top).split("/"):
        if part != ".":
            level = os.path.join(level, part)
            chain.append(level)
    for directory in chain:
        for controller in WANTED:
            _try(os.path.join(directory, "cgroup.subtree_control"), "+" + controller)
    have = " ".join(_lines(os.path.join(bottom, "cgroup.subtree_control"))).split()
    return tuple(c for c in WANTED if c in have)


def _pids(directory: str) -> "list[int]":
    # 0 stands for processes of another pid namespace: not ours, and to kill, it would mean this process's group.
    return [int(line) for line in _lines(os.path.join(directory, "cgroup.procs")) if line != "0"]


def _lines(path: str) -> "list[str]":
    """[] for a file that is not there (any more): groups come and go."""
    try:
        with open(path) as f:
            return f.read().splitlines()
    except OSError:
        return []


def _set(path: str, value: str, must: bool) -> None:
    if not _try(path, value) and must:
        raise OSError("%s: the kernel refuses the value %s" % (path, value))


def _try(path: str, value: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
