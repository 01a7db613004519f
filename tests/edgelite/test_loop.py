import os

import pytest

from edgelite.loop import POLLIN, TASKS_MAX, Cancelled, Loop, Wait, sleep


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


def run(loop, gen):
    """Runs the loop until this generator has returned; its result."""
    task = loop.spawn(gen, "test")
    deadline = loop.now() + 10
    while not task.done and not loop.stopping:
        assert loop.now() < deadline
        loop.turn(1)
    assert task.error is None, task.error
    return task.result


def test_a_task_resumes_with_true_when_its_descriptor_is_ready_and_false_at_the_deadline(loop):
    r, w = os.pipe()

    def reader():
        late = yield Wait(r, POLLIN, loop.now() + 0.01)
        os.write(w, b"x")
        ready = yield Wait(r, POLLIN, loop.now() + 5)
        return late, ready

    assert run(loop, reader()) == (False, True)
    os.close(r)
    os.close(w)


def test_a_closed_peer_counts_as_ready(loop):
    r, w = os.pipe()
    os.close(w)

    def reader():
        return (yield Wait(r, POLLIN, loop.now() + 5))

    assert run(loop, reader()) is True
    os.close(r)


def test_two_tasks_may_wait_for_one_descriptor(loop):
    r, w = os.pipe()
    got = []

    def reader(name):
        yield Wait(r, POLLIN, None)
        got.append(name)

    loop.spawn(reader("a"), "a")
    loop.spawn(reader("b"), "b")
    loop.turn(0)
    os.write(w, b"x")
    loop.turn(1)
    assert sorted(got) == ["a", "b"]
    os.close(r)
    os.close(w)


def test_sleep_composes(loop):
    def sleeper():
        before = loop.now()
        yield from sleep(0.02)
        return loop.now() - before

    assert run(loop, sleeper()) >= 0.02


def test_wake_resumes_a_task_that_waits_for_something_else(loop):
    def waiter():
        return (yield Wait(-1, 0, None))

    def waker(task):
        yield from sleep(0)
        loop.wake(task)

    task = loop.spawn(waiter(), "waiter")
    run(loop, waker(task))
    loop.turn(0)
    assert task.done and task.result is True
    loop.wake(task)
    loop.wake(None)
    assert loop.current is None


def test_cancel_runs_finally_blocks_at_once(loop):
    seen = []

    def worker():
        try:
            yield Wait(-1, 0, None)
        except Cancelled:
            seen.append("cancelled")
            raise
        finally:
            seen.append("cleaned")

    task = loop.spawn(worker(), "worker")
    loop.turn(0)
    loop.cancel(task)
    assert seen == ["cancelled", "cleaned"]
    assert task.done
    fresh = loop.spawn(worker(), "never started")
    loop.cancel(fresh)
    loop.turn(0)
    assert fresh.done and len(seen) == 2


def test_a_task_that_cancels_itself_is_told_to_return(loop):
    def worker():
        yield from sleep(0)
        loop.cancel(loop.current)

    loop.spawn(worker(), "worker")
    with pytest.raises(RuntimeError, match="cannot cancel itself"):
        loop.run()


def test_an_exception_stops_the_loop_unless_somebody_takes_care_of_it(loop):
    def broken():
        yield from sleep(0)
        raise ValueError("boom")

    loop.spawn(broken(), "broken")
    with pytest.raises(ValueError, match="boom"):
        loop.run()
    caught = []
    careful = Loop(lambda task, error: caught.append((task.name, str(error))))
    careful.spawn(broken(), "broken")
    for _ in range(3):
        careful.turn(0)
    assert caught == [("broken", "boom")]
    careful.close()


def test_stop_wakes_a_loop_that_waits_for_ever(loop):
    import signal

    before = signal.signal(signal.SIGALRM, lambda *_: loop.stop())
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    loop.run()
    assert loop.stopping
    signal.signal(signal.SIGALRM, before)


def test_tasks_are_bounded(loop):
    def idle():
        yield Wait(-1, 0, None)

    for number in range(TASKS_MAX):
        loop.spawn(idle(), str(number))
    with pytest.raises(RuntimeError, match="cannot start one more"):
        loop.spawn(idle(), "one more")
