"""What joining leaves behind in the hub's own store is removed: join tokens long after their end, and the requests of nodes
that waited for an operator.

Invariant: a token goes no sooner than whoever redeemed it in time may still ask with it (`security.join.WAITING_S`). A
cluster that keeps the objects removes requests itself; tokens there are the operator's.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from hub import errors
from hub.controllers.controller import Context, Controller, Writer
from hub.controllers.meta import seconds
from hub.informer import Delta
from hub.objects import CERTIFICATESIGNINGREQUESTS, JOINTOKENS, Resource
from security.join import WAITING_S

ItemKey = tuple[Resource, str]


def keep_token(view: Any, raw: bytes) -> tuple[Any, float]:
    """What the cache keeps of a JoinToken beside its view: when it ends, unix seconds; 0.0 when that is unknown. [pure]"""
    status = orjson.loads(raw).get("status") or {}
    return view, seconds(status.get("expires")) or 0.0


class Enrolments:
    """Removes each WAITING_S after its end; of a request that is its making."""

    kinds = (JOINTOKENS, CERTIFICATESIGNINGREQUESTS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[ItemKey] = Controller("enrolments", context, self._sync, kinds=self.kinds)

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if delta.type == "ADDED":
            self._driver.queue.add((res, delta.entry.key[1]))

    async def _sync(self, key: ItemKey, writer: Writer) -> float | None:
        res, name = key
        entry = self._context.informers.of(res).cache.get("", name)
        if entry is None:
            return None
        made = seconds(entry.meta.creationTimestamp) or 0.0
        ended = entry.note if res == JOINTOKENS else made
        if not ended:
            return None  # nobody knows when; it stays until somebody deletes it
        left = ended + WAITING_S - self._context.clock.now()
        if left > 0:
            return left
        stored = await self._context.registry.find(res, "", name)
        if stored is None or stored.obj()["metadata"].get("finalizers"):
            return None
        try:
            await writer.remove(res, stored)
        except errors.NotFound:
            return None
        return None
