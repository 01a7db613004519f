"""The store of several replicas: etcd. Its revisions, transactions, leases and history are the contract's own.

Every read is linearizable, unless a stale one is asked for. Watches share one stream (`shards.etcd.watching`); a transaction whose answer was lost is
looked up before it is called ambiguous (`shards.etcd.outcome`). Compaction is asked for by the hub, not by etcd.
"""

import asyncio
import json
import math
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from hub.store import marks
from hub.store.stretches import WIDE, Stretches, common_of, stretch_end
from hub.store.watchers import BACKLOG_MAX
from shards.etcd.client import Client, Tls
from shards.etcd.messages import key_value
from shards.etcd.outcome import carry_out, read_keys
from shards.etcd.proto import rpc_pb2 as pb
from shards.etcd.watching import WatchStream
from shards.kv import (
    FORMAT_VERSION,
    Absent,
    Compacted,
    Compare,
    Delete,
    FormatUnknown,
    FutureRevision,
    KeyValue,
    Page,
    Put,
    StoreIdentity,
    TxnResult,
    Unavailable,
    WatchBatch,
    check_txn,
)

KEEPALIVE_S = 3.0
"""All attempts of one keepalive: it has to be known early whether a lease may still be counted on."""
ROOT = "/cloudhub/default/"


class EtcdStore:
    """See `shards.kv.Store`. Make one with `open`, on the event loop that will use it."""

    def __init__(self, client: Client, identity: StoreIdentity, root: str) -> None:
        self._client = client
        self._identity = identity
        self._meta = (root + "meta").encode()
        self._stretches = Stretches()
        self._watches = WatchStream(client, root + "meta", backlog_max=BACKLOG_MAX)
        self._running = asyncio.get_running_loop().create_task(self._watches.run(), name="etcd watches")
        self._running.add_done_callback(self._stopped)

    @classmethod
    async def open(
        cls,
        endpoints: Sequence[str],
        *,
        slots: int = 1024,
        root: str = ROOT,
        tls: Tls | None = None,
        opening: marks.Opening = marks.SERVE,
    ) -> "EtcdStore":
        """`endpoints`: host:port of the members; `root`: what all keys of the cell begin with, ending in `/`. `slots`
        counts at the first start only. Raises FormatUnknown, Unavailable, Ambiguous, and what `marks.check` does."""
        client = Client(endpoints, tls)
        try:
            return cls(client, await _open_identity(client, root + "meta", slots, opening), root)
        except BaseException:
            await client.close()
            raise

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    async def revision(self) -> int:
        answer = await self._client.range(pb.RangeRequest(key=self._meta, keys_only=True))
        revision = int(answer.header.revision)
        self._watches.want(revision)
        return revision

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        answer = await self._client.range(pb.RangeRequest(key=key.encode(), serializable=stale))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        found, _ = await read_keys(self._client, keys)
        return [found[key] for key in keys]

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        items: list[KeyValue] = []
        at, common = start, self._stretches.at(start)
        while True:
            upto = stretch_end(common, end)
            request = pb.RangeRequest(
                key=at.encode(),
                range_end=upto.encode(),
                limit=limit - len(items),
                revision=revision or 0,
                serializable=stale,
            )
            try:
                answer = await self._client.range(request)
            except grpc.aio.AioRpcError as failure:
                raise _translate(failure, revision or 0) from failure
            revision = revision or int(answer.header.revision)
            items += map(key_value, answer.kvs)
            if answer.more:
                next_key = items[-1].key + "\0"
                if common or answer.count > WIDE:
                    self._stretches.page_ends(next_key, common_of(items))
                return Page(items, revision, next_key)
            if upto == end:
                return Page(items, revision, None)
            at, common = upto, common[:-1]
            if len(items) == limit:
                self._stretches.page_ends(at, common)
                return Page(items, revision, at)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        check_txn(compares, ops)
        try:
            result = await carry_out(self._client, compares, ops)
        except grpc.aio.AioRpcError as failure:
            raise _translate(failure, 0) from failure
        if result.succeeded and (put := next((op for op in ops if isinstance(op, Put)), None)):
            self._watches.wrote(put.key, result.revision)
        return result

    async def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        if after > self._client.head:
            # etcd would wait for that revision, and hide that the store has gone back behind it.
            revision = await self.revision()
            if after > revision:
                raise FutureRevision(f"revision {after} is not reached yet, the store is at {revision}")
        if self._client.closed:
            raise Unavailable("the store is closed")
        subscription = self._watches.subscribe(ranges, after, is_patient=patient)
        try:
            if 0 < after < self._client.head:
                # A watch from just before a compacted deletion is not refused by etcd 3.4, and does not tell of it.
                # One key is enough to ask about, and etcd would count all of a range.
                await self.page(ranges[0][0], ranges[0][0] + "\0", revision=after, limit=1)
            while True:
                for batch in await subscription.take():
                    yield batch
        finally:
            self._watches.unsubscribe(subscription)

    async def grant(self, ttl_s: float) -> int:
        """etcd counts whole seconds: `ttl_s` is rounded up. It may give more than was asked for."""
        lease = secrets.randbelow(2**63 - 1) + 1
        await self._client.grant(lease, math.ceil(ttl_s))
        return lease

    async def keepalive(self, lease: int) -> float:
        return float(await self._client.keepalive(lease, KEEPALIVE_S))

    async def revoke(self, lease: int) -> None:
        await self._client.revoke(lease)

    async def compact(self, revision: int) -> None:
        try:
            await self._client.compact(revision)
        except grpc.aio.AioRpcError as failure:
            translated = _translate(failure, revision)
            if not isinstance(translated, Compacted):
                raise translated from failure

    async def finish_filling(self) -> None:
        """Takes the mark away that keeps a store which is being filled from being served."""
        key = self._meta.decode()
        held = await self.get(key)
        if held is None:
            raise Unavailable(f"{key} was removed; does somebody delete the data?")
        meta, _ = _read_meta(held.value, key)
        if meta.pop(marks.FILLING, None) is not None:
            compares = [Compare(key, held.mod_revision)]
            if not (await self.txn(compares, [Put(key, json.dumps(meta).encode())])).succeeded:
                raise Unavailable(f"{key} was changed by somebody else; run the command again")

    async def close(self) -> None:
        if self._client.closed:
            return
        self._client.closed = True
        self._watches.fail(Unavailable("the store is closed"))
        self._running.cancel()
        try:
            await asyncio.gather(self._running, return_exceptions=True)
        finally:
            await self._client.close()

    def _stopped(self, task: "asyncio.Task[None]") -> None:
        """No watch may hang because its stream has come to an unforeseen end."""
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._watches.fail(failure if isinstance(failure, Exception) else Unavailable(str(failure)))


async def _open_identity(client: Client, key: str, slots: int, opening: marks.Opening) -> StoreIdentity:
    for _ in range(2):
        answer = await client.range(pb.RangeRequest(key=key.encode()))
        if answer.kvs:
            meta, identity = _read_meta(bytes(answer.kvs[0].value), key)
            marks.check(meta, f"etcd at {','.join(client.endpoints)}", opening)
            return identity
        if opening.source:
            raise Absent(f"etcd at {','.join(client.endpoints)} holds no fleet")
        new = opening.fill or StoreIdentity(str(uuid.uuid4()), 1, FORMAT_VERSION, slots)
        made = {"uuid": new.uuid, "generation": new.generation, "format": new.format, "slots": new.slots}
        if opening.fill:
            made[marks.FILLING] = True
        # Whoever was first decides; the second round reads what stands.
        await carry_out(client, [Compare(key, 0)], [Put(key, json.dumps(made).encode())])
    raise Unavailable(f"{key} was made and removed again; does somebody delete the data?")


def _read_meta(value: bytes, key: str) -> tuple[dict[str, Any], StoreIdentity]:
    try:
        meta = json.loads(value)
        identity = StoreIdentity(
            str(meta["uuid"]), int(meta["generation"]), int(meta["format"]), int(meta["slots"])
        )
    except (ValueError, KeyError, TypeError) as failure:
        raise FormatUnknown(f"{key} is not what a hub writes: {value[:100]!r}") from failure
    if identity.format > FORMAT_VERSION:
        raise FormatUnknown(
            f"{key}: the data has format {identity.format}, this program knows up to {FORMAT_VERSION}; use the newer"
            " program, or restore a backup"
        )
    return meta, identity


def _translate(failure: grpc.aio.AioRpcError, revision: int) -> Exception:
    details = failure.details() or ""
    if failure.code() is grpc.StatusCode.OUT_OF_RANGE:
        if "compacted" in details:
            return Compacted(revision, revision + 1)
        return FutureRevision(f"revision {revision} is not reached yet: {details}")
    return Unavailable(f"etcd refuses: {failure.code().name}: {details}")
