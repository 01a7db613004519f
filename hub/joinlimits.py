"""How often machines may try to join: token buckets by source address and by join token, in bounded maps. [pure]

JOIN has this budget of its own, apart from what enrolled nodes may send: reading a request and issuing for it cost about a
millisecond each, and nothing is known yet of who asks. A source pays for every JOIN, and much more for one whose token is
not valid, so that who tries tokens is slow. A token pays only once its secret was shown: who knows an id alone cannot
spend it for others.

Not guaranteed: fairness among more than `ENTRIES_MAX` sources at a time; the longest unseen are forgotten, which gives
them a full bucket again.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

ENTRIES_MAX: Final = 16_384
INVALID_COST: Final = 25.0
"""What a JOIN with an invalid token costs its source."""


@dataclass(frozen=True, slots=True)
class JoinRates:
    """Joins per second, and how many at once after a quiet time. A site behind one address may be large."""

    source_per_s: float = 50.0
    source_burst: float = 500.0
    token_per_s: float = 100.0
    token_burst: float = 1000.0


DEFAULT_RATES: Final = JoinRates()


class Buckets:
    """One token bucket for each key; at most `size` of them."""

    def __init__(self, per_s: float, burst: float, size: int = ENTRIES_MAX) -> None:
        self._per_s, self._burst, self._size = per_s, burst, size
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By key, least recently used first: (tokens, when that was), seconds of a monotonic clock."""

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: str, now: float, cost: float = 1.0) -> float:
        """0.0 when it was granted; else the seconds until one token is there, and nothing was taken. A `cost` above what is
        there leaves a debt, of a burst at most, so that single dear ones are counted too."""
        tokens, at = self._held.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._per_s)
        granted = tokens >= 1.0
        if granted:
            tokens = max(tokens - cost, -self._burst)
        self._held[key] = (tokens, now)
        if len(self._held) > self._size:
            self._held.popitem(last=False)
        return 0.0 if granted else (1.0 - tokens) / self._per_s


class JoinLimits:
    """See the module. Times are of a monotonic clock, in seconds."""

    def __init__(self, rates: JoinRates = DEFAULT_RATES) -> None:
        self._sources = Buckets(rates.source_per_s, rates.source_burst)
        self._tokens = Buckets(rates.token_per_s, rates.token_burst)

    def source(self, address: str, now: float) -> float:
        """0.0, or the seconds after which this address may try again."""
        return self._sources.take(network_of(address), now)

    def invalid(self, address: str, now: float) -> None:
        """The address has shown a token that is not valid."""
        self._sources.take(network_of(address), now, INVALID_COST)

    def token(self, token_id: str, now: float) -> float:
        """0.0, or the seconds after which the token may be redeemed again. Its secret has been shown."""
        return self._tokens.take(token_id, now)


def network_of(peername: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one, which is what one host has. `peername` is
    `host:port`, as connections tell it. What is no address counts as one source, too."""
    host = peername.rpartition(":")[0].partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return peername[:64]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)
