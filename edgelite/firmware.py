"""A board's agent as its firmware starts it: connection, functions and modules as workloads, watchdog, clock.

    functions = Functions()
    functions.register("blink", blink)
    Firmware("node", functions, feed=machine.WDT(timeout=30000).feed).run()

One loop does everything: each turn does the work that is due (`edgelite.boardwork`), then waits for the hub until the next is.
With `twins=Twins()` (`edgelite.twins`, 8 KB more) the board has devices, with `updates=BoardUpdates(..)` (`edgelite.boardupdates`) its agent
replaces itself. Runs on MicroPython.
"""

from edgelite.board import WAIT_S, Board, now, unix_time
from edgelite.boardclock import ClockGate
from edgelite.boardwork import BoardWork
from edgelite.desired import PIECE
from edgelite.watchdog import Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.boardupdates import BoardUpdates
    from edgelite.callables import Functions
    from edgelite.twins import Twins

UPDATE = "agent/update"
WATCHDOG_S = 30.0
LOOP_S = 25.0
"""A turn may take this long: a connection that does not come about takes most of it."""


class Firmware:
    """feed, watchdog_s: of the hardware's watchdog, if there is one. set_wall, times: how the clock is set, and what knows the
    time (see `ClockGate`); built: unix seconds of the firmware, which have passed. say: what is told of it. twins, work: as of
    `BoardWork`; without `modules=True` ConfigMaps bring no code."""

    def __init__(
        self,
        directory: str,
        functions: "Functions",
        feed: "Callable[[], None] | None" = None,
        watchdog_s: float = WATCHDOG_S,
        set_wall: "Callable[[float], None] | None" = None,
        times: "Any" = (),
        built: float = 1735689600.0,
        say: "Callable[[str], None]" = print,
        twins: "Twins | None" = None,
        updates: "BoardUpdates | None" = None,
        **work: "Any",
    ) -> None:
        """Raises BoardError, OSError."""
        self._say = say
        self._trouble = ""
        self._gate = ClockGate(unix_time, set_wall, list(times), [("this firmware was built", built)])
        self._work: "BoardWork | None" = None
        early: "list[tuple[str, bytes]]" = []

        self._updates = updates

        def document(key: str, body: "bytes | None") -> None:
            if self._work is None:
                early.append((key, body or b""))  # of the journal, which the board opens
            elif key == UPDATE or key.startswith(PIECE):
                if updates is not None:
                    updates.on_document(key, body)
            else:
                self._work.on_document(key, body)

        def admit(key: str, body: bytes) -> "tuple[str, str] | None":
            keeper = updates if key == UPDATE and updates is not None else self.work
            return keeper.admit(key, body)

        self.board = Board(directory, document, admit, say, self._clock)
        self._work = BoardWork(
            functions,
            self.board.journal,
            self.board.report,
            now,
            lambda: int(unix_time() * 1000),
            twins,
            **work,
        )
        if updates is not None:
            updates.attach(self.board, now)
        for key, body in early:
            document(key, body)
        self.work.started()
        self.board.on_delivered, self.board.on_resync = self.work.delivered, self.work.anew
        self.board.on_log = self._log
        self._watchdog = Watchdog(feed, watchdog_s) if feed is not None else None
        if self._watchdog is not None:
            self._watchdog.watch("loop", LOOP_S, now())

    @property
    def work(self) -> BoardWork:
        assert self._work is not None
        return self._work

    def run(self) -> None:
        """For ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One turn of the loop."""
        self.work.turn()
        if self.work.trouble not in ("", self._trouble):
            self._say(self.work.trouble)
        self._trouble = self.work.trouble
        due = self.work.deadline()
        if self._updates is not None:
            self._updates.turn()
            soon = self._updates.deadline()
            due = soon if due is None or (soon is not None and soon < due) else due
        self.board.turn(WAIT_S if due is None else max(0.0, min(WAIT_S, due - now())))
        if self._watchdog is not None:
            self._watchdog.alive("loop", now())
            self._watchdog.poll(now())

    def _clock(self, at: float) -> str:
        return "" if self._gate.ready(at) else self._gate.reason

    def _log(self, uid: str, container: str, tail: "int | None") -> "bytes | None":
        ring = self.work.pods.log(uid, container)
        if ring is None:
            return None
        return "".join([line + "\n" for _, line in ring.lines(tail)]).encode()
