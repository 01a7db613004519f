"""Memory that lists leave free."""

import subprocess
import sys

import psutil

from hub.kubernetes import allocator


def test_what_lies_free_between_what_is_kept_goes_back_to_the_system() -> None:
    process = psutil.Process()
    blocks = [b"%d" % i + bytes(4000) for i in range(25_000)]
    kept = blocks[::50]
    full = process.memory_info().rss
    blocks.clear()
    allocator.give_back()
    if sys.platform == "linux" and allocator._malloc_trim is not None:
        assert process.memory_info().rss < full - (50 << 20)
    assert len(kept) == 500


INTERLEAVED = """
import sys
import psutil
from hub.kubernetes import allocator
if sys.argv[1] == "apart":
    allocator.keep_large_apart()
size = 256 << 10
del [bytes(size) for _ in range(2)][:]  # from now on glibc takes its heap for what is as large
process, kept, large = psutil.Process(), [], []
for _ in range(200):
    large.append(b"x" * size)
    kept.append(b"y" * 20_000)  # lies behind it
full = process.memory_info().rss
large.clear()
print(full - process.memory_info().rss)
"""


def test_large_blocks_go_back_when_they_are_freed_whatever_lies_behind_them() -> None:
    """In processes of their own: what is set holds for a whole process."""

    def given_back(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", INTERLEAVED, how], text=True))

    if sys.platform == "linux" and allocator._mallopt is not None:
        assert given_back("apart") > 45 << 20
        assert given_back("as ever") < 5 << 20, "glibc does so itself by now: keep_large_apart can go"
