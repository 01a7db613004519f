"""All edge Nodes of the cluster for the fleet page: listed, then watched, while somebody looks."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from hub import errors
from hub.fleet.following import RETRY_S, Step, Steps, view_of
from hub.fleet.states import Row, row_of
from hub.kubernetes.answers import WatchEvent, revision_of
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import EDGE_SELECTOR, node_head_of
from hub.objects import partition_of_slot

log = logging.getLogger(__name__)

PATH: Final = "/api/v1/nodes"


async def watched(client: KubeClient, slots: int) -> Steps:
    """`slots`: how many there are."""
    edge = {"labelSelector": EDGE_SELECTOR}
    revision = 0
    async with aclosing(client.list(PATH, edge)) as pages:
        async for page in pages:
            revision = revision_of(page.metadata.resourceVersion)
            yield Step(revision, _rows(page.items or (), slots), [], not page.metadata.next)
            await asyncio.sleep(0)
    while True:
        # A server ends a watch in order from time to time; what it has lost is Expired.
        query = {**edge, "resourceVersion": str(revision), "allowWatchBookmarks": "true"}
        try:
            async with aclosing(client.watch_batches(PATH, query)) as batches:
                async for events in batches:
                    step = _step(events, revision, slots)
                    revision = step.revision
                    yield step
        except (errors.ServiceUnavailable, errors.TooManyRequests) as failure:
            log.info("the fleet page does not follow the API server now: %s", failure)
            await asyncio.sleep(RETRY_S)


def _step(events: Sequence[WatchEvent], revision: int, slots: int) -> Step:
    there: dict[str, msgspec.Raw | None] = {}
    for event in events:
        meta = node_head_of(event.object).metadata
        revision = max(revision, meta.revision)
        if event.type != "BOOKMARK":
            there[meta.name] = event.object if event.type != "DELETED" else None
    put = _rows([raw for raw in there.values() if raw is not None], slots)
    return Step(revision, put, [name for name, raw in there.items() if raw is None], True)


def _rows(items: Iterable[msgspec.Raw], slots: int) -> list[tuple[str, Row]]:
    rows = []
    for raw in items:
        head = node_head_of(raw)
        rows.append((head.metadata.name, row_of(view_of(raw), partition_of_slot(head.slot(slots)))))
    return rows
