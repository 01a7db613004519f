"""All Nodes of the fleet from the hub's own store: listed at one revision, then followed.

Read past the caches: of a Node the fleet page keeps four fields, and nobody else here needs all Nodes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from hub import errors
from hub.fleet.states import Row, row_of
from hub.objects import NODES, NodeView, split_object_key
from hub.registry import Registry, Stored
from shards.kv import Compacted, FutureRevision, HistoryLost, StoreError, WatchBatch, prefix_end

log = logging.getLogger(__name__)

PAGE: Final = 500
"""Nodes of one step: 2 ms of the loop."""
RETRY_S: Final = 1.0

view_of: Final = msgspec.json.Decoder(NodeView).decode


@dataclass(frozen=True, slots=True)
class Step:
    """What is the case at `revision`: these nodes are there, those are gone. `is_listed`: the list is complete, or was."""

    revision: int
    put: list[tuple[str, Row]]
    gone: list[str]
    is_listed: bool


Steps = AsyncGenerator[Step, None]
"""All Nodes, and then their changes for ever. Raises ApiError: begin anew, at once where it is Expired."""


async def stored(registry: Registry) -> Steps:
    """See the module."""
    prefix = registry.keys.objects(NODES)
    listing = await registry.page(NODES, limit=PAGE)
    revision = listing.revision
    while True:
        yield Step(revision, [_row(found) for found in listing.items], [], listing.next_key is None)
        if listing.next_key is None:
            break
        await asyncio.sleep(0)
        listing = await registry.page(NODES, revision=revision, limit=PAGE, start_key=listing.next_key)
    while True:
        try:
            # Every implementation is a generator; the contract only promises an iterator.
            watch = registry.store.watch([(prefix, prefix_end(prefix))], revision)
            async with aclosing(cast("AsyncGenerator[WatchBatch]", watch)) as batches:
                async for batch in batches:
                    revision = batch.revision
                    yield _step(batch)
        except (Compacted, FutureRevision, HistoryLost) as gone:
            raise errors.Expired(str(gone)) from gone
        except StoreError as failure:
            # What is known stays, old as it is: `cloudhub status` and the page say that this replica is stale.
            log.info("the fleet page does not follow the store now: %s", failure)
            await asyncio.sleep(RETRY_S)


def _row(found: Stored) -> tuple[str, Row]:
    return split_object_key(found.key)[2], row_of(view_of(found.raw), found.partition)


def _step(batch: WatchBatch) -> Step:
    put: dict[str, Row] = {}
    gone: list[str] = []
    for event in batch.events:
        partition, _, name = split_object_key(event.key)
        if event.kv is not None:
            put[name] = row_of(view_of(event.kv.value), partition)
        else:
            gone.append(name)
    # One that is gone from a partition and there in another has moved.
    return Step(batch.revision, list(put.items()), [name for name in gone if name not in put], True)
