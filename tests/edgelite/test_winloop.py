"""The loop as it runs on Windows, on any machine: with sockets and select in place of pipes and poll."""

import socket
import threading

import pytest

from edgelite import loop, winloop
from edgelite.loop import POLLIN, POLLOUT, Loop, Wait


@pytest.fixture
def windows_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "wakeup", winloop.Wakeup)
    monkeypatch.setattr(loop, "_poller", winloop.Poll)
    made = Loop()
    yield made
    made.close()


def test_the_numbers_are_those_of_poll() -> None:
    assert (winloop.POLLIN, winloop.POLLOUT) == (POLLIN, POLLOUT)
    assert (winloop.POLLERR | winloop.POLLNVAL) & loop.BROKEN == winloop.POLLERR | winloop.POLLNVAL


def test_tasks_wait_for_sockets_time_and_each_other(windows_loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    said = []

    def read():
        said.append((yield Wait(ours.fileno(), POLLIN, None)))
        said.append(ours.recv(10))

    def write():
        assert (yield Wait(theirs.fileno(), POLLOUT, None))
        theirs.send(b"x")
        assert not (yield Wait(-1, 0, windows_loop.now() + 0.01))
        windows_loop.wake(sleeper)

    def sleep():
        said.append((yield Wait(-1, 0, None)))
        windows_loop.stop()

    windows_loop.spawn(read(), "read")
    sleeper = windows_loop.spawn(sleep(), "sleep")
    windows_loop.spawn(write(), "write")
    windows_loop.run()
    ours.close()
    theirs.close()
    assert said == [True, b"x", True]


def test_another_thread_ends_its_wait_and_a_closed_socket_does_not(windows_loop: Loop) -> None:
    gone, other = socket.socketpair()
    number = gone.fileno()
    gone.close()
    told = []

    def wait():
        told.append((yield Wait(number, POLLIN, None)))

    windows_loop.spawn(wait(), "wait")
    timer = threading.Timer(0.05, windows_loop.stop)
    timer.start()
    windows_loop.run()
    timer.join()
    other.close()
    assert told == [True], "as with poll, whoever waits for what is closed is told at once"
    assert windows_loop.signals() >= 0
