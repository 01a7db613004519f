"""Objects as the mirrors have them, in place of a read: unless a mirror is known to be behind what was written here.

A report that is derived from a state before our own last write could find nothing to change where there is something;
what others have written meanwhile shows itself as a conflict.
"""

from collections import OrderedDict
from typing import Any, Final

from hub.mirror import Mirror
from hub.objects import Keys, Resource
from hub.registry import Stored

WRITTEN_MAX: Final = 20_000


class Copies:
    """See the module. Bound: WRITTEN_MAX objects are remembered which a mirror may be behind; what is forgotten is not
    taken from a mirror before that has come past it as a whole."""

    def __init__(self, keys: Keys) -> None:
        self.mirrors: dict[Resource, Mirror[Any]] = {}
        self._keys = keys
        self._ahead: OrderedDict[tuple[Resource, str, str], int] = OrderedDict()
        self._floor = 0

    def get(self, res: Resource, namespace: str, name: str) -> Stored | None:
        """None: it has to be read."""
        mirror = self.mirrors.get(res)
        entry = mirror.cache.get(namespace, name) if mirror is not None else None
        if mirror is None or entry is None:
            return None
        key = (res, namespace, name)
        if entry.revision < self._ahead.get(key, 0):
            return None
        if self._ahead.pop(key, 0) == 0 and mirror.revision < self._floor:
            return None
        object_key = self._keys.object(res, entry.partition, namespace, name)
        return Stored(object_key, entry.partition, entry.revision, entry.raw())

    def wrote(self, res: Resource, namespace: str, name: str, revision: int) -> None:
        """The object has this revision now."""
        if res not in self.mirrors:
            return
        self._ahead[(res, namespace, name)] = revision
        if len(self._ahead) > WRITTEN_MAX:
            self._floor = max(self._floor, self._ahead.popitem(last=False)[1])
