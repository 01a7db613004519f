"""A hardware watchdog that is fed only while the agent really works. [pure]

Every part that has to show life says so by `alive`; the timer is fed when the loop comes round and all parts have been heard of
within their limits. A loop that hangs does not come round; a part that is stuck while the loop turns stops the feeding too. The
hardware then resets the board. Times: seconds on a clock that only counts on. Runs on MicroPython.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FEEDS = 4  # in one timeout: the loop may be late three times


class Watchdog:
    """feed(): `machine.WDT(timeout=..).feed`. timeout_s: after which the hardware resets. `stuck`: parts that have been silent for
    too long, once there are any; then nothing is fed any more, whatever they do."""

    def __init__(self, feed: "Callable[[], None]", timeout_s: float) -> None:
        if timeout_s <= 0:
            raise ValueError("timeout_s is %s; it has to be above 0" % timeout_s)
        self._feed = feed
        self._every_s = timeout_s / FEEDS
        self._fed_at: "float | None" = None
        self._limits: "dict[str, float]" = {}
        self._heard: "dict[str, float]" = {}
        self.stuck: "list[str]" = []

    def watch(self, part: str, limit_s: float, now: float) -> None:
        """From now on this part has to be heard of within `limit_s`, again and again."""
        self._limits[part] = limit_s
        self._heard[part] = now

    def unwatch(self, part: str) -> None:
        self._limits.pop(part, None)

    def alive(self, part: str, now: float) -> None:
        self._heard[part] = now

    def poll(self, now: float) -> None:
        """Once in every turn of the loop."""
        late = [part for part in self._limits if now - self._heard[part] > self._limits[part]]
        if late and not self.stuck:
            self.stuck = sorted(late)
        if self.stuck:
            return
        if self._fed_at is None or now - self._fed_at >= self._every_s:
            self._fed_at = now
            self._feed()

    def deadline(self) -> "float | None":
        """When the loop has to come round at the latest; None: at once."""
        return None if self._fed_at is None else self._fed_at + self._every_s
