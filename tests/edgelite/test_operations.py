"""Operations: bounded by kind, first come first served, and a cancelled one leaves its place."""

from edgelite.loop import Loop, Wait, now
from edgelite.operations import Operations


class Bench:
    def __init__(self, **limits):
        self.loop = Loop()
        self.operations = Operations(self.loop, limits)
        self.log = []
        self.open = set()

    def work(self, name):
        self.log.append("begin " + name)
        try:
            while name not in self.open:
                yield Wait(-1, 0, now() + 0.001)
        finally:
            self.log.append("end " + name)

    def run(self, *names):
        return [self.operations.run("k", name, self.work(name)) for name in names]

    def turn(self):
        for _ in range(6):
            self.loop.turn(0.005)


def test_no_more_than_the_limit_run_and_the_rest_follow_in_order():
    bench = Bench(k=2)
    bench.run("a", "b", "c", "d")
    bench.turn()
    assert bench.log == ["begin a", "begin b"]
    bench.open.add("b")
    bench.turn()
    assert bench.log[2:] == ["end b", "begin c"]
    bench.open.update("acd")
    bench.turn()
    assert sorted(bench.log[-4:]) == ["begin d", "end a", "end c", "end d"]


def test_cancelling_frees_the_place_whether_it_had_begun_or_not():
    bench = Bench(k=1)
    first, second, third = bench.run("a", "b", "c")
    bench.operations.cancel(second)  # still in line
    bench.operations.cancel(first)  # spawned, not begun
    bench.turn()
    assert bench.log == ["begin c"]
    bench.operations.cancel(third)  # under way
    assert bench.log == ["begin c", "end c"]
    bench.run("d")
    bench.turn()
    assert bench.log[-1] == "begin d"
