"""Token buckets: how much may pass, and how long to wait once it was more. [pure]

A bucket may go into debt: what has arrived is taken, and whoever brought it waits until the debt is paid. So nothing is
ever refused or lost for its rate; it comes later. Time is an argument, seconds of any one clock.

`Buckets` holds one pair (frames, bytes) for each node, each pool, and one for the replica. Bound: NODES_MAX and POOLS_MAX
pairs; beyond it the one that was used longest ago is forgotten, which is as good as a full one by then.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

NODES_MAX: Final = 32_768
POOLS_MAX: Final = 4_096


class Bucket:
    """`rate` a second, at most `burst` at once. Begins full."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, amount: float, now: float) -> float:
        """Takes `amount`; seconds until the debt is paid, 0.0 when there is none."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        return -self._left / self._rate if self._left < 0 else 0.0

    def try_take(self, amount: float, now: float) -> bool:
        """Takes `amount` if it is there, else nothing."""
        left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left = left - amount if left >= amount else left
        return left >= amount


@dataclass(frozen=True, slots=True)
class Rate:
    """Frames and bytes a second; of both `burst_s` seconds' worth may come at once."""

    frames_s: float
    bytes_s: float
    burst_s: float

    def __post_init__(self) -> None:
        for name, value in (("frames_s", self.frames_s), ("bytes_s", self.bytes_s)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; a rate must be above 0")
        if self.burst_s < 1:
            raise ValueError(f"burst_s is {self.burst_s}; a burst must hold at least a second of its rate")


NODE_BURST_S: Final = 8.0
SHARED_BURST_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What may come in from edges.

    node: one node. An agent sends at most 64 MiB of journal after an outage, paced by what the hub has stored; that and a
        log at full speed stay below. pool: all nodes of one. replica: all nodes of this replica; a core answers about
        60,000 heartbeats a second.
    """

    node: Rate = Rate(1_000, 8 << 20, NODE_BURST_S)
    pool: Rate = Rate(20_000, 64 << 20, SHARED_BURST_S)
    replica: Rate = Rate(40_000, 256 << 20, SHARED_BURST_S)


class _Pair:
    __slots__ = ("bytes", "frames")

    def __init__(self, rate: Rate, now: float) -> None:
        self.frames = Bucket(rate.frames_s, rate.frames_s * rate.burst_s, now)
        self.bytes = Bucket(rate.bytes_s, rate.bytes_s * rate.burst_s, now)

    def take(self, frames: int, size: int, now: float) -> float:
        return max(self.frames.take(frames, now), self.bytes.take(size, now))


class Buckets:
    """See the module."""

    def __init__(self, rates: Rates, now: float) -> None:
        self._rates = rates
        self._nodes: OrderedDict[str, _Pair] = OrderedDict()
        self._pools: OrderedDict[str, _Pair] = OrderedDict()
        self._replica = _Pair(rates.replica, now)

    def __len__(self) -> int:
        return len(self._nodes) + len(self._pools)

    def charge(self, node: str, pool: str, frames: int, size: int, now: float) -> float:
        """Takes what a node has sent. Seconds that it has to be silent: the longest of its own, its pool's and the
        replica's debts. `pool`: "" for none."""
        wait_s = self._replica.take(frames, size, now)
        wait_s = max(
            wait_s, _pair(self._nodes, node, self._rates.node, NODES_MAX, now).take(frames, size, now)
        )
        if pool:
            pair = _pair(self._pools, pool, self._rates.pool, POOLS_MAX, now)
            wait_s = max(wait_s, pair.take(frames, size, now))
        return wait_s


def _pair(pairs: "OrderedDict[str, _Pair]", name: str, rate: Rate, most: int, now: float) -> _Pair:
    pair = pairs.get(name)
    if pair is None:
        if len(pairs) >= most:
            pairs.popitem(last=False)
        pair = pairs[name] = _Pair(rate, now)
    else:
        pairs.move_to_end(name)
    return pair
