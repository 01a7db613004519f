"""How long a container that ended waits before it starts again: a kubelet's back-off. [pure] Runs on MicroPython."""

BACKOFF_FIRST_S = 10.0
BACKOFF_MAX_S = 300.0
BACKOFF_RESET_S = 600.0  # a container that ran for so long starts from the first back-off again


def next_backoff(seconds: float) -> float:
    """The pause after the next failure; `seconds`: after the one before, 0 for none."""
    return min(BACKOFF_MAX_S, seconds * 2) if seconds else BACKOFF_FIRST_S
