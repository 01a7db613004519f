"""Aggregated ClusterRoles: their `rules` show what the roles that they select say.

For who reads them. What they give is computed from the selected roles whenever it is asked (`security.rbac`), so that a right
that is taken away is gone at once, whether or not this controller runs.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from hub import errors
from hub.controllers.controller import Context, Controller, Object, Writer
from hub.informer import Delta
from hub.objects import CLUSTERROLES, Resource
from security.rbac import Policy, Role, RoleRef, Rule


class Aggregation:
    """See the module. Keys are names of aggregating roles."""

    kinds = (CLUSTERROLES,)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[str] = Controller("aggregation", context, self._sync, kinds=self.kinds)

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        for entry in self._context.informers.of(CLUSTERROLES).cache:
            if isinstance(entry.note, Role) and entry.note.aggregation is not None:
                self._driver.queue.add(entry.note.name)

    async def _sync(self, name: str, writer: Writer) -> float | None:
        policy = Policy()
        cache = self._context.informers.of(CLUSTERROLES).cache
        for known in cache:
            if isinstance(known.note, Role):
                policy.put_role(known.note)
        entry = cache.get("", name)
        rules = policy.rules_of(RoleRef("ClusterRole", name), "")
        if entry is None or rules is None or entry.note.rules == rules:
            return None
        shown = [rule_object(rule) for rule in rules]

        def change(obj: Object) -> Object | None:
            if obj.get("rules") == shown or not obj.get("aggregationRule"):
                return None
            obj["rules"] = shown
            return obj

        try:
            await writer.mutate(CLUSTERROLES, ("", name), change, entry.meta.uid)
        except errors.NotFound:
            return None  # it is gone, and asks for nothing more
        return None


def rule_object(rule: Rule) -> Object:
    """A PolicyRule as the API shows it. [pure]"""
    return {field: list(value) for field, value in msgspec.structs.asdict(rule).items() if value}
