"""The processes of a simulated fleet: starts them, asks them all at once, adds up what they say.

async with Crew(settings, cache_dir, trust_domain, root_sha256) as crew:
    await crew.start()
    await crew.until_synced(120)
"""

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final

import orjson

from edgelite.credentials import hub_dns_name
from hub.simulate.figures import Tally
from hub.simulate.node import REFUSED, SYNCED
from hub.simulate.settings import Settings

POLL_S: Final = 0.2
STOP_S: Final = 15.0
LINE_BYTES_MAX: Final = 16 << 20


class SimulationError(Exception):
    """A process of simulated nodes has ended, or cannot begin. The message is what it said."""


@dataclass(slots=True)
class Brief:
    """All processes together. states: nodes by state; pods: that nodes have; delivered: changes by kind, of nodes that were
    synchronised before; times of the monotonic clock, 0.0: not yet."""

    states: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    pods: int = 0
    first_begun_at: float = 0.0
    last_synced_at: float = 0.0
    last_delivered_at: float = 0.0

    def add(self, answer: dict[str, Any]) -> None:
        self.states.update(answer["states"])
        self.counts.update(answer["counts"])
        self.pods += answer["pods"]
        self.delivered.update({name.removesuffix(" delivered"): n for name, n in answer["delivered"].items()})
        begun = answer["first_begun_at"]
        self.first_begun_at = min(self.first_begun_at or begun, begun)
        self.last_synced_at = max(self.last_synced_at, answer["last_synced_at"])
        self.last_delivered_at = max(self.last_delivered_at, answer["last_delivered_at"])

    @property
    def synced(self) -> int:
        return self.states[SYNCED]


@dataclass(slots=True)
class Outcome:
    """A brief, with all counts and times. cpu_s, rss_kb: of the simulator's own processes; made_cpu_s: what of it went before
    anybody connected, into imports and TLS contexts."""

    brief: Brief = field(default_factory=Brief)
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    made_cpu_s: float = 0.0
    rss_kb: int = 0


class Crew:
    """See the module. `cache_dir`: that of `IdentityCache`, which has an identity of every node. Raises SimulationError."""

    def __init__(self, settings: Settings, cache_dir: str, trust_domain: str, root_sha256: bytes) -> None:
        self.settings = settings
        self._spec = {
            "cache": cache_dir,
            "trust_domain": trust_domain,
            "root": root_sha256.hex(),
            "server_name": hub_dns_name(trust_domain),
        }
        self._processes: list[asyncio.subprocess.Process] = []
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> "Crew":
        try:
            for n in range(self.settings.processes):
                self._processes.append(await self._spawn(n))
            # Each makes its TLS contexts now, all at the same time.
            await asyncio.gather(*(self._read(process) for process in self._processes))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def start(self) -> None:
        """All nodes begin to connect."""
        await self._ask("start")

    async def cut(self) -> None:
        """Every link breaks now."""
        await self._ask("cut")

    async def heal(self) -> None:
        """No more links fall silent; those that are come back in their time."""
        await self._ask("heal")

    async def reset(self) -> None:
        """Counts and times begin anew."""
        await self._ask("reset")

    async def churn(self, per_s: float) -> None:
        """So many statuses change each second from now on, over all nodes."""
        await self._ask(f"churn {per_s / len(self._processes)}")

    async def brief(self) -> Brief:
        found = Brief()
        for answer in await self._ask("brief"):
            found.add(answer)
        return found

    async def report(self) -> Outcome:
        """Everything since the start or the last reset."""
        found = Outcome()
        for answer in await self._ask("report"):
            found.brief.add(answer)
            found.tally.merge(Tally.of_json(answer["tally"]))
            found.notes += answer["notes"]
            found.cpu_s += answer["cpu_s"]
            found.made_cpu_s += answer["made_cpu_s"]
            found.rss_kb += answer["rss_kb"]
        return found

    async def until(
        self, done: Callable[[Brief], bool], seconds: float, shown: Callable[[Brief], None] | None = None
    ) -> Brief:
        """The first brief that is `done`, or the last one when the time is over; each is `shown`."""
        deadline = time.monotonic() + seconds
        while True:
            brief = await self.brief()
            if shown is not None:
                shown(brief)
            if done(brief) or time.monotonic() >= deadline:
                return brief
            await asyncio.sleep(POLL_S)

    async def until_synced(self, seconds: float, shown: Callable[[Brief], None] | None = None) -> Brief:
        """Until every node has what it should have, but for those that are told not to come back."""
        nodes = self.settings.nodes
        return await self.until(lambda b: b.synced + b.states[REFUSED] >= nodes, seconds, shown)

    async def _spawn(self, n: int) -> asyncio.subprocess.Process:
        settings, count = self.settings, self.settings.processes
        names = settings.names[n::count]
        own = replace(
            settings,
            nodes=len(names),
            processes=1,
            sources=settings.sources[n::count] or settings.sources[:1],
            connect_per_s=settings.connect_per_s / count,
            churn_per_s=settings.churn_per_s / count,
            seed=settings.seed * 1000 + n,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hub.simulate.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._tell(process, orjson.dumps({**self._spec, "settings": own.as_json(), "names": names}))
        return process

    async def _ask(self, command: str) -> Sequence[dict[str, Any]]:
        """All of them, at the same time."""
        # Whoever is cancelled meanwhile must not leave an answer for the next one.
        return await asyncio.shield(self._exchange(command))

    async def _exchange(self, command: str) -> Sequence[dict[str, Any]]:
        async with self._lock:
            for process in self._processes:
                self._tell(process, command.encode())
            return await asyncio.gather(*(self._read(process) for process in self._processes))

    def _tell(self, process: asyncio.subprocess.Process, line: bytes) -> None:
        assert process.stdin is not None
        process.stdin.write(line + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise SimulationError(f"a process of simulated nodes has ended with {await process.wait()}")
        answer: dict[str, Any] = orjson.loads(line)
        if "error" in answer:
            raise SimulationError(str(answer["error"]))
        return answer

    async def _stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
