"""For the test of the fuzzer itself: it fails on inputs that random bytes do not find within the age of the universe."""

from edgelite import wire

INSTRUMENTED = ("tests.fuzz.targets._broken", "edgelite.wire")


def check(data: bytes) -> None:
    for at, wanted in enumerate(b"edge"):
        if data[at : at + 1] != bytes((wanted,)):
            return
    if len(data) > wire.HEADER_BYTES:
        raise RuntimeError("found you")
