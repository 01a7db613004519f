"""What the scheduler and the controllers keep of a Pod: fewer fields, equal values once, and a note. [pure]"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Generic, TypeVar

import msgspec
import orjson

from hub.controllers.capacity import Load, load_of
from hub.controllers.meta import FINISHED
from hub.controllers.scheduling import Demand, demand_of
from hub.objects import Condition, Meta, OwnerReference, PodSpecView, PodStatusView, PodView

T = TypeVar("T")
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""The one annotation of a Pod that a controller reads."""
SHARED_MAX = 50_000
"""Different values of one sort."""
RECENT = 256
"""Different values of a sort of which nearly each pod may have its own, but those that come together the same."""


@dataclass(frozen=True, slots=True)
class PodNote:
    """`was_there`: the pod shows that its node existed, since the scheduler bound it or the node has reported on it; noted
    for the controllers alone. `load`: what it takes where it is bound, None once it has ended. `demand`: what it wants,
    only while it is not bound; `gated`: its scheduling gates are not all open."""

    was_there: bool
    load: Load | None
    demand: Demand | None
    gated: bool

    @property
    def pinned(self) -> str:
        """The node that the pod's affinity pins it to, "" for none; only while it is not bound."""
        return (self.demand.pinned() or "") if self.demand is not None else ""


class _Status(msgspec.Struct):
    startTime: str | None = None


class _Pod(msgspec.Struct):
    status: _Status | None = None


_decode = msgspec.json.Decoder(_Pod).decode


class Shared(Generic[T]):
    """Equal values as one object: those of many pods are alike. Bounded: when it is full it begins anew."""

    def __init__(self) -> None:
        self._held: dict[Hashable, T] = {}

    def of(self, key: Hashable, value: T) -> T:
        if len(self._held) >= SHARED_MAX:
            self._held.clear()
        return self._held.setdefault(key, value)


_labels: Shared[dict[str, str]] = Shared()
_notes: Shared[PodNote] = Shared()
_owners: Shared[tuple[OwnerReference, ...]] = Shared()


@lru_cache(maxsize=RECENT)
def _on(node: str, scheduler: str) -> PodSpecView:
    """One object for all pods of a node: a list has them beside each other."""
    return PodSpecView(intern(node), intern(scheduler))


@lru_cache(maxsize=RECENT)
def _status(phase: str, ready: str | None, since: str | None) -> PodStatusView:
    """`ready`: the state of the condition Ready, None where there is none. Pods that are started together become ready in
    the same second."""
    if ready is None:
        return PodStatusView(phase)
    return PodStatusView(phase, (Condition("Ready", ready, lastTransitionTime=since),))


@lru_cache(maxsize=RECENT)
def _time(text: str) -> str:
    """Equal times as one string: many pods are made in one second."""
    return text


def keep_scheduled(view: PodView, raw: bytes) -> tuple[PodView, PodNote]:
    """What the scheduler keeps of a Pod: who and where it is, and what it takes where it runs, or what it wants."""
    meta, phase = view.metadata, view.status.phase
    slim = PodView(
        Meta(
            name=intern(meta.name),
            namespace=intern(meta.namespace),
            uid=intern(meta.uid),
            deletionTimestamp=meta.deletionTimestamp,
        ),
        _on(view.spec.nodeName, view.spec.schedulerName),
        _status(phase, None, None),
    )
    return slim, _note(view, raw, False)


def keep_pod(view: PodView, raw: bytes) -> tuple[PodView, PodNote]:
    """What the controllers keep of a Pod, and all that the scheduler does. Of its conditions only Ready: the others are in
    the note, or in the store."""
    meta, conditions = view.metadata, view.status.conditions or ()
    refs = meta.ownerReferences
    held = meta.annotations or {}
    ready = next(((c.status, c.lastTransitionTime) for c in conditions if c.type == "Ready"), (None, None))
    slim = PodView(
        msgspec.structs.replace(
            meta,
            name=intern(meta.name),
            namespace=intern(meta.namespace),
            uid=intern(meta.uid),
            creationTimestamp=_time(meta.creationTimestamp),
            annotations={DELETION_COST: held[DELETION_COST]} if DELETION_COST in held else None,
            labels=meta.labels and _labels.of(tuple(meta.labels.items()), meta.labels),
            ownerReferences=refs and _owners.of(refs, refs),
        ),
        _on(view.spec.nodeName, view.spec.schedulerName),
        _status(view.status.phase, *ready),
    )
    scheduled = any(c.type == "PodScheduled" and c.status == "True" for c in conditions)
    return slim, _note(view, raw, scheduled or bool((_decode(raw).status or _Status()).startTime))


def _note(view: PodView, raw: bytes, was_there: bool) -> PodNote:
    """Of bound pods nearly all have one of a few."""
    if not view.spec.nodeName:
        gated = b'"schedulingGates"' in raw and bool(orjson.loads(raw)["spec"].get("schedulingGates"))
        return PodNote(was_there, None, demand_of(raw), gated)
    if view.status.phase in FINISHED:
        return _notes.of(was_there, PodNote(was_there, None, None, False))
    load = load_of(raw)
    kind = was_there, tuple(sorted(load.requests.items())), load.ports, load.scored
    return _notes.of(kind, PodNote(was_there, load, None, False))
