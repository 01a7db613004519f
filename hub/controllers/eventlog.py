"""Which events are written, under which names. [pure]

Job: one Event object for what repeats (its count grows), one for many that are alike, and a bounded rate per object.
A name is determined by what happened to whom, so a hub that starts again goes on counting where it was.
Bounds: OBJECTS_MAX objects are tracked, the least recently noisy are forgotten; PENDING_MAX events wait to be written,
what comes above is counted in `dropped`.

After client-go's event correlator; its figures.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from hub.objects import Meta, Resource

OBJECTS_MAX = 4096
PENDING_MAX = 4096
BURST = 25
REFILL_S = 300.0
"""One event per object and REFILL_S above the burst."""
ALIKE_MAX = 10
ALIKE_WINDOW_S = 600.0
MESSAGE_CHARS_MAX = 1024
COMBINED = "(combined from similar events): "

Key = tuple[str, str]
"""(namespace, event name)"""


@dataclass(slots=True)
class Pending:
    """`count` occurrences between `first` and `last` (unix seconds) that are not written yet."""

    res: Resource
    about: Meta
    type: str
    reason: str
    message: str
    count: int
    first: float
    last: float


@dataclass(slots=True)
class _Noise:
    tokens: float
    at: float
    alike: "dict[tuple[str, str], tuple[float, set[str]]]" = field(default_factory=dict)


class EventLog:
    """What is to be written. `observe` and `take` are all there is to it."""

    def __init__(self, component: str) -> None:
        self.dropped = 0
        self.component = component
        self._pending: dict[Key, Pending] = {}
        self._noise: OrderedDict[str, _Noise] = OrderedDict()

    def observe(
        self, res: Resource, about: Meta, type_: str, reason: str, message: str, now: float
    ) -> Key | None:
        """Notes one occurrence; the key under which it waits, or None when it is dropped."""
        message = message[:MESSAGE_CHARS_MAX]
        noise = self._noise_of(about.uid, now)
        combined = self._is_alike(noise, type_, reason, message, now)
        if noise.tokens < 1:
            self.dropped += 1
            return None
        noise.tokens -= 1
        parts = (about.uid, type_, reason, "" if combined else message, self.component)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        key = (about.namespace or "default", f"{about.name[:236]}.{digest}")
        text = (COMBINED + message)[:MESSAGE_CHARS_MAX] if combined else message
        return self._file(key, Pending(res, about, type_, reason, text, 1, now, now))

    def take(self, key: Key) -> Pending | None:
        """What waits under `key`; it is the caller's to write, or to give back with `give_back`."""
        return self._pending.pop(key, None)

    def give_back(self, key: Key, pending: Pending) -> None:
        """It could not be written: it waits again, together with what has come since."""
        newer = self._pending.pop(key, None)
        if newer is not None:
            pending.count += newer.count
            pending.last, pending.message = newer.last, newer.message
        self._pending[key] = pending

    def _file(self, key: Key, pending: Pending) -> Key | None:
        held = self._pending.get(key)
        if held is not None:
            held.count += 1
            held.last, held.message = pending.last, pending.message
        elif len(self._pending) >= PENDING_MAX:
            self.dropped += 1
            return None
        else:
            self._pending[key] = pending
        return key

    def _noise_of(self, uid: str, now: float) -> _Noise:
        noise = self._noise.get(uid)
        if noise is None:
            noise = self._noise[uid] = _Noise(BURST, now)
            if len(self._noise) > OBJECTS_MAX:
                self._noise.popitem(last=False)
        self._noise.move_to_end(uid)
        noise.tokens = min(BURST, noise.tokens + max(0.0, now - noise.at) / REFILL_S)
        noise.at = now
        return noise

    def _is_alike(self, noise: _Noise, type_: str, reason: str, message: str, now: float) -> bool:
        since, messages = noise.alike.get((type_, reason), (now, set()))
        if now - since > ALIKE_WINDOW_S:
            since, messages = now, set()
        if len(messages) <= ALIKE_MAX:
            messages.add(hashlib.sha256(message.encode()).hexdigest()[:16])
        if len(noise.alike) < ALIKE_MAX or (type_, reason) in noise.alike:
            noise.alike[type_, reason] = (since, messages)
        return len(messages) > ALIKE_MAX
