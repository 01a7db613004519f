"""What the processes of one container use: of its cgroups where they tell, else of /proc. [Linux]

cpu: nanoseconds since its start. From /proc it is what living processes and the children that they waited for have used, so it
may go back when one ends unawaited. memory: bytes, without the file cache that can be had back (a kubelet's working set).
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgelite.runtimes.process_proc import Process

CPU_FIELDS = (11, 12, 13, 14)  # utime, stime, cutime, cstime, counted behind the name in /proc/<pid>/stat
RSS_FIELD = 21


def measure(groups: "list[tuple[int, str]]", members: "list[Process]", proc: str) -> "tuple[int, int]":
    """(cpu ns, memory bytes). groups: (version, path) of the container's cgroups."""
    cpu = memory = None
    for version, path in groups:
        if cpu is None:
            cpu = _cpu(version, path)
        if memory is None:
            memory = _memory(version, path)
    if cpu is None or memory is None:
        counted, resident = _of_processes(members, proc)
        cpu = counted if cpu is None else cpu
        memory = resident if memory is None else memory
    return cpu, memory


def _cpu(version: int, path: str) -> "int | None":
    if version == 2:
        used = _table(path + "/cpu.stat").get("usage_usec")
        return None if used is None else used * 1000
    return _number(path + "/cpuacct.usage")


def _memory(version: int, path: str) -> "int | None":
    current = _number(path + ("/memory.current" if version == 2 else "/memory.usage_in_bytes"))
    if current is None:
        return None
    cache = _table(path + "/memory.stat").get("inactive_file" if version == 2 else "total_inactive_file", 0)
    return max(0, current - cache)


def _of_processes(members: "list[Process]", proc: str) -> "tuple[int, int]":
    ticks = pages = 0
    for process in members:
        try:
            with open("%s/%d/stat" % (proc, process.pid), "rb") as f:
                data = f.read(2048)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        fields = data[data.rindex(b")") + 2 :].split()
        ticks += sum(int(fields[at]) for at in CPU_FIELDS)
        pages += int(fields[RSS_FIELD])
    return ticks * 1000000000 // os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _table(path: str) -> "dict[str, int]":
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found


def _number(path: str) -> "int | None":
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    """ "" for a file that is not there: not every hierarchy has every controller."""
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ""
