"""When to try again. [pure] Runs on MicroPython."""

FIRST_S = 1.0
MAX_S = 60.0


class Backoff:
    """Doubles from FIRST_S to MAX_S; half of each delay is chance, so that a fleet does not come back as one."""

    def __init__(self) -> None:
        self._delay_s = FIRST_S

    def reset(self) -> None:
        self._delay_s = FIRST_S

    def next(self, chance: float) -> float:
        """Seconds to wait; `chance` is a number in [0, 1)."""
        delay = self._delay_s * (0.5 + chance / 2)
        self._delay_s = min(self._delay_s * 2, MAX_S)
        return delay
