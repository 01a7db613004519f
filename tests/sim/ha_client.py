"""Starts `tests.sim.ha_fleet` in a few processes and speaks to them.

fleet = SimFleet(root, count=300, processes=3, edges=[...], token=..., root_pem=...)
fleet.brief()["sim-7"]["state"] == "connected"
fleet.dump()["nodes"]["sim-7"]["docs"]
fleet.close()
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class SimFleet:
    """`count` nodes named `<prefix>-<n>`, enrolled with a pool token, spread over `processes` processes."""

    def __init__(
        self,
        directory: Path,
        *,
        count: int,
        edges: list[str],
        token: str,
        root_pem: str,
        server_name: str = "hub.cloudhub.local",
        processes: int = 2,
        statuses_per_s: float = 10.0,
        seed: int = 1,
        prefix: str = "sim",
    ) -> None:
        self.names = [f"{prefix}-{n}" for n in range(count)]
        self.log_path = directory / f"{prefix}-fleet.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        with open(self.log_path, "ab") as log:
            for n in range(processes):
                spec = {
                    "names": self.names[n::processes],
                    "edges": edges,
                    "token": token,
                    "root": root_pem,
                    "server_name": server_name,
                    "statuses_per_s": statuses_per_s / processes,
                    "seed": seed * 100 + n,
                }
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.sim.ha_fleet"],
                    cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
                self._processes.append(process)
                self._send(process, json.dumps(spec))

    def wait_joined(self) -> None:
        """Returns once every node is enrolled and its link has started."""
        for process in self._processes:
            self._read(process)

    def brief(self) -> dict[str, Any]:
        """By node: state, detail, digest, reports waiting, slot, epoch."""
        return {name: node for part in self._ask("brief") for name, node in part.items()}

    def connected(self) -> int:
        return sum(node["state"] == "connected" for node in self.brief().values())

    def dump(self) -> dict[str, Any]:
        """{"nodes": {name: `HaNode.dump`}, "ended": why connections ended, "notes": warnings of sessions}"""
        whole: dict[str, Any] = {"nodes": {}, "ended": {}, "notes": {}}
        for part in self._ask("dump"):
            whole["nodes"].update(part["nodes"])
            for kind in ("ended", "notes"):
                for reason, times in part[kind].items():
                    whole[kind][reason] = whole[kind].get(reason, 0) + times
        return whole

    def statuses(self, per_s: float) -> None:
        """From now on so many statuses change each second, over all nodes."""
        self._ask(f"statuses {per_s / len(self._processes)}")

    def connect_now(self) -> None:
        """Ends every back-off."""
        self._ask("again")

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def close(self) -> None:
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, command: str) -> list[Any]:
        for process in self._processes:
            self._send(process, command)
        return [self._read(process) for process in self._processes]

    def _send(self, process: "subprocess.Popen[bytes]", line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()

    def _read(self, process: "subprocess.Popen[bytes]") -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"a process of the fleet has ended ({process.poll()}): {self.log()[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer
