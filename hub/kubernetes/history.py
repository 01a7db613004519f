"""The history of a Kubernetes API server, as nodes are told of it (I9).

Objects' revisions are the API server's resourceVersions; claims lie in the hub's own store, with revisions of another
kind. A mark in that store (one key, beside the slots) holds which cluster was followed and the highest resourceVersion
that any replica had seen. A cluster that is at less was restored from a backup, another one is other data: then the mark's
generation is raised, which makes it another store to the nodes, and each is on hold until `cloudhub confirm`.

Invariant: the mark only rises. It lags behind by MARK_S at most, so what an API server forgot within its last seconds is
found by the nodes that had seen it: their revision lies beyond this hub's.
"""

import asyncio
import logging
import uuid as uuids
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from hub import errors
from shards.claims import SlotRecord
from shards.kv import Compare, HistoryLost, Put, Store, StoreError, Unavailable
from shards.ownership import Owned

log = logging.getLogger(__name__)

MARK_S = 10.0
TRIES = 8


class Mark(msgspec.Struct, frozen=True):
    """The value of the key: the UID of namespace kube-system, the highest resourceVersion, and how often it went back."""

    cluster: str
    revision: int
    generation: int = 1


def mark_key(root: str) -> str:
    return f"{root}source"


@dataclass(frozen=True, slots=True)
class _Read:
    mark: Mark | None
    mod_revision: int


class KubeHistory:
    """`hub.history.History` of one cluster. Made by `open`."""

    def __init__(self, store: Store, root: str, mark: Mark) -> None:
        self._store = store
        self._key = mark_key(root)
        self._mark = mark
        identity = store.identity
        self.uuid = str(uuids.uuid5(uuids.NAMESPACE_OID, f"{identity.uuid}/{mark.cluster}/{mark.generation}"))
        self.generation = identity.generation

    @classmethod
    async def open(cls, store: Store, root: str, cluster: str, revision: int) -> "KubeHistory":
        """Compares what the API server says of itself (`revision`: by a read through its quorum) with the mark. Raises
        StoreError when the own store does not take the mark."""
        key = mark_key(root)
        for _ in range(TRIES):
            held = await _read(store, key)
            mark = _judged(held.mark, cluster, revision)
            if mark == held.mark or await _write(store, key, mark, held.mod_revision):
                return cls(store, root, mark)
        raise Unavailable(
            "the mark of the Kubernetes cluster could not be written: other replicas change it all the time"
        )

    def reached(self, owned: Owned) -> int:
        return 0  # a claim's revision is the own store's

    def record(self, record: SlotRecord, head: int) -> SlotRecord:
        claims = tuple(msgspec.structs.replace(claim, first_revision=head) for claim in record.claims)
        return msgspec.structs.replace(record, claims=claims)

    async def run(self, now: Callable[[], Awaitable[int]]) -> None:
        """Raises the mark to the API server's revision, for ever. `now` reads that through its quorum; what it raises as
        ApiError is tried again. Raises HistoryLost when the cluster went back, or another replica has found so, or
        follows another one."""
        while True:
            await asyncio.sleep(MARK_S)
            try:
                await self.check(await now())
            except HistoryLost:
                raise
            except (StoreError, errors.ApiError) as failure:
                log.info("the mark of the Kubernetes cluster is not raised now: %s", failure)

    async def check(self, revision: int) -> None:
        """One turn of `run`, with what the API server has just said."""
        if revision < self._mark.revision:
            raise HistoryLost(
                f"the Kubernetes API server is at resourceVersion {revision}, and was at {self._mark.revision} before: it was"
                " restored from a backup, or is another one; start this hub again"
            )
        held = await _read(self._store, self._key)
        mark = held.mark
        if mark is None or (mark.cluster, mark.generation) != (self._mark.cluster, self._mark.generation):
            raise HistoryLost(
                "another replica has found that the Kubernetes cluster went back in its history, or is another one; start"
                " this hub again"
            )
        self._mark = mark
        if revision > mark.revision:
            raised = msgspec.structs.replace(mark, revision=revision)
            # Who loses the race against another replica tries again in a moment.
            if await _write(self._store, self._key, raised, held.mod_revision):
                self._mark = raised


def _judged(mark: Mark | None, cluster: str, revision: int) -> Mark:
    """The mark that holds from here on. [pure]"""
    if mark is None:
        return Mark(cluster, revision)
    if mark.cluster == cluster and mark.revision <= revision:
        return mark
    if mark.cluster == cluster:
        log.error(
            "the Kubernetes API server is at resourceVersion %d, and was at %d before: it was restored from a backup. "
            "Nothing is sent to nodes until `cloudhub confirm`",
            revision,
            mark.revision,
        )
    else:
        log.error(
            "this is another Kubernetes cluster (%s) than before (%s). Nothing is sent to nodes until `cloudhub confirm`",
            cluster,
            mark.cluster,
        )
    return Mark(cluster, revision, mark.generation + 1)


async def _read(store: Store, key: str) -> _Read:
    page = await store.page(key, key + "\0", limit=1)
    if not page.items:
        return _Read(None, 0)
    kv = page.items[0]
    return _Read(msgspec.json.decode(kv.value, type=Mark), kv.mod_revision)


async def _write(store: Store, key: str, mark: Mark, mod_revision: int) -> bool:
    result = await store.txn([Compare(key, mod_revision)], [Put(key, msgspec.json.encode(mark))])
    return result.succeeded
