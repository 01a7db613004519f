"""Where the next stretch of a long listing ends, so that etcd looks at that stretch and not at all that is left. [pure]

etcd counts the keys of the range that it is asked for, whatever the limit (3.4 collects them as well): with 2.2 million keys
a page of 500 takes it a second, so that a listing costs the square of its length. The keys that follow a page mostly begin
as those of the page do: so they are asked for first, and then what begins with one character less, and so on.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from shards.kv import KeyValue, prefix_end

WIDE: Final = 5_000
"""Keys in a range that etcd may as well look at for one page."""
REMEMBERED_MAX: Final = 1_024
"""Listings that go on at the same time; of others that are more the next page is asked for as a whole."""


class Stretches:
    """What the last pages' keys had in common, by where the next page starts."""

    def __init__(self) -> None:
        self._common: OrderedDict[str, str] = OrderedDict()

    def at(self, start: str) -> str:
        """What to begin with for the page at `start`: "" where nothing is known."""
        return self._common.pop(start, "")

    def page_ends(self, next_key: str, common: str) -> None:
        """The next page starts at `next_key`, and begins with what starts with `common`."""
        self._common[next_key] = common
        if len(self._common) > REMEMBERED_MAX:
            self._common.popitem(last=False)


def common_of(items: Sequence[KeyValue]) -> str:
    """What the keys of a page begin with."""
    first, last = items[0].key, items[-1].key
    unlike = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(unlike, len(first))]


def stretch_end(common: str, end: str) -> str:
    """The end of what begins with `common`, at most `end`."""
    return min(prefix_end(common), end) if common else end
