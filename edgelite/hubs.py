"""Which of a hub's addresses comes next: several replicas, redirects between them, dead ones. [pure] Runs on MicroPython.

A redirect is followed at once and counts for one connection: afterwards the agent begins again at its own addresses. The
hub is told how often the agent was redirected, and where nobody answered, so that it does not send it there again.
"""

REDIRECTS_MAX = 2
SETTLED_S = 1.0
"""A redirect from a hub that served us for this long begins a new count."""


def split_list(text: str) -> "list[str]":
    """["h1:p", "h2:p"] of "h1:p, h2:p"; empty parts are left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Hubs:
    """The addresses of one hub, in turn. `chance` in [0, 1) picks the first, so that a fleet spreads over them."""

    def __init__(self, addresses: str, chance: float) -> None:
        self._addresses = split_list(addresses) or [""]
        self._at = int(chance * len(self._addresses))
        self._failed = 0
        self._to = ""
        self.redirects = 0
        self.unreached = ""

    def __len__(self) -> int:
        return len(self._addresses)

    def next(self) -> str:
        """Where to connect now."""
        return self._to or self._addresses[self._at]

    def redirected(self, to: str, served_s: float) -> bool:
        """The hub there sends us to `to`, after it has served us for so long. False when this goes on for too long."""
        self._failed = 0
        if served_s >= SETTLED_S:
            self.redirects = 0
            self.unreached = ""
        if self.redirects >= REDIRECTS_MAX:
            self.rested()
            return False
        self.redirects += 1
        self._to = to
        return True

    def ended(self, answered: bool) -> bool:
        """A connection has ended, `answered`: with a word of the hub. True when the next address should be tried at once:
        the one before did not answer, and others are left."""
        if self._to:
            self.unreached = "" if answered else self._to
            self._to = ""
            return not answered
        if answered:
            self._failed = 0
            return False
        self._failed += 1
        self._at = (self._at + 1) % len(self._addresses)
        return self._failed < len(self._addresses)

    def rested(self) -> None:
        """A pause begins: what came before it is forgotten, but for the address in use."""
        self._failed = self.redirects = 0
        self._to = self.unreached = ""
