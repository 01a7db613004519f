"""The bus between replicas: subjects, callbacks, no memory. Over NATS it is `shards.nats`; here it lives in one process.

Contract (tests/contract/test_bus.py): what one bus publishes on one subject, or on several that one subscription
covers, arrives in that order, at most once. What is published while the bus is not connected, or when too much waits,
is refused at once and never sent later. Whoever listens is told `lost` when messages may have been lost on the way, and
`returned` when subscriptions are in force again. All happens on the event loop.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator
from typing import Final, Protocol

log = logging.getLogger(__name__)

PAYLOAD_BYTES_MAX: Final = 512 << 10
"""NATS allows 1 MiB unless told otherwise; nothing here needs it."""

Callback = Callable[[str, bytes], None]
"""Subject and message. Must not block; what it raises is logged and ends nothing."""


class BusError(Exception):
    """The bus cannot be used as it is configured. The message says why and what to do."""


class BusListener(Protocol):
    """Who wants to know about the bus itself."""

    def bus_lost(self) -> None: ...

    def bus_returned(self) -> None: ...


class Bus(Protocol):
    """See the module."""

    @property
    def connected(self) -> bool: ...

    def publish(self, subject: str, data: bytes) -> bool:
        """False: not sent, for the bus is lost or too much waits. ValueError above PAYLOAD_BYTES_MAX."""
        ...

    async def subscribe(self, subject: str, callback: Callback) -> None:
        """Once this returns, what others publish arrives, unless the bus is lost meanwhile; then from `returned` on.
        "*" stands for one word. One callback per subject: ValueError for a second one."""
        ...

    async def unsubscribe(self, subject: str) -> None:
        """Nothing arrives any more, also of what is under way. Nothing when it was not subscribed."""
        ...

    def listen(self, listener: BusListener) -> None: ...


class Listeners:
    """Who has to be told; a listener that fails is logged, and the others are told all the same."""

    def __init__(self) -> None:
        self._all: list[BusListener] = []

    def add(self, listener: BusListener) -> None:
        self._all.append(listener)

    def lost(self) -> None:
        for listener in self._all:
            with logged("a listener of the bus"):
                listener.bus_lost()

    def returned(self) -> None:
        for listener in self._all:
            with logged("a listener of the bus"):
                listener.bus_returned()


@contextlib.contextmanager
def logged(who: str) -> Generator[None]:
    """A bug in one callback must not end the bus for all others."""
    try:
        yield
    except Exception:
        log.exception("%s failed", who)


class LocalNet:
    """What the buses of one process share. Messages of one turn of the loop are delivered in the next."""

    def __init__(self, queue_max: int = 100_000) -> None:
        self._buses: list[LocalBus] = []
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queue_max = queue_max

    def bus(self) -> "LocalBus":
        made = LocalBus(self)
        self._buses.append(made)
        return made

    def put(self, subject: str, data: bytes) -> bool:
        if len(self._queue) >= self._queue_max:
            return False
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._queue.append((subject, data))
        return True

    def _deliver(self) -> None:
        for _ in range(len(self._queue)):
            subject, data = self._queue[0]
            for bus in self._buses:
                bus.deliver(subject, data)
            self._queue.popleft()
        if self._queue:
            asyncio.get_running_loop().call_soon(self._deliver)


class LocalBus:
    """A bus in this process: of a hub that is alone, and of tests. `cut` and `mend` are what a dead server does."""

    def __init__(self, net: LocalNet) -> None:
        self._net = net
        self._listeners = Listeners()
        self._callbacks: dict[str, Callback] = {}
        self.connected = True

    def publish(self, subject: str, data: bytes) -> bool:
        check_payload(data)
        return self.connected and self._net.put(subject, data)

    async def subscribe(self, subject: str, callback: Callback) -> None:
        if subject in self._callbacks:
            raise ValueError(f"{subject} is subscribed already")
        self._callbacks[subject] = callback

    async def unsubscribe(self, subject: str) -> None:
        self._callbacks.pop(subject, None)

    def listen(self, listener: BusListener) -> None:
        self._listeners.add(listener)

    def deliver(self, subject: str, data: bytes) -> None:
        """From the net."""
        for pattern, callback in list(self._callbacks.items()):
            if self.connected and matches(pattern, subject):
                with logged(f"the callback of {pattern}"):
                    callback(subject, data)

    def cut(self) -> None:
        if self.connected:
            self.connected = False
            self._listeners.lost()

    def mend(self) -> None:
        if not self.connected:
            self.connected = True
            self._listeners.returned()


def matches(pattern: str, subject: str) -> bool:
    """ "*" stands for one word."""
    if "*" not in pattern:
        return pattern == subject
    words, wanted = subject.split("."), pattern.split(".")
    return len(words) == len(wanted) and all(w in ("*", s) for w, s in zip(wanted, words, strict=True))


def check_payload(data: bytes) -> None:
    if len(data) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes, at most {PAYLOAD_BYTES_MAX} are carried")
