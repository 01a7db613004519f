"""All watches of one store on one etcd watch stream: reassembled, merged by revision, resumed after any loss.

A watch of several ranges is one etcd watch for each of them, merged by `shards.merge`. Whatever ends the stream (a
member killed, frozen or without leader), every range is asked for again from the revision after its last one.

Progress is asked for by hand, since etcd 3.4 tells none by itself. Before 3.4.25 and 3.5.8 an answer may overtake
events (etcd issue 15220): those in the member's send queue, and those of a watch that is catching up. So an answer of
revision R counts only once the queue of its time is known to have come: a newer event came after it, or nothing did
until the next answer. For a watch that started in the past, and after a burst that may have overflown the queue, it
counts only after a while. An event that comes after all behind progress ends its watch with Compacted: its consumer
lists again, and nothing is lost in silence.
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Sequence

import grpc.aio
from google.protobuf.message import DecodeError, Message

from shards.etcd.client import Client
from shards.etcd.messages import event_of
from shards.etcd.proto import kv_pb2
from shards.etcd.proto import rpc_pb2 as pb
from shards.etcd.stream import Stream, StreamEnded
from shards.kv import Compacted, HistoryLost, StoreError, Unavailable, WatchBatch
from shards.merge import MergeFull, RevisionMerge

log = logging.getLogger(__name__)

IDLE_S = 0.5
"""How often a quiet stream is asked for progress."""
SETTLE_S = 0.25
"""A member looks at watches that start in the past every 0.1 s, and answers of progress do not wait for them."""
SETTLE_MAX_S = 2.0
"""For so long at most a live watch is put off by one burst after another: under a load that does not end it would never
be told of progress. An event that comes too late then has its consumer list again."""
CATCH_UP_MAX_S = 10.0
"""The same where events out of order show that the member lets watches catch up."""
WARY_S = 60.0
"""For so long after an event that came too late, two answers with nothing between them prove something only after
QUIET_S without events: a member that cannot send what is queued takes answers and events in any order."""
QUIET_S = 0.05
BURST_MAX = 512
"""Messages of events between an answer and its proof, half of what a member queues for a stream before it sets watches aside."""
ASK_AGAIN_S = 0.2
"""Later members give no answer while a watch is catching up."""
SILENT_S = 4.0
"""A stream that says nothing for so long, although asked, is left: its member is frozen."""
SILENT_MAX_S = 32.0
GAP_S = (0.002, 0.05)
"""First and longest pause between rounds of progress while something waits for them."""
RECONNECT_S = (0.05, 1.0)
BROADCAST = -1
"""The watch id of an answer of progress."""


class Subscription:
    """One watch as its consumer sees it: batches not taken yet, or why it ended."""

    def __init__(self, after: int, backlog_max: int, is_patient: bool) -> None:
        self.is_patient = is_patient
        self.merge: RevisionMerge[int] = RevisionMerge()
        self.ranges: dict[int, _Range] = {}
        self.credited = after
        self.settles_at: float | None = None
        """The loop's time from which answers of progress count; None until all ranges are there."""
        self.unsettled_at = 0.0
        """When it was last live and set aside."""
        self.missing = 0
        """Ranges that the member has not confirmed yet."""
        self.past = False
        """Did any start before the present?"""
        self.told = False
        self._backlog_max = backlog_max
        self._batches: list[WatchBatch] = []
        self._wake = asyncio.Event()
        self.failure: Exception | None = None

    def offer(self, batches: Sequence[WatchBatch]) -> None:
        for batch in batches:
            if not batch.events and self._batches and not self._batches[-1].events:
                self._batches[-1] = batch  # progress is worth one entry
                continue
            if batch.events and len(self._batches) >= self._backlog_max:
                self.fail(Compacted(self._batches[0].revision, batch.revision))
                return
            self._batches.append(batch)
        if self._batches:
            self._wake.set()

    def fail(self, failure: Exception) -> None:
        if self.failure is None:
            self.failure = failure
            self._batches.clear()
            self._wake.set()

    async def take(self) -> list[WatchBatch]:
        """All batches that are there, waiting for at least one. Raises what ended the watch."""
        while not self._batches:
            if self.failure is not None:
                raise self.failure
            self._wake.clear()
            await self._wake.wait()
        taken, self._batches = self._batches, []
        return taken


