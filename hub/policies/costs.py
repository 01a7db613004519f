"""What evaluating an expression may cost at the most, reckoned before it is evaluated: evaluation cannot be interrupted. [pure]

A value is known by its size and, where it comes straight from the objects that are judged, by itself: a loop over the
containers of a Pod costs as much as the Pod has containers, and one over what an expression has made as much as that may hold.
Branches that are not taken, and loops that end early, count as if they were not.

Costs are about nanoseconds of one core; the prices were measured with the library's functions at their worst inputs. Sizes
are bytes of text and UNIT for every value. Bounds on the reckoning itself: VALUES_MAX, COUNTED_MAX.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hub.policies.syntax import Call, Const, Ident, Loop, Made, Node, Select

UNIT: Final = 16
STEP: Final = 400.0
"""Of one call, selection or literal."""
TURNS_MAX: Final = 10_000
"""Of all loops of one evaluation together: the library's own bound."""
VALUES_MAX: Final = 128
"""So many values are followed by themselves; of more the largest counts."""
COUNTED_MAX: Final = 50_000
"""An attempt that has more values is taken for endless."""
SIZE_MAX: Final = 64 << 20
"""So is what an expression may make beyond this."""
ENDLESS: Final = float("inf")
_BYTE: Final = 8.0
_BYTES: Final = {
    "split": 100.0,
    "replace": 80.0,
    "join": 60.0,
    "format": 60.0,
    "_==_": 3.0,
    "_!=_": 3.0,
    "size": 2.0,
}
"""Price of a byte of the arguments; _BYTE for the rest."""
_SEARCH: Final = frozenset(("contains", "indexOf", "lastIndexOf", "split", "replace"))
_PATTERN_BYTE: Final = 600.0
_PATTERN_CLASS: Final = 25e3
_PATTERN_UNICODE: Final = 200e3
"""Of a byte, a class and a Unicode class (`\\pL`) of a regular expression, which is compiled every time."""
PATTERN_CHARS_MAX: Final = 5 * 1024
"""Longer ones, all that it may be together, are not looked through."""
_PATTERN_MAX: Final = 300e6
"""RE2 gives an expression up that would take more."""
_REPEATED: Final = re.compile(r"\{(\d{1,4})(?:,(\d{1,4})?)?\}", re.ASCII)
_LOGIC: Final = frozenset(("_&&_", "_||_", "!_", "@not_strictly_false"))
_SMALL: Final = frozenset(
    ("size", "contains", "startsWith", "endsWith", "matches", "indexOf", "lastIndexOf", "_==_", "_!=_", "@in")
)
"""Functions whose result has no size."""


@dataclass(slots=True)
class Seen:
    """What a value may be. `values`: one of these, None where it is not known; `size`: of the largest; `count`: how many items it has
    at most, and `item` what each may be, where that is known better than by its size."""

    size: float
    values: tuple[Any, ...] | None = None
    count: float = ENDLESS
    item: "Seen | None" = None

    @property
    def items(self) -> float:
        return min(self.count, self.size / UNIT)


NOTHING: Final = Seen(UNIT)


