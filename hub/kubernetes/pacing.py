"""How fast this replica may write: a token bucket. [pure]

After an outage thousands of reports wait at once; they leave at the rate of the bucket, and not as fast as the API
server answers. Times are seconds of one clock.
"""


class Bucket:
    """`per_second` on average, `burst` at once."""

    def __init__(self, per_second: float, burst: int) -> None:
        if per_second <= 0 or burst < 1:
            raise ValueError(f"a rate of {per_second:g} per second, {burst} at once: both have to be above 0")
        self._step = 1.0 / per_second
        self._ahead = (burst - 1) * self._step
        self._next = float("-inf")

    def take(self, now: float) -> float:
        """Seconds after which this caller may go. Every call is a turn that is taken."""
        self._next = max(self._next, now - self._ahead)
        wait_s, self._next = max(0.0, self._next - now), self._next + self._step
        return wait_s

    def free(self, now: float) -> bool:
        """Could a caller go at this moment?"""
        return max(self._next, now - self._ahead) <= now
