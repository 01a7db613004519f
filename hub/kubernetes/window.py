"""How many requests of one sort may be under way at an API server that may be in trouble. [pure]

What does not get an answer halves what may be under way and doubles the time until the next try and the patience with an
answer; every answer allows one more at once. So a server that is away is asked by one request at a time, and one that
comes back is met by a number that grows as fast as it answers. Requests that were under way together are one failure
together: they say the same thing. Times are seconds of one clock.

Source: TCP's congestion window (RFC 5681: additive increase per answer, multiplicative decrease, once per window).
"""

from typing import Final

PAUSE_FIRST_S: Final = 0.25
PAUSE_MAX_S: Final = 5.0
PATIENCE_S: Final = 10.0
PATIENCE_MAX_S: Final = 30.0


class Window:
    """`most`: under way at a time when all is well."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"a window of {most} requests; at least one has to be allowed")
        self.allowed = most
        self.patience_s = PATIENCE_S
        """How long an answer may take."""
        self._most = most
        self._pause_s = 0.0
        self._again_at = float("-inf")
        self._round = 0

    def free(self, under_way: int, now: float) -> int:
        """How many may begin at this moment."""
        return max(0, self.allowed - under_way) if now >= self._again_at else 0

    def begin(self) -> int:
        """Of a request that begins now: what `failed` is to be told."""
        return self._round

    def answered(self, took_s: float) -> None:
        """A request was answered after so long, whatever the answer said of its object."""
        self.allowed = min(self._most, self.allowed + 1)
        self._pause_s = 0.0
        self._again_at = float("-inf")
        # Not less than twice what it takes now: a server that is slow but answers must not be given up on in turns.
        self.patience_s = min(PATIENCE_MAX_S, max(PATIENCE_S, 2 * took_s))

    def failed(self, began: int, now: float) -> None:
        """A request that began so was not answered, or was told that the server cannot now."""
        if began != self._round:
            return
        self._round += 1
        self.allowed = max(1, self.allowed // 2)
        self.patience_s = min(PATIENCE_MAX_S, 2 * self.patience_s)
        self._pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, 2 * self._pause_s))
        self._again_at = now + self._pause_s
