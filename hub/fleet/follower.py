"""The roster of the whole fleet, kept while somebody looks at the fleet page: no replica caches the fleet otherwise.

The first viewer has all Nodes listed once and followed from there; further ones share it. LINGER_S after the last has
gone that ends, and the memory is given back. Any replica does this for itself, so any of them answers for all nodes.

Invariant: `roster` has every change up to its revision. When changes were lost (history compacted) the roster is made
anew, and who reads it is told to begin anew.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson

from hub import errors
from hub.fleet.following import Step, Steps
from hub.fleet.roster import Roster

log = logging.getLogger(__name__)

LINGER_S: Final = 30.0
TICK_S: Final = 0.5
"""How often viewers are told what has changed."""
SLOTS_S: Final = 2.0
"""How often it is looked whether owners and their figures have changed; they are stored as often."""
RETRY_S: Final = 1.0

Status = Callable[[], Awaitable[Mapping[str, Any]]]
"""The document of `cloudhub status`."""


class Fleet:
    """See the module. `run` has to be running for `used` to get anywhere. `nodes`: lists and follows them; `slots`: how many
    there are."""

    def __init__(
        self,
        nodes: Callable[[], Steps],
        slots: int,
        status: Status | None = None,
        *,
        linger_s: float = LINGER_S,
        tick_s: float = TICK_S,
        slots_s: float = SLOTS_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._nodes = nodes
        self._status = status
        self._linger_s, self._tick_s, self._slots_s, self._retry_s = linger_s, tick_s, slots_s, retry_s
        self.slots = slots
        self.roster: Roster | None = None
        """None while nobody looks, and until it is loaded."""
        self.owners = b""
        """The line that tells of slots and owners."""
        self._failure: errors.ApiError | None = None
        self._users = 0
        self._ending: asyncio.TimerHandle | None = None
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._news: asyncio.Future[None] | None = None

    # -- viewers --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[Roster]:
        """The roster, loaded, which is kept inside the block. Raises ApiError where the Nodes cannot be read."""
        self._users += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._failure = None
        self._unwanted.clear()
        self._wanted.set()
        try:
            while self.roster is None:
                if self._failure is not None:
                    raise self._failure
                await self.news()
            yield self.roster
        finally:
            self._users -= 1
            if not self._users:
                self._ending = asyncio.get_running_loop().call_later(self._linger_s, self._end)

    async def news(self) -> None:
        """Returns when there is something new in the log, other owners, or another roster."""
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def _end(self) -> None:
        self._ending = None
        self._wanted.clear()
        self._unwanted.set()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # -- following ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wanted.wait()
            following = asyncio.create_task(self._follow(), name="fleet page, follow")
            leaving = asyncio.create_task(self._unwanted.wait(), name="fleet page, end")
            try:
                await asyncio.wait((following, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, leaving):
                    task.cancel()
                await asyncio.wait((following, leaving))
                self._forget()

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(), name="fleet page, nodes")
                    tasks.create_task(self._tell(), name="fleet page, viewers")
            except* errors.Expired as gone:
                log.info("the fleet page lists all nodes again: %s", gone.exceptions[0])
            except* errors.ApiError as failed:
                self._failure = errors.ServiceUnavailable(f"the nodes cannot be read: {failed.exceptions[0]}")
                log.warning("the fleet page: %s", self._failure)
            except* Exception as bug:
                # Of a page to look at: no reason to end the hub.
                self._failure = errors.InternalError("see the hub's log; this is a bug of the hub")
                log.error("the fleet page failed", exc_info=bug)
            self._forget()
            await asyncio.sleep(self._retry_s)

    def _forget(self) -> None:
        self.roster = None
        self.owners = b""
        self._wake()

    async def _read(self) -> None:
        """Raises ApiError."""
        loading: Roster | None = None
        async with aclosing(self._nodes()) as steps:
            async for step in steps:
                if self.roster is not None:
                    _apply(self.roster, step)
                    continue
                loading = loading or Roster(step.revision)
                _apply(loading, step)
                if step.is_listed:
                    loading.settle()
                    self.roster, self._failure = loading, None
                    log.debug("the fleet page has %d nodes", len(loading))
                    self._wake()

    async def _tell(self) -> None:
        """Puts what has changed before the viewers, every now and then."""
        loop = asyncio.get_running_loop()
        owners_at = loop.time()
        while True:
            is_new = self.roster is not None and self.roster.tick()
            if loop.time() >= owners_at:
                owners_at = loop.time() + self._slots_s
                is_new = await self._look_at_owners() or is_new
            if is_new:
                self._wake()
            await asyncio.sleep(self._tick_s)

    async def _look_at_owners(self) -> bool:
        if self._status is None:
            return False
        try:
            line = orjson.dumps({"type": "slots", **owners_of(await self._status())}) + b"\n"
        except errors.ApiError as failure:
            log.debug("owners cannot be told now: %s", failure)
            return False
        is_new, self.owners = line != self.owners, line
        return is_new


def _apply(roster: Roster, step: Step) -> None:
    for name, row in step.put:
        roster.put(name, row)
    for name in step.gone:
        roster.drop(name)
    roster.revision = max(roster.revision, step.revision)


MEMBER_FIELDS: Final = (
    "name", "state", "version", "weight", "edge", "ageSeconds", "slots", "roles", "nodes", "connected",
    "relayedHere", "relayedAway",
)  # fmt: skip
_STEADY_S: Final = 60


def owners_of(status: Mapping[str, Any]) -> dict[str, Any]:
    """Of the document of `cloudhub status` what the page shows, compactly: 1,024 slots are 10 KB. `owner`: of each slot, its
    place in `members`, -1 where nobody has it; -2 where its owner is none of them. [pure]"""
    members = [{field: member[field] for field in MEMBER_FIELDS} for member in status["members"]]
    for member in members:
        member["ageSeconds"] -= member["ageSeconds"] % _STEADY_S  # else every line would be a new one
    place: dict[str | None, int] = {member["name"]: at for at, member in enumerate(members)}
    place[None] = -1
    slots = status["slots"]
    return {
        "answeredBy": status["answeredBy"],
        "store": status["store"],
        "members": members,
        "roles": status["roles"],
        "owner": [place.get(slot["owner"], -2) for slot in slots],
        "epoch": [slot["epoch"] or 0 for slot in slots],
        "nodes": [slot["nodes"] or 0 for slot in slots],
        "connected": [slot["connected"] or 0 for slot in slots],
    }
