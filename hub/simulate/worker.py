"""A process of simulated nodes: `python -m hub.simulate.worker`, started and spoken to by `hub.simulate.crew`.

The first line of standard input is what the fleet is like, each further one a command; each is answered by one line of
JSON. The end of input ends the process, so that none outlives whoever started it.
"""

import json
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from edgelite.credentials import EnrollError
from hub.simulate.fleet import Fleet
from hub.simulate.identities import IdentityCache
from hub.simulate.settings import Faults, Settings


class Worker:
    """The commands: `start`, `brief`, `report`, `reset`, `cut`, `heal`, `churn PER_S`, `stop`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        fields = dict(spec["settings"])
        fields["faults"] = Faults(**fields["faults"])
        fields["sources"] = tuple(fields["sources"])
        cache = IdentityCache(spec["cache"], spec["trust_domain"], bytes.fromhex(spec["root"]))
        self.fleet = Fleet(Settings(**fields), spec["names"], cache, spec["server_name"])
        self._pending = b""
        self._made_cpu_s = _cpu_s()

    def run(self) -> None:
        self._say({"ready": len(self.fleet.nodes)})
        os.set_blocking(0, False)
        self.fleet.reader(0, self._read)
        self.fleet.run()
        self.fleet.close()

    def _read(self) -> None:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        if not data:
            self.fleet.stopping = True
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._say(self._obey(line.decode()))

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    def _obey(self, command: str) -> dict[str, Any]:
        fleet = self.fleet
        word, _, rest = command.partition(" ")
        if word == "start":
            fleet.start()
        elif word == "cut":
            fleet.cut_all()
        elif word == "heal":
            fleet.settings = replace(fleet.settings, faults=replace(fleet.settings.faults, loss_per_min=0.0))
        elif word == "reset":
            fleet.reset()
        elif word == "churn":
            fleet.settings = replace(fleet.settings, churn_per_s=float(rest))
        elif word == "stop":
            fleet.stopping = True
        elif word not in ("brief", "report"):
            return {"error": f"unknown command {word!r}"}
        return self._report() if word in ("report", "stop") else self._brief() if word == "brief" else {}

    def _brief(self) -> dict[str, Any]:
        """What changes quickly. Times are of the monotonic clock, which all processes of a machine share."""
        fleet = self.fleet
        return {
            "states": fleet.states(),
            "pods": sum(len(node.pods) for node in fleet.nodes),
            "counts": dict(fleet.tally.counts),
            "delivered": {
                name: histogram.count
                for name, histogram in fleet.tally.times.items()
                if name.endswith(" delivered")
            },
            "first_begun_at": fleet.first_begun_at,
            "last_synced_at": fleet.last_synced_at,
            "last_delivered_at": fleet.last_delivered_at,
        }

    def _report(self) -> dict[str, Any]:
        return {
            **self._brief(),
            "tally": self.fleet.tally.as_json(),
            "notes": self.fleet.notes,
            "cpu_s": _cpu_s(),
            "made_cpu_s": self._made_cpu_s,
            "rss_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "at": time.monotonic(),
        }


def _cpu_s() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _line() -> bytes:
    """The first line of standard input, past any buffer: the fleet's epoll waits for the rest."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 20)
        if not data:
            raise EOFError("standard input ended before it said what the fleet is like")
        line += data
    return line


def main() -> int:
    """0; 1 where the fleet could not be made, with {"error": why} as the answer."""
    # An interrupt is for whoever started this, who then asks for a last report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Nothing else comes before the answer.
    spec = json.loads(_line())
    try:
        worker = Worker(spec)
    except (OSError, EnrollError) as failure:
        print(json.dumps({"error": f"the identities in the cache cannot be used: {failure}"}), flush=True)
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