class Sizes:
    """Sizes of the values of one attempt, each reckoned once. They must not change meanwhile."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, float, float, float]] = {}
        """By id: (the value, so that no other gets its id; its size; of its largest item; of its largest key)."""
        self._counted = 0

    def of(self, value: Any) -> float:
        if isinstance(value, (str, bytes)):
            return UNIT + len(value)
        return self._measured(value)[1] if isinstance(value, (dict, list)) else UNIT

    def item(self, value: Any) -> float:
        """Of the largest item of a list, or value of a map."""
        return self._measured(value)[2]

    def key(self, value: Any) -> float:
        """Of what a loop over it gets: the largest key of a map, the largest item of a list."""
        return self._measured(value)[3]

    def _measured(self, value: Any) -> tuple[Any, float, float, float]:
        known = self._known.get(id(value))
        if known is not None:
            return known
        self._counted += len(value)
        if self._counted > COUNTED_MAX:
            return value, ENDLESS, ENDLESS, ENDLESS
        items = list(map(self.of, value.values() if isinstance(value, dict) else value))
        keys = [UNIT + len(key) for key in value] if isinstance(value, dict) else []
        largest = max(items, default=float(UNIT))
        found = (value, UNIT + sum(items) + sum(keys), largest, max(keys, default=largest))
        self._known[id(value)] = found
        return found

    def seen(self, values: Iterable[Any]) -> Seen:
        found = tuple(values)
        size = max(map(self.of, found), default=float(UNIT))
        return Seen(size, found if len(found) <= VALUES_MAX else None)


def cost(node: Node, known: Mapping[str, Seen], sizes: Sizes, *, trusting: bool = False) -> float:
    """Of an expression whose variables may be what is `known`. ENDLESS for what has no bound here. `trusting`: regular expressions
    that are not known are ordinary ones."""
    reckoning = _Reckoning(sizes, trusting)
    try:
        reckoning.reckon(node, known)
    except RecursionError:
        return ENDLESS
    return reckoning.total


class _Reckoning:
    """`total`: of what was reckoned so far; `_times`: how often what is looked at is evaluated."""

    def __init__(self, sizes: Sizes, trusting: bool) -> None:
        self._sizes = sizes
        self._trusting = trusting
        self._times = 1.0
        self.total = 0.0

    def _pay(self, price: float) -> None:
        if self._times:  # nothing times endless is nothing
            self.total += self._times * price

    def reckon(self, node: Node, known: Mapping[str, Seen]) -> Seen:
        """Pays for it; what it may be."""
        if isinstance(node, Const):
            self._pay(STEP / 4)
            return Seen(UNIT + node.size, (node.text,) if node.text else None)
        if isinstance(node, Ident):
            self._pay(STEP / 4)
            return known.get(node.name, NOTHING)
        if isinstance(node, Loop):
            return self._loop(node, known)
        self._pay(STEP)
        if isinstance(node, Select):
            return self._below(self.reckon(node.operand, known), node.field)
        if isinstance(node, Made):
            parts = [self.reckon(part, known) for part in node.parts]
            largest = max(parts, key=lambda seen: seen.size, default=NOTHING)
            return Seen(UNIT + sum(seen.size for seen in parts), None, len(parts), largest)
        return self._call(node, [self.reckon(arg, known) for arg in node.args])

    def _below(self, of: Seen, key: str | None) -> Seen:
        """What is there under `key`; None: under any."""
        if of.values is None:
            return of.item if key is None and of.item is not None else Seen(of.size)
        if key is not None:
            return self._sizes.seen(v[key] for v in of.values if isinstance(v, dict) and key in v)
        held = [v for v in of.values if isinstance(v, (dict, list))]
        if sum(map(len, held)) > VALUES_MAX:
            return Seen(max(map(self._sizes.item, held)))
        return self._sizes.seen(item for v in held for item in (v.values() if isinstance(v, dict) else v))

    def _call(self, node: Call, given: list[Seen]) -> Seen:
        function = node.function
        if function in _LOGIC:
            return NOTHING
        sizes = [seen.size for seen in given]
        if sum(sizes) > SIZE_MAX:
            self._pay(ENDLESS)
            return Seen(ENDLESS)
        if function == "_[_]":
            self._pay(_BYTE * sizes[1])
            key = given[1].values
            only = key[0] if key and len(key) == 1 and isinstance(key[0], str) else None
            return self._below(given[0], only)
        if function == "_?_:_":
            return _either(given[1], given[2])
        self._pay(_BYTES.get(function, _BYTE) * sum(sizes))
        if len(sizes) > 1 and function in _SEARCH:
            self._pay(sizes[0] * (sizes[1] - UNIT) / 20)
        if len(sizes) > 1 and function == "matches":
            self._pay(sizes[0] * (sizes[1] - UNIT) / 10)
            self._pay(self._pattern(given[1]))
        result = _result(function, given, sizes)
        if result.size > SIZE_MAX:
            self._pay(ENDLESS)
        elif function not in _SMALL:
            self._pay(result.size)
        return result

    def _pattern(self, of: Seen) -> float:
        """Of compiling a regular expression."""
        if of.values is None:
            return _PATTERN_BYTE * of.size if self._trusting else _PATTERN_MAX
        patterns = [value for value in of.values if isinstance(value, str)]
        if sum(map(len, patterns)) > PATTERN_CHARS_MAX:
            return _PATTERN_MAX
        return max(map(pattern_price, patterns), default=0.0)

    def _loop(self, loop: Loop, known: Mapping[str, Seen]) -> Seen:
        self._pay(STEP)
        over = self.reckon(loop.over, known)
        start = self.reckon(loop.start, known)
        turns, item = self._turns(over)
        inside = {**known, loop.var: item, loop.accu: NOTHING}
        if loop.var2:
            inside[loop.var2] = self._below(over, None)
        grows = isinstance(loop.start, Made)
        if grows:
            inside[loop.accu] = Seen(0.0, None, 0)  # what one turn adds
        before = self._times
        self._times = min(before * turns, TURNS_MAX)
        self.reckon(loop.condition, inside)
        added = self.reckon(loop.step, inside)
        made = NOTHING
        if grows:
            made = Seen(start.size + turns * added.size, None, turns, added)
            self._pay(_BYTE * made.size)  # the library copies it every time
            if made.size > SIZE_MAX:
                self._pay(ENDLESS)
        self._times = before
        return self.reckon(loop.result, {**known, loop.accu: made})

    def _turns(self, over: Seen) -> tuple[float, Seen]:
        """(how often at the most, what the variable may be)."""
        if over.values is None:
            return over.items, over.item or Seen(over.size)
        held = [v for v in over.values if isinstance(v, (dict, list))]
        turns = max(map(len, held), default=0)
        if sum(map(len, held)) > VALUES_MAX:
            return turns, Seen(max(map(self._sizes.key, held)))
        return turns, self._sizes.seen(item for v in held for item in v)  # keys of a map, items of a list


@lru_cache(256)
def pattern_price(pattern: str) -> float:
    """Of compiling it: what is repeated a number of times is as long as all of them, groups in groups by each. What is no regular
    expression may get any price."""
    spent = [0.0]  # of the groups that are open
    atom = 0.0
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "(":
            spent.append(0.0)
            atom = 0.0
            continue
        if char == "{" and (repeated := _REPEATED.match(pattern, at - 1)) is not None:
            atom *= max(0, max(int(n) for n in repeated.groups() if n) - 1)
            at = repeated.end()
        elif char == ")" and len(spent) > 1:
            atom = spent.pop()
        elif char == "[":
            end = pattern.find("]", at + 1)
            inside = pattern[at : end if end > 0 else len(pattern)]
            at += len(inside) + 1
            atom = _PATTERN_CLASS + _PATTERN_BYTE * len(inside) + _PATTERN_UNICODE * _unicode_classes(inside)
        elif char == "\\":
            atom = _PATTERN_CLASS + _PATTERN_UNICODE * (pattern[at : at + 1] in ("p", "P"))
            at += 1
        else:
            atom = _PATTERN_BYTE * len(char.encode(errors="surrogatepass")) + _PATTERN_CLASS * (char == ".")
        spent[-1] += atom
    return min(sum(spent), _PATTERN_MAX)


def _unicode_classes(text: str) -> int:
    return text.count("\\p") + text.count("\\P")


def _either(one: Seen, other: Seen) -> Seen:
    known = one.values + other.values if one.values is not None and other.values is not None else None
    if known is not None and len(known) > VALUES_MAX:
        known = None
    return Seen(max(one.size, other.size), known, max(one.items, other.items))


def _result(function: str, given: list[Seen], sizes: list[float]) -> Seen:
    """What a call gives, by what it is given."""
    total = sum(sizes)
    if function in _SMALL:
        return NOTHING
    if function == "_+_":
        item = max((seen.item or Seen(seen.size) for seen in given), key=lambda seen: seen.size)
        return Seen(total, None, sum(seen.items for seen in given), item)
    if function == "replace" and len(given) > 2:
        return Seen(sizes[0] + (sizes[0] - UNIT + 1) * (sizes[2] - UNIT))
    if function == "split":
        return Seen(UNIT + (sizes[0] - UNIT + 1) * (UNIT + 1), None, sizes[0], Seen(sizes[0]))
    if function == "join":
        return Seen(sizes[0] + given[0].items * (sizes[1] - UNIT if len(sizes) > 1 else 0))
    if function == "format":
        # A clause may ask for 1,000 digits, and what is quoted gets longer.
        return Seen((sizes[0] - UNIT) * 500 + 4 * total)
    return Seen(2 * total)
