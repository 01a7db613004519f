"""What was not admitted on the edge port and the bus: counted by (kind of peer, what it sent, reason), and logged.

Bounds: COUNTS_MAX different counts, the rest is counted as "other"; LOG_BURST lines at once and LOG_S a second, the
next line says how many were left out. A peer that is refused without end costs an addition each time.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from edgelite import wire
from security.buckets import Bucket
from security.policy import ABSENT, Subject

log = logging.getLogger(__name__)

COUNTS_MAX: Final = 512
LOG_S: Final = 2.0
LOG_BURST: Final = 50.0
CONNECT: Final = "connect"
"""In place of a message: the connection itself."""
OTHER: Final = ("other", "other", "other")


class RefusalLog:
    """See the module. `counts`: for metrics."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lines = Bucket(LOG_S, LOG_BURST, now())
        self._unsaid = 0
        self.counts: dict[tuple[str, ...], float] = {}
        self.total = 0

    def note(
        self,
        kind: str,
        subject: Subject,
        reason: str,
        who: str,
        message: str,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`who`: the peer, for the log, and `extra` of its line. `reason`: of a `Refusal`, or what else speaks against it."""
        self.total += 1
        name = wire.NAMES.get(subject, "unknown") if isinstance(subject, int) else subject
        key = (kind, name, reason)
        if key not in self.counts and len(self.counts) >= COUNTS_MAX:
            key = OTHER
        self.counts[key] = self.counts.get(key, 0) + 1
        if reason == ABSENT:
            log.debug("refused %s of %s: %s", name, who, message)
        elif self._lines.try_take(1.0, self._now()):
            unsaid, self._unsaid = self._unsaid, 0
            more = f" ({unsaid} earlier refusals are not shown)" if unsaid else ""
            log.warning("refused %s of %s: %s: %s%s", name, who, reason, message[:1024], more, extra=extra)
        else:
            self._unsaid += 1
