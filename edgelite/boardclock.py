"""The clock of a machine that may not know the time when it starts: set before the first handshake, or refused. [pure]

TLS checks certificates against the clock, and a node that believes in the year 2000 trusts whatever was valid then, or
nothing. So before it connects it needs a time that is not before what it knows to have passed: the firmware was built, its
certificate was issued, the hub said what time it was (kept in the journal). Runs on MicroPython.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Source = Callable[[], "float | None"]

SLACK_S = 86400.0  # clocks differ, and a certificate may begin a little before its making
AGAIN_FIRST_S = 2.0
AGAIN_MAX_S = 60.0
LATEST = 4102444800.0  # the year 2100: beyond it the time is not believed either
EPOCH_2000_S = 946684800


def unix_offset(year_of_zero: int) -> int:
    """What has to be added to the seconds of a system whose time 0 lies in that year (`time.gmtime(0)[0]`): boards count from
    1970 or from 2000. Raises ValueError."""
    if year_of_zero == 1970:
        return 0
    if year_of_zero == 2000:
        return EPOCH_2000_S
    raise ValueError("this system counts seconds from the year %d" % year_of_zero)


class ClockGate:
    """wall(): Unix seconds. set_wall(seconds): sets the clock, None where it cannot be set. sources: (name, function that gives
    Unix seconds, None when it does not know, or raises OSError), such as a battery-backed clock and `ntptime.time`. passed:
    (what has passed, when) as Unix seconds."""

    def __init__(
        self,
        wall: "Callable[[], float]",
        set_wall: "Callable[[float], None] | None",
        sources: "list[tuple[str, Source]]",
        passed: "list[tuple[str, float]]",
    ) -> None:
        self._wall = wall
        self._set = set_wall
        self._sources = sources
        self._passed = passed
        self._again_at = 0.0
        self._pause_s = AGAIN_FIRST_S
        self.reason = ""

    def learned(self, what: str, at: float) -> None:
        """Something more has passed, such as the time that the hub said."""
        self._passed.append((what, at))

    def ready(self, now: float) -> bool:
        """May it connect? `reason` says why not, and what to do. Asks the sources, with pauses that double up to
        AGAIN_MAX_S; `now` counts on."""
        fault = self._fault(self._wall())
        if not fault:
            self.reason = ""
            return True
        if now < self._again_at:
            return False
        told = [fault]
        for name, source in self._sources if self._set is not None else []:
            try:
                found = source()
            except OSError as error:
                told.append("%s: %r" % (name, error))
                continue
            doubt = "does not know" if found is None else self._fault(found)
            if found is None or doubt:
                told.append("%s: %s" % (name, doubt))
                continue
            assert self._set is not None
            self._set(found)
            self.reason = ""
            self._pause_s = AGAIN_FIRST_S
            return True
        self._again_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, AGAIN_MAX_S)
        remedy = "set the clock, or give a source of time (NTP, a battery-backed clock)"
        self.reason = "the clock is not set, and TLS needs it: %s; %s" % ("; ".join(told), remedy)
        return False

    def deadline(self) -> float:
        """When `ready` may answer something else."""
        return self._again_at

    def _fault(self, wall: float) -> str:
        """Why this cannot be the time, "" when it can."""
        if wall > LATEST:
            return "%d s is beyond the year 2100" % wall
        for what, at in self._passed:
            if wall + SLACK_S < at:
                return "%d s is before %s (%d s)" % (wall, what, at)
        return ""
