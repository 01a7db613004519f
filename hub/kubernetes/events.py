"""Events of edge nodes on their way into a Kubernetes API server: aggregated, and at a bounded rate.

An API server keeps every Event for an hour, in the store that it serves all else from; a fleet whose pods crash must not
fill it. As client-go's correlator does: the same again raises the count of the Event that is there; the same reason with
ever other messages becomes one that says so; who says too much about one object is not heard for a while. What is not
heard is refused for good (TooManyRequests), so that nothing waits behind it at the edge.

An Event keeps its deterministic name, so that a report that comes again after a lost answer is not stored twice; a count
that was raised without an answer may be one too high. Bounds: KEYS_MAX series are remembered, the eldest is forgotten.

Source: k8s.io/client-go/tools/record (EventCorrelator and its defaults).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from hub import errors
from hub.kubernetes.pacing import Bucket
from hub.kubernetes.patches import MERGE_PATCH, path_of
from hub.kubernetes.registry import Api
from hub.objects import EVENTS

Object = dict[str, Any]
Key = tuple[str, ...]
T = TypeVar("T")

KEYS_MAX: Final = 4096
COMBINED: Final = "(combined from similar events): "


@dataclass(frozen=True, slots=True)
class EventLimits:
    """per_second, burst: of all Events of this replica; more wait. at_once: requests under way, so that an API server that
    answers slowly is not kept busy with Events alone. object_burst, object_every_s: of one reporter about one
    object, at once and then one every so often; more are refused. similar_max: other messages for the same reason in
    window_s, before they are combined; the same message is counted as long as it comes within window_s."""

    per_second: float = 20.0
    burst: int = 100
    at_once: int = 8
    object_burst: int = 25
    object_every_s: float = 300.0
    similar_max: int = 10
    window_s: float = 600.0


@dataclass(slots=True)
class _Series:
    """An Event that is stored, or about to be (`name` is "" then). Writes of one series follow each other."""

    name: str = ""
    count: int = 0
    seen: float = 0.0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Events:
    """See the module: `KubeRegistry.events`."""

    def __init__(
        self,
        api: Api,
        limits: EventLimits | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.limits = limits or EventLimits()
        self.created = 0
        self.counted = 0
        self.refused = 0
        self._api = api
        self._now, self._sleep = now, sleep
        self._bucket = Bucket(self.limits.per_second, self.limits.burst)
        self._at_once = asyncio.Semaphore(self.limits.at_once)
        self._series: OrderedDict[Key, _Series] = OrderedDict()
        self._similar: OrderedDict[Key, tuple[float, set[int]]] = OrderedDict()
        self._spam: OrderedDict[Key, Bucket] = OrderedDict()

    async def write(self, event: Object, before: Callable[[], None]) -> int:
        """Stores an Event, or raises the count of one; returns the revision. Raises TooManyRequests when too much is said
        about this object, AlreadyExists, and what the API server says."""
        about = _about(event)
        now = self._now()
        spam = _kept(
            self._spam, about, lambda: Bucket(1 / self.limits.object_every_s, self.limits.object_burst)
        )
        if not spam.free(now):
            self.refused += 1
            raise errors.TooManyRequests("too many events about this object", retry_after_s=0)
        key = self._key(event, about, now)
        series = _kept(self._series, key, _Series)
        async with series.writing:
            wait_s = self._bucket.take(self._now())
            if wait_s:
                await self._sleep(wait_s)
            try:
                async with self._at_once:
                    revision = await self._store(series, event, before)
            except errors.TooManyRequests as throttled:  # the API server's; not for good, as ours are
                raise errors.ServiceUnavailable(throttled.message) from throttled
            series.seen = self._now()
            spam.take(series.seen)  # only now: what is tried again must not count twice
            return revision

    async def _store(self, series: _Series, event: Object, before: Callable[[], None]) -> int:
        if series.name and self._now() - series.seen < self.limits.window_s:
            revision = await self._again(series, event, before)
            if revision is not None:
                return revision
        return await self._create(series, event, before)

    def _key(self, event: Object, about: Key, now: float) -> Key:
        """The series of an event. From the message on which is one too many for its reason, the message is combined."""
        kind = (*about, event["type"], event["reason"], event["involvedObject"].get("fieldPath", ""))
        since, messages = _kept(self._similar, kind, lambda: (now, set()))
        if now - since > self.limits.window_s:
            messages = set()
            self._similar[kind] = (now, messages)
        if len(messages) < self.limits.similar_max or hash(event["message"]) in messages:
            messages.add(hash(event["message"]))
            return (*kind, event["message"])
        event["message"] = (COMBINED + event["message"])[:1024]
        return (*kind, COMBINED)

    async def _again(self, series: _Series, event: Object, before: Callable[[], None]) -> int | None:
        """Raises the count; None when the Event is gone."""
        count = series.count + int(event.get("count") or 1)
        body = {"count": count, "lastTimestamp": event["lastTimestamp"], "message": event["message"]}
        path = path_of(EVENTS, event["metadata"]["namespace"], series.name)
        try:
            _, raw = await self._api.request(
                "PATCH", path, body=body, content_type=MERGE_PATCH, before=before
            )
        except errors.NotFound:
            return None  # Events last an hour
        series.count = count
        self.counted += 1
        return _revision(raw)

    async def _create(self, series: _Series, event: Object, before: Callable[[], None]) -> int:
        path = path_of(EVENTS, event["metadata"]["namespace"])
        _, raw = await self._api.request("POST", path, body=event, before=before)
        series.name, series.count = event["metadata"]["name"], int(event.get("count") or 1)
        self.created += 1
        return _revision(raw)


def _about(event: Object) -> Key:
    involved, source = event["involvedObject"], event.get("source") or {}
    return (
        source.get("component", ""),
        source.get("host", ""),
        involved.get("kind", ""),
        event["metadata"]["namespace"],
        involved.get("name", ""),
        involved.get("uid", ""),
    )


def _kept(held: OrderedDict[Key, T], key: Key, make: Callable[[], T]) -> T:
    """The value of a key, made where there is none; the one that was asked for longest ago makes room."""
    if key not in held:
        held[key] = make()
        if len(held) > KEYS_MAX:
            held.popitem(last=False)
    held.move_to_end(key)
    return held[key]


def _revision(raw: bytes) -> int:
    return int(orjson.loads(raw)["metadata"].get("resourceVersion") or 0)
