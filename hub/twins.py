"""What nodes report of their devices (upstream entries `twin`), on its way into the Devices' status.

An agent holds back what comes too often by itself; here nobody trusts that. A device has as many reports as its intervals
allow and a burst, and all devices of a node share another bucket; what is beyond is refused with the word `rate`, which an
agent keeps and offers again. Values are checked once more against the stored spec.

Bound: BUCKETS_MAX buckets of each sort; the one used longest ago is forgotten, which is as good as a full one.
"""

import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from edgelite.twins import RATE
from hub import devices
from hub.objects import DEVICES
from hub.peers import Peer
from hub.registry import now_rfc3339
from hub.upstream import Result, Update
from security.buckets import Bucket
from security.frames import Entry, decode_twin

if TYPE_CHECKING:
    from hub.gateway import Gateway

NODE_RATE: Final = 16.0
NODE_BURST: Final = 128.0
"""Every device of a node, twice: what a reconnect brings at once."""
DEVICE_BURST: Final = 8.0
BUCKETS_MAX: Final = 16_384
FAULTS_SHOWN: Final = 3


class TwinIntake:
    """See the module. `limited`: reports that were refused for their rate; `invalid`: that had values that do not fit."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._nodes: OrderedDict[str, Bucket] = OrderedDict()
        self._devices: OrderedDict[str, Bucket] = OrderedDict()
        self.limited = 0
        self.invalid = 0

    def job(self, peer: Peer, entry: Entry) -> Update | None:
        """What the store has to do for an entry about the node's own device; None when it is answered already. Raises
        MsgspecError for one that is malformed."""
        assert peer.identity is not None
        gateway, node = self._gateway, peer.identity.node
        parts = devices.split_device_key(entry.k)
        assert parts is not None  # the key is among the node's own
        namespace, name, uid = parts
        if fast := self._too_fast(node, entry.k, namespace, name):
            self.limited += 1
            gateway.answers.note(peer, entry.n, 0, fast)
            return None
        merge = devices.Merge(node, decode_twin(entry.b), now_rfc3339)
        done = functools.partial(self._done, peer, entry.n, merge)
        return Update(DEVICES, namespace, name, uid, merge, done, 2048 + 4 * len(entry.b))

    def _too_fast(self, node: str, key: str, namespace: str, name: str) -> str:
        now = self._gateway.now()
        if not _bucket(self._nodes, node, NODE_RATE, NODE_BURST, now).try_take(1.0, now):
            return f"{RATE}: this node's devices may report {NODE_RATE:.0f} times a second; it is offered again later"
        held = self._gateway.share.devices.cache.get(namespace, name)
        rate = devices.reports_a_second(held.view) if held is not None else 1.0
        if not _bucket(self._devices, key, rate, DEVICE_BURST, now).try_take(1.0, now):
            return f"{RATE}: this device may report {rate:.3g} times a second (minIntervalSeconds); offer it again later"
        return ""

    def _done(self, peer: Peer, n: int, merge: devices.Merge, result: Result) -> None:
        if merge.faults and isinstance(result, int):
            self.invalid += 1
            shown = "; ".join(f"{name} {fault}" for name, fault in merge.faults[:FAULTS_SHOWN])
            self._gateway.answers.note(peer, n, 0, f"invalid: {shown}"[:256])
            return
        self._gateway.intake.done(peer, n, result)


def _bucket(buckets: OrderedDict[str, Bucket], name: str, rate: float, burst: float, now: float) -> Bucket:
    bucket = buckets.get(name)
    if bucket is None:
        if len(buckets) >= BUCKETS_MAX:
            buckets.popitem(last=False)
        bucket = buckets[name] = Bucket(rate, burst, now)
    else:
        buckets.move_to_end(name)
    return bucket
