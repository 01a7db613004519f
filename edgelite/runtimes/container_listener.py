"""Hears from an engine when something happened to a container. Events only tell when to look; that none is lost is made sure
of by looking at everything after every connection, and now and then.
"""

import json
import time

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes.container_record import OWNER
from edgelite.runtimes.engine import EngineDown, EngineRefused
from edgelite.runtimes.engine_containers import POLL_S
from edgelite.runtimes.engine_http import BadAnswer, filters, lines_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop
    from edgelite.runtimes.container_record import Container
    from edgelite.runtimes.engine import Engine
    from edgelite.runtimes.engine_containers import Containers

RESYNC_S = 30.0  # looks at all containers, should an event have been lost
UNWATCHED_S = 2.0  # how often, with an engine that gives no events
RECONNECT_S = (0.2, 0.5, 1.0, 2.0, 5.0)
OVERLAP_S = 5.0  # events are asked for from before the connection, for there must be no gap
EVENT_BYTES_MAX = 1 << 20
ENDINGS = ("die", "died", "stop", "kill", "oom", "destroy", "remove", "cleanup")


class Listener:
    """every: the containers there are; look: a generator that finds out whether one has ended.
    `trouble` tells why the engine cannot be reached, "" when it can."""

    def __init__(
        self,
        loop: "Loop",
        engine: "Engine",
        containers: "Containers",
        every: "Callable[[], list[Container]]",
        look: "Callable[[Container], Generator[Wait, bool, None]]",
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._containers = containers
        self._every = every
        self._look = look
        self._task: "Any" = None
        self.trouble = ""

    def start(self) -> None:
        """Listens from now on, if it does not already."""
        if self._task is None:
            self._task = self._loop.spawn(self._watch(), "engine")

    def close(self) -> None:
        self._loop.cancel(self._task)
        self._task = None

    def _watch(self) -> "Generator[Wait, bool, None]":
        """The one task that listens to the engine, for ever."""
        failures = 0
        while True:
            try:
                yield from self._hear()
                failures = 0  # it listened, and the engine ended it
                pause = RECONNECT_S[0]
            except EngineRefused as error:
                self.trouble = "the engine gives no events: %s" % error
                pause = UNWATCHED_S
            except (EngineDown, BadAnswer) as error:
                self.trouble = str(error)
                self._engine.forget()
                pause = RECONNECT_S[min(failures, len(RECONNECT_S) - 1)]
                failures += 1
            yield Wait(-1, 0, clock() + pause)

    def _hear(self) -> "Generator[Wait, bool, None]":
        """Listens until the engine ends the connection. Raises EngineDown, EngineRefused, BadAnswer."""
        wanted = filters(type=["container"], label=["%s=%s" % (OWNER, self._containers.owner)])
        query = [("since", str(int(time.time() - OVERLAP_S))), ("filters", wanted)]
        stream = yield from self._engine.open("GET", "/events", query)
        try:
            yield from self._resync()
            self.trouble = ""
            rest = bytearray()
            resync_at = clock() + RESYNC_S
            while True:
                data = yield from stream.read(self._next_look(resync_at))
                if data == b"":
                    return
                for line in lines_of(rest, data or b"", EVENT_BYTES_MAX):
                    self._note(line)
                if clock() >= resync_at:
                    yield from self._resync()
                    resync_at = clock() + RESYNC_S
                yield from self._look_at_dirty()
        finally:
            stream.close()

    def _next_look(self, resync_at: float) -> float:
        dirty = any(c.dirty and c.status is None and not c.starting for c in self._every())
        return min(resync_at, clock() + POLL_S[-1]) if dirty else resync_at

    def _note(self, line: bytes) -> None:
        """Marks the container that an event is about. Raises BadAnswer."""
        try:
            event = json.loads(line)
            action, name = str(event.get("Action") or event.get("status")), event["Actor"]["ID"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadAnswer("an event makes no sense: %r" % line[:100]) from error
        if action in ENDINGS:
            for c in self._every():
                if c.id == name:
                    c.dirty = True

    def _resync(self) -> "Generator[Wait, bool, None]":
        """Looks at everything that is not known to run. Raises EngineDown, EngineRefused."""
        listed = yield from self._containers.all()
        running = {entry.get("Id") for entry in listed if entry.get("State") == "running"}
        for c in self._every():
            if c.status is None and c.id not in running:
                c.dirty = True
        yield from self._look_at_dirty()

    def _look_at_dirty(self) -> "Generator[Wait, bool, None]":
        for c in self._every():
            if c.dirty and c.status is None and not c.starting:
                yield from self._look(c)
