"""Events: written for the controllers, and removed when they are an hour old.

Events tell, they do not decide: one that cannot be written in its bounds is dropped and counted. None is written into
a namespace that is gone or going, which could else never be emptied.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from hub import errors
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.eventlog import EventLog, Pending
from hub.controllers.meta import rfc3339, seconds
from hub.informer import Delta, Informers
from hub.objects import EVENTS, NAMESPACES, Meta, Resource

TTL_S = 3600.0
SKEW_S = 60.0


def involved(res: Resource, about: Meta) -> Object:
    out: Object = {"kind": res.kind, "apiVersion": res.api_version, "name": about.name, "uid": about.uid}
    if about.namespace:
        out["namespace"] = about.namespace
    return out


def event_object(key: ObjectKey, pending: Pending, component: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": key[1], "namespace": key[0]},
        "involvedObject": involved(pending.res, pending.about),
        "reason": pending.reason,
        "message": pending.message,
        "source": {"component": component},
        "firstTimestamp": rfc3339(pending.first),
        "lastTimestamp": rfc3339(pending.last),
        "count": pending.count,
        "type": pending.type,
        "eventTime": None,
        "reportingComponent": component,
        "reportingInstance": "",
    }


def namespace_takes_objects(informers: Informers, namespace: str) -> bool:
    """The namespace exists and is not being deleted, as far as the cache knows."""
    entry = informers.of(NAMESPACES).cache.get("", namespace)
    return entry is not None and entry.meta.deletionTimestamp is None


class Events:
    """The recorder of one component. `context` is set by `start`, since the context carries its recorder."""

    def __init__(self, component: str) -> None:
        self.log = EventLog(component)
        self._context: Context | None = None
        self._driver: Controller[ObjectKey] | None = None

    def start(self, context: Context, name: str) -> Controller[ObjectKey]:
        """The driver that writes, called `name`; until it is there events are dropped."""
        self._context = context
        self._driver = Controller(name, context, self._write, kinds=(), workers=2)
        return self._driver

    def event(self, res: Resource, about: Meta, type_: str, reason: str, message: str) -> None:
        """Notes that `reason` happened to the object; written soon, counted when it repeats. `type_`: Normal or Warning."""
        if self._context is None or self._driver is None:
            self.log.dropped += 1
            return
        key = self.log.observe(res, about, type_, reason, message, self._context.clock.now())
        if key is not None:
            self._driver.queue.add(key)

    async def _write(self, key: ObjectKey, writer: Writer) -> float | None:
        assert self._context is not None
        pending = self.log.take(key)
        if pending is None:
            return None
        if not namespace_takes_objects(self._context.informers, key[0]):
            self.log.dropped += pending.count
            return None
        try:
            await self._store(key, pending, writer)
        except Exception:
            self.log.give_back(key, pending)
            raise
        return None

    async def _store(self, key: ObjectKey, pending: Pending, writer: Writer) -> None:
        assert self._context is not None
        registry = self._context.registry
        stored = await registry.find(EVENTS, *key)
        if stored is None:
            await writer.create(EVENTS, event_object(key, pending, self.log.component))
            return

        obj = stored.obj()
        obj["count"] = (obj.get("count") or 1) + pending.count
        obj["lastTimestamp"] = rfc3339(pending.last)
        obj["message"] = pending.message
        await writer.replace(EVENTS, stored, obj)


class EventTtl:
    """Removes events that were stored and last occurred more than TTL_S ago, one by one."""

    kinds = (EVENTS,)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[ObjectKey] = Controller("event-ttl", context, self._sync, kinds=(EVENTS,))

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if delta.type == "ADDED":
            self._driver.queue.add(delta.entry.key)

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        entry = self._context.informers.of(EVENTS).cache.get(*key)
        if entry is None:
            return None
        left = self._left_s(entry.meta.creationTimestamp, entry.note)
        if left > 0:
            return left
        stored = await self._context.registry.find(EVENTS, *key)
        if stored is None:
            return None
        obj = stored.obj()
        left = self._left_s(obj["metadata"].get("creationTimestamp"), occurred(obj))
        if left > 0:
            return left
        if obj["metadata"].get("finalizers"):
            return None  # whoever set them removes the event
        try:
            await writer.remove(EVENTS, stored)
        except errors.NotFound:
            return None
        return None

    def _left_s(self, created: str | None, occurred_at: float) -> float:
        now = self._context.clock.now()
        return last_seen(seconds(created) or 0.0, occurred_at, now) + TTL_S - now


def keep_event(view: Any, raw: bytes) -> tuple[Any, float]:
    """What the cache keeps of an Event beside its view: when it last occurred. [pure]"""
    return view, occurred(orjson.loads(raw))


def last_seen(created: float, occurred: float, now: float) -> float:
    """Unix seconds from which an event's TTL counts: its last occurrence, unless the clock of the machine that saw it is
    off. Then it is when the event was stored: a board without a clock reports from 1970, and a wrong one from 2099."""
    if occurred > now + SKEW_S:
        return created
    return max(occurred, created) if created <= now else occurred


def occurred(event: Object) -> float:
    """Unix seconds of the last occurrence, as the event says; 0.0 where it does not. [pure]"""
    series = event.get("series") or {}
    for text in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
    ):
        found = seconds(text)
        if found is not None:
            return found
    return 0.0
