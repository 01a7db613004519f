"""A well-behaved node beside hostile ones, which looks at the time: how long its heartbeats and its reports take."""

import contextlib
import threading
import time
from collections.abc import Iterator

from edgelite import wire
from tests.e2e.cluster import Hub
from tests.e2e.hostile import Identity, Peer, hello, peer

PATIENCE_S = 10.0
"""What a heartbeat or a report may take at most while others are hostile; a healthy hub answers in milliseconds, a busy
machine in tenths of a second. Agents call a link dead after three heartbeats of 30 s."""
PACE_S = 0.02
REPORT_EVERY = 10


class Steady:
    """`pings`, `reports`: seconds that each took."""

    def __init__(self, one: Peer) -> None:
        self._peer = one
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady")
        self.pings: list[float] = []
        self.reports: list[float] = []
        self.failure: BaseException | None = None
        self._n = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        try:
            while not self._stop.wait(PACE_S):
                self._ping()
                if len(self.pings) % REPORT_EVERY == 1:
                    self._report()
        except BaseException as failure:
            self.failure = failure

    def _ping(self) -> None:
        began = time.monotonic()
        self._peer.send(wire.PING)
        self._peer.receive(wire.PONG)
        self.pings.append(time.monotonic() - began)

    def _report(self) -> None:
        self._n += 1
        body = {"addresses": [{"type": "Hostname", "address": f"steady-{self._n}"}]}
        began = time.monotonic()
        self._peer.send(wire.REPORT, {"e": [{"n": self._n, "k": "node", "t": "node", "b": body}]})
        while self._n not in self._peer.receive(wire.STORED)["n"]:
            pass
        self.reports.append(time.monotonic() - began)


@contextlib.contextmanager
def steady(hub: Hub, identity: Identity) -> Iterator[Steady]:
    """Shows that all its heartbeats and reports within were answered in time."""
    with peer(hub, identity.client()) as one:
        one.send(wire.HELLO, hello())
        assert one.receive(wire.WELCOME)["sync"] in ("match", "diff")
        one.send(wire.PAIRS, {"pairs": []})
        one.receive(wire.SYNCED)
        watch = Steady(one)
        watch.start()
        try:
            yield watch
            enough(watch)
        finally:
            watch.stop()
    if watch.failure is not None:
        raise AssertionError("the well-behaved node was disturbed") from watch.failure
    worst = max(watch.pings), max(watch.reports)
    print(
        f"\n{len(watch.pings)} heartbeats took {worst[0]:.3f} s at most, {len(watch.reports)} reports {worst[1]:.3f} s"
    )
    assert max(worst) < PATIENCE_S, worst


def enough(watch: Steady, pings: int = 10, reports: int = 1) -> None:
    """Waits for so many more while whatever is under way goes on."""
    wanted = len(watch.pings) + pings, len(watch.reports) + reports
    deadline = time.monotonic() + 60
    while (len(watch.pings), len(watch.reports)) < wanted or len(watch.reports) < wanted[1]:
        assert watch.failure is None and time.monotonic() < deadline, watch.failure
        time.sleep(0.02)