class _Range:
    """One etcd watch. `through`: its events up to this revision have been merged."""

    __slots__ = ("end", "fragments", "owner", "start", "through")

    def __init__(self, owner: Subscription, start: str, end: str, after: int) -> None:
        self.owner = owner
        self.start = start.encode()
        self.end = end.encode()
        self.through = after
        self.fragments: list[kv_pb2.Event] = []


class WatchStream:
    """`run` lives as long as the store; all calls are made on its event loop. `probe`: a key to read the store's
    revision with."""

    def __init__(self, client: Client, probe: str, *, backlog_max: int) -> None:
        self._client = client
        self._probe = probe.encode()
        self._backlog_max = backlog_max
        self._ids = itertools.count(1)
        self._ranges: dict[int, _Range] = {}
        self._subscriptions: set[Subscription] = set()
        self._unsettled: set[Subscription] = set()
        self._open: Stream | None = None
        self._used = asyncio.Event()
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        self._answer = (0, 0)
        """Of the last answer of progress: its revision, and how many messages of events had come before it."""
        self._messages = 0
        self._passes: dict[int, Subscription] = {}
        self._recent = (self._probe, 1)
        """A key and a revision at which it was written, the newest known; compacted does as well."""
        self._newest = 0
        """The highest revision of any event of this stream. The member's send queue is in order, so whatever was queued
        through an older revision has come before it."""
        self._want = 0
        self._credited = 0
        self._told_all = float("-inf")
        """When patient watches, too, were told of progress."""
        self._heard = 0.0
        self._heard_event = 0.0
        self._wary_until = 0.0
        self._patience_s = SILENT_S
        self._failing = False
        self.connects = 0
        """Streams that have been opened."""

    def subscribe(
        self, ranges: Sequence[tuple[str, str]], after: int, *, is_patient: bool = False
    ) -> Subscription:
        subscription = Subscription(after, self._backlog_max, is_patient)
        if self._client.lost is not None:
            subscription.fail(self._client.lost)
            return subscription
        for start, end in union(ranges):
            number = next(self._ids)
            subscription.merge.add(number, after)
            self._ranges[number] = subscription.ranges[number] = _Range(subscription, start, end, after)
        self._subscriptions.add(subscription)
        if self._open is not None:
            self._create(subscription)
        self._used.set()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Idempotent."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.discard(subscription)
        self._unsettled.discard(subscription)
        for number in subscription.ranges:
            del self._ranges[number]
            self._send(cancel_request=pb.WatchCancelRequest(watch_id=number))

    def want(self, revision: int) -> None:
        """Somebody will wait for watches to reach `revision`: ask for progress now."""
        if revision > self._credited and self._subscriptions:
            self._want = max(self._want, revision)
            self._wanted.set()

    def wrote(self, key: str, revision: int) -> None:
        """A key was put at `revision`."""
        if revision > self._recent[1]:
            self._recent = (key.encode(), revision)

    def fail(self, failure: Exception) -> None:
        """Ends all watches."""
        for subscription in list(self._subscriptions):
            self._end(subscription, failure)

    async def run(self) -> None:
        """Until cancelled, or until the store's history is lost."""
        pause_s = RECONNECT_S[0]
        while True:
            await self._used.wait()
            connects = self.connects
            try:
                await self._stream()
            except HistoryLost as lost:
                log.error("%s", lost)
                self.fail(lost)
                return
            except (StreamEnded, StoreError, grpc.aio.AioRpcError) as ended:
                if not self._failing:
                    self._failing = True
                    log.warning("the watch stream ended and is opened again: %s", _reason(ended))
            if self.connects > connects:
                pause_s = RECONNECT_S[0]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(2 * pause_s, RECONNECT_S[1])

    # -- one stream -------------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        """Opens a stream, asks for all ranges, and serves it until it ends."""
        # Tells a store that was restored, and waits for a quorum without holding a stream to a member that has none.
        await self._client.range(pb.RangeRequest(key=self._probe, keys_only=True))
        stream, leave = await self._client.watch_stream(self._message)
        self._unsettled.clear()
        self._passes.clear()
        self._newest = 0  # another member may be behind the last one
        self._open = stream
        for subscription in self._subscriptions:
            self._create(subscription)
        self.connects += 1
        self._heard = asyncio.get_running_loop().time()
        # Not a TaskGroup: one whose child fails while it is cancelled itself forgets the cancellation.
        asking = asyncio.ensure_future(self._ask())
        try:
            await asyncio.wait((asking, stream.ended), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
            raise StreamEnded(stream.ended.result())
        finally:
            self._open = None
            asking.cancel()
            stream.close()
            leave()
            await asyncio.gather(asking, stream.ended, return_exceptions=True)

    def _send(self, **request: Message) -> None:
        """Nothing is said where no stream is open: the next one begins anew."""
        if self._open is not None:
            self._open.send(pb.WatchRequest(**request).SerializeToString())

    def _create(self, subscription: Subscription) -> None:
        subscription.settles_at = None
        subscription.missing, subscription.past = len(subscription.ranges), False
        self._unsettled.add(subscription)
        subscription.unsettled_at = asyncio.get_running_loop().time()
        self._wanted.set()
        for number, watched in subscription.ranges.items():
            watched.fragments = []
            watched.through = max(watched.through, subscription.credited)
            request = pb.WatchCreateRequest(
                key=watched.start,
                range_end=watched.end,
                start_revision=watched.through + 1,
                prev_kv=True,
                fragment=True,
                watch_id=number,
            )
            self._send(create_request=request)

    def _message(self, data: bytes) -> None:
        try:
            response = pb.WatchResponse.FromString(data)
        except DecodeError as damaged:
            raise StreamEnded(f"the member sends what is no answer: {damaged}") from damaged
        self._heard = asyncio.get_running_loop().time()
        self._received(response, self._heard)

    def _received(self, response: pb.WatchResponse, now: float) -> None:
        watched = self._ranges.get(response.watch_id)
        if response.watch_id == BROADCAST and not response.canceled:
            self._answer = (response.header.revision, self._messages)
            self._answered.set()
        elif response.watch_id in self._passes:
            self._passed(response, now)
        elif watched is None:
            return  # cancelled meanwhile
        elif response.canceled:
            self._canceled(watched, response)
        elif response.created:
            self._created(watched, response.header.revision, now)
        else:
            self._messages += 1
            self._heard_event = now
            watched.fragments.extend(response.events)
            if not response.fragment:
                events, watched.fragments = watched.fragments, []
                if events:
                    self._in_order(watched.owner, events, now)
                self._events(response.watch_id, watched, events, now)

    def _created(self, watched: _Range, revision: int, now: float) -> None:
        if self._failing:
            self._failing = False
            log.info("the watch stream is open again")
        owner = watched.owner
        owner.missing -= 1
        # A watch that starts after the present is live at once; another has to catch up first.
        owner.past = owner.past or revision > watched.through
        if owner.missing:
            return
        if not owner.past:
            owner.settles_at = now
            return
        # The member takes all watches that catch up in one pass: this one, made after them, tells when it was.
        number = next(self._ids)
        self._passes[number] = owner
        key, at = self._recent
        self._send(create_request=pb.WatchCreateRequest(key=key, start_revision=at, watch_id=number))

    def _passed(self, response: pb.WatchResponse, now: float) -> None:
        """A pass over the watches that catch up was made: it told a past event, or that this is compacted."""
        if response.created and not response.canceled:
            return
        owner = self._passes.pop(response.watch_id)
        owner.settles_at = max(owner.settles_at or 0.0, now + SETTLE_S)
        if not response.canceled:
            self._send(cancel_request=pb.WatchCancelRequest(watch_id=response.watch_id))

    def _canceled(self, watched: _Range, response: pb.WatchResponse) -> None:
        reason = response.cancel_reason or "no reason given"
        if response.compact_revision:
            self._end(watched.owner, Compacted(watched.through, response.compact_revision))
        elif "no leader" in reason:
            raise StreamEnded(reason)
        else:
            self._end(watched.owner, Unavailable(f"etcd ended the watch: {reason}"))

    def _in_order(self, owner: Subscription, events: "list[kv_pb2.Event]", now: float) -> None:
        """The send queue is in order: an event that is older than another's before it was not in it, but comes from
        a watch that the member lets catch up. Others may be in the same state."""
        if events[0].kv.mod_revision < self._newest:
            if owner not in self._unsettled:
                self._settle_anew(now, CATCH_UP_MAX_S)
            elif owner.settles_at is not None:
                self._put_off(owner, now, CATCH_UP_MAX_S)
        self._newest = max(self._newest, events[-1].kv.mod_revision)
        if self._newest > self._recent[1]:
            self._recent = (events[-1].kv.key, events[-1].kv.mod_revision)

    def _events(self, number: int, watched: _Range, events: "list[kv_pb2.Event]", now: float) -> None:
        owner = watched.owner
        for revision, group in itertools.groupby(events, key=lambda e: e.kv.mod_revision):
            try:
                owner.offer(owner.merge.feed(number, revision, [event_of(e) for e in group]))
            except (ValueError, MergeFull) as failure:
                # Progress had overtaken the event (see above), or one range is too far behind the others.
                log.warning("a watch ends and its consumer lists again: %s", failure)
                if isinstance(failure, ValueError):
                    self._wary_until = now + WARY_S
                self._end(owner, Compacted(revision, max(revision, owner.credited) + 1))
                return
            watched.through = revision
            self._client.see(revision)
        if owner.failure is not None:
            self._end(owner, owner.failure)
        elif owner.merge.held:
            self.want(watched.through)

    def _end(self, subscription: Subscription, failure: Exception) -> None:
        subscription.fail(failure)
        self.unsubscribe(subscription)

    # -- progress ---------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._wanted.wait()
            self._wanted.clear()
            gap_s = GAP_S[0]
            target = older = None
            while self._subscriptions:
                asked = loop.time()
                latest = (*await self._round(), asked)
                target = target or latest[0]
                if older is None:
                    older = previous = latest
                    continue
                if self._newest > previous[0] or (latest[1] == previous[1] and self._is_quiet(loop.time())):
                    proven, older = previous, latest
                elif self._newest > older[0]:
                    proven, older = older, previous
                else:
                    proven = None
                if proven is not None:
                    if self._messages - proven[1] > BURST_MAX:
                        self._settle_anew(loop.time())
                    self._credit(proven[0], proven[2])
                previous = latest
                if self._credited >= max(self._want, target) and not self._unsettled:
                    break
                await asyncio.sleep(gap_s)
                gap_s = min(2 * gap_s, GAP_S[1])

    def _is_quiet(self, now: float) -> bool:
        """Does it prove something that nothing came between two answers?"""
        return now >= self._wary_until or now - self._heard_event >= QUIET_S

    def _settle_anew(self, now: float, most_s: float = SETTLE_MAX_S) -> None:
        """Watches may have been set aside by the member, to catch up later."""
        for subscription in self._subscriptions:
            if subscription.settles_at is not None:
                if subscription not in self._unsettled:
                    self._unsettled.add(subscription)
                    subscription.unsettled_at = now
                self._put_off(subscription, now, most_s)

    def _put_off(self, subscription: Subscription, now: float, most_s: float) -> None:
        at = min(now + SETTLE_S, subscription.unsettled_at + most_s)
        subscription.settles_at = max(subscription.settles_at or 0.0, at)

    async def _round(self) -> tuple[int, int]:
        """Asks until there is an answer, and gives it."""
        loop = asyncio.get_running_loop()
        asked, asks = loop.time(), 0
        self._answered.clear()
        while True:
            asks += 1
            self._send(progress_request=pb.WatchProgressRequest())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_AGAIN_S):
                    await self._answered.wait()
                return self._answer
            # Turns of this loop count as well: while it has no processor it hears nobody.
            silent_s = min(loop.time() - max(asked, self._heard), asks * ASK_AGAIN_S)
            if silent_s > (patience_s := self._patience_s):
                # It may be reading a long past for us: the next one is given longer, or none would ever finish.
                self._patience_s = min(2 * patience_s, SILENT_MAX_S)
                raise StreamEnded(f"the member has said nothing for {patience_s:.0f} s")

    def _credit(self, revision: int, asked: float) -> None:
        """All watches that were live when it was asked have progressed through `revision`."""
        # A replica has a thousand patient watches, and while any watch settles there are twenty answers a second.
        tells_all = asked - self._told_all >= IDLE_S / 2
        if tells_all:
            self._told_all = asked
        self._credited = max(self._credited, revision)
        self._patience_s = SILENT_S
        self._client.see(revision)
        for subscription in list(self._subscriptions):
            if subscription in self._unsettled:
                if subscription.settles_at is None or asked < subscription.settles_at:
                    continue
                self._unsettled.discard(subscription)
            if subscription.is_patient and subscription.told and not (tells_all or subscription.merge.held):
                continue
            if revision > subscription.credited:
                subscription.credited = revision
                subscription.offer(subscription.merge.progress_all(revision))
                subscription.told = True
            elif not subscription.told:
                subscription.offer([WatchBatch(subscription.merge.emitted, ())])
                subscription.told = True


def union(ranges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same keys in as few ranges as possible, which do not overlap."""
    joined: list[tuple[str, str]] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _reason(ended: BaseException) -> str:
    if isinstance(ended, grpc.aio.AioRpcError):
        return f"{ended.code().name}: {ended.details()}"
    return str(ended)
