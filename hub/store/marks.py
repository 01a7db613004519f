"""Marks in a store's identity record: not to be served (I9), because it is half filled, or because its fleet moved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.kv import Moved, Occupied, StoreIdentity, Unfinished

FILLING = "filling"
MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Opening:
    """What a store is opened for, when that is not serving. `fill`: to be filled under this identity. An unfinished one of
    the same uuid keeps the generation that it was begun with. `source`: to be read; it has to exist. `moved_to`: where
    its fleet may have moved to already, by a copy that was cut off at its end."""

    fill: StoreIdentity | None = None
    source: bool = False
    moved_to: str = ""


SERVE = Opening()


def check(meta: Mapping[str, Any], where: str, opening: Opening) -> None:
    """Raises Unfinished, Moved, Occupied when the store with the record `meta` may not be opened for this."""
    filling = FILLING in meta
    if opening.fill is not None:
        if not filling:
            raise Occupied(f"{where} holds a fleet already (uuid {meta['uuid']}); use an empty one")
        if meta["uuid"] != opening.fill.uuid:
            raise Occupied(
                f"{where} is half filled with another fleet (uuid {meta['uuid']}); use an empty one"
            )
    elif filling:
        raise Unfinished(
            f"{where} is half filled: a restore or a copy into it was cut off; run the same command again, it goes on"
            " where it stopped"
        )
    elif meta.get(MOVED, opening.moved_to) != opening.moved_to:
        raise Moved(
            f"the fleet of {where} moved to {meta[MOVED]}; serve it from there. To go back, take a backup there and"
            " restore it into a new data directory"
        )
