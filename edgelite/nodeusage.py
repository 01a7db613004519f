"""What the machine uses of its cpu and memory, as /proc tells. Loaded when the hub asks for the first time.

cpu: nanoseconds that all its cores have worked since boot; memory: bytes that could not be had by asking for them (a kubelet's
working set). None where there is no /proc.
"""

import os

PROC = "/proc"
WORKING = (
    0,
    1,
    2,
    5,
    6,
    7,
)  # user, nice, system, irq, softirq, steal: not idle, not iowait; guests are in user already


def read(proc: str = PROC) -> "tuple[int, int] | None":
    """(cpu ns, memory bytes), None where the host does not tell."""
    try:
        with open(proc + "/stat") as f:
            ticks = [int(word) for word in f.readline().split()[1:]]
        known = {}
        with open(proc + "/meminfo") as f:
            for line in f:
                name, _, rest = line.partition(":")
                known[name] = int(rest.split()[0]) << 10
        spent = sum(ticks[at] for at in WORKING if at < len(ticks))
        return spent * 1000000000 // os.sysconf("SC_CLK_TCK"), known["MemTotal"] - known["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
