"""Which watches follow the ConfigMaps or Secrets that are used: few, and never more than a bound. [pure]

A watch covers one name in one namespace, all of a namespace, or one name in all of them: kube-root-ca.crt is used in
every namespace that has pods. What no watch covers is read again and again.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

Key = tuple[str, str]
"""(namespace, name); in a watch "" stands for all of them."""

STEPS_MAX: Final = 8
COMMON_MIN: Final = 3
"""From so many namespaces on, a name is followed in all of them."""


def plan(used: Collection[Key], held: Collection[Key], watches_max: int) -> dict[Key, Key | None]:
    """For all that is used the watch that covers it, None: none. Of the watches that are `held` those that cover
    anything stay while there is room: to begin one costs a read of all that it covers. Made with its own watches held it
    is the same plan: what is carried out stays."""
    covered = _once(used, held, watches_max)
    # Where there is too little room a watch that is given up changes what the next ones would best be.
    for _ in range(STEPS_MAX):
        before, covered = covered, _once(used, watches_of(covered.values()), watches_max)
        if covered == before:
            break
    return covered


def _once(used: Collection[Key], held: Collection[Key], watches_max: int) -> dict[Key, Key | None]:
    names = Counter(name for _, name in used)
    kept = set(held)
    common = {name for name, count in names.items() if count >= COMMON_MIN or ("", name) in kept}
    rest = [key for key in used if key[1] not in common]
    spaces = Counter(namespace for namespace, _ in rest)
    wanted: dict[Key, list[Key]] = {}
    for key in used:
        wanted.setdefault(_watch_of(key, common, spaces, kept), []).append(key)
    # Those that cover most, and of equal ones those that are there.
    ranked = sorted(wanted, key=lambda watch: (-len(wanted[watch]), watch not in kept, watch))
    covered: dict[Key, Key | None] = dict.fromkeys(used)
    for watch in ranked[:watches_max]:
        covered.update(dict.fromkeys(wanted[watch], watch))
    return covered


def _watch_of(key: Key, common: set[str], spaces: Counter[str], kept: set[Key]) -> Key:
    namespace, name = key
    if name in common:
        return "", name
    if spaces[namespace] > 1 or (namespace, "") in kept:
        return namespace, ""
    return key


def watches_of(covered: Iterable[Key | None]) -> set[Key]:
    """Those of a plan."""
    return {watch for watch in covered if watch is not None}
