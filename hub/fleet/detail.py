"""One node as the fleet page shows it: its Node, what the owner of its slot tells of its session and documents, and events.

Whoever may get the Node sees it; of its documents those whose objects he may list, and events where he may list those.
What his rights do not show is counted.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import orjson

from hub import errors
from hub.access.authorizer import Authorizer
from hub.api.validation.names import dns_subdomain
from hub.fleet import telling
from hub.fleet.following import view_of
from hub.fleet.states import STATES, state_of
from hub.gateway import Gateway
from hub.objects import (
    CONFIGMAPS,
    DEVICES,
    ENDPOINTSLICES,
    EVENTS,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
    slot_of_partition,
)
from hub.registry import Object, Objects, Registry
from security.rbac import Request, User

log = logging.getLogger(__name__)

OWNER_S: Final = 5.0
"""How long the owner of the node's slot is waited for."""
TOLD_BYTES_MAX: Final = 2 << 20
EVENTS_MAX: Final = 50
EVENTS_LOOKED_AT_MAX: Final = 500
EVENTS_NAMESPACE: Final = "default"
"""Where events of what is in no namespace lie."""
EVENT_MARK_CHARS: Final = 17
NAME_CHARS_MAX: Final = 253

Elsewhere = Callable[[str, str], AsyncIterator[bytes]]
"""What another replica tells of a node of its own under a path (`Relay.open_document`)."""

_KINDS: Final = {res.singular: res for res in (PODS, CONFIGMAPS, SECRETS, SERVICES, ENDPOINTSLICES, DEVICES)}
_NODE_FIELDS: Final = ("capacity", "allocatable", "addresses", "nodeInfo", "conditions")
_EVENT_FIELDS: Final = ("type", "reason", "message", "count", "firstTimestamp", "lastTimestamp")


class Details:
    """See the module. `registry`: of events, None where they are elsewhere. `elsewhere`: None where there is no bus."""

    def __init__(
        self,
        objects: Objects,
        gateway: Gateway,
        authorizer: Authorizer,
        registry: Registry | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._objects = objects
        self._gateway = gateway
        self._authorizer = authorizer
        self._registry = registry
        self._elsewhere = elsewhere

    async def of(self, name: str, user: User) -> dict[str, Any]:
        """As JSON. Raises NotFound, ServiceUnavailable."""
        # An API server's path is made of it; the own store holds no other names.
        if (
            not 0 < len(name) <= NAME_CHARS_MAX
            or "/" in name
            or (self._registry is None and dns_subdomain(name))
        ):
            raise errors.NotFound(NODES.resource, name[:NAME_CHARS_MAX])
        stored = await self._objects.get(NODES, "", name)
        node, state = stored.obj(), STATES[state_of(view_of(stored.raw))]
        slot = slot_of_partition(stored.partition)
        route = self._gateway.ownership.route(slot) if slot is not None else None
        meta, status = node["metadata"], node.get("status") or {}
        found = {
            "name": name,
            "uid": meta.get("uid"),
            "state": state,
            "created": meta.get("creationTimestamp"),
            "labels": meta.get("labels") or {},
            "unschedulable": bool((node.get("spec") or {}).get("unschedulable")),
            "taints": (node.get("spec") or {}).get("taints") or [],
            **{field: status.get(field) for field in _NODE_FIELDS},
            "slot": slot,
            "owner": route.owner.member if route is not None else None,
            "epoch": route.owner.epoch if route is not None else None,
        }
        told, events = await asyncio.gather(self._told(name), self._events(name, meta.get("uid"), user))
        return {**found, **self._shown(told, user), **events}

    async def _told(self, name: str) -> dict[str, Any]:
        """What the owner tells; `unknown` says why it does not."""
        try:
            if self._gateway.node_entry(name) is not None:
                return telling.told(self._gateway, name)
            if self._elsewhere is None:
                raise errors.ServiceUnavailable(
                    "another replica serves this node, and there is no bus between them; open the page there"
                )
            async with (
                asyncio.timeout(OWNER_S),
                contextlib.aclosing(
                    self._elsewhere(name, telling.PATH)  # type: ignore[type-var]
                ) as chunks,
            ):
                parts = bytearray()
                async for chunk in chunks:
                    parts += chunk
                    if len(parts) > TOLD_BYTES_MAX:
                        raise errors.InternalError(f"the owner tells more than {TOLD_BYTES_MAX} bytes")
            told: dict[str, Any] = orjson.loads(parts)
            return told
        except errors.ApiError as failure:
            why = failure.message
            if failure.code == errors.NotFound.code:
                why = "the replica that serves this node is of an older release"
        except TimeoutError:
            why = f"the replica that serves this node did not answer within {OWNER_S:g} s"
        return {"unknown": why}

    def _shown(self, told: dict[str, Any], user: User) -> dict[str, Any]:
        """`told` with those of the documents that the user may see."""
        documents = told.get("documents")
        if documents is None:
            return told
        may: dict[tuple[str, str], bool] = {}
        shown = []
        for document in documents:
            kind, namespace = _whose(document["key"])
            if (kind, namespace) not in may:
                may[kind, namespace] = self._may_list(user, _KINDS.get(kind), namespace)
            if may[kind, namespace]:
                shown.append(document)
        return {**told, "documents": shown, "documentsHidden": len(documents) - len(shown)}

    def _may_list(self, user: User, res: Resource | None, namespace: str) -> bool:
        # What is no object's (the agent's configuration) goes with the Node.
        asked = Request("list", res.group, res.resource, namespace=namespace) if res is not None else None
        return asked is None or bool(self._authorizer.reason(user, asked))

    async def _events(self, name: str, uid: str | None, user: User) -> dict[str, Any]:
        if self._registry is None:
            return {"events": None, "eventsHidden": "events are with the API server that has the objects"}
        if not self._authorizer.reason(
            user, Request("list", "", EVENTS.resource, namespace=EVENTS_NAMESPACE)
        ):
            return {"events": None, "eventsHidden": f"you have no right to list events in {EVENTS_NAMESPACE}"}
        # Events about an object are called as it is, with a mark behind a dot.
        stem = f"{name[: NAME_CHARS_MAX - EVENT_MARK_CHARS]}."
        prefix = self._registry.list_prefix(EVENTS, EVENTS_NAMESPACE) + stem
        listing = await self._registry.page(
            EVENTS, EVENTS_NAMESPACE, limit=EVENTS_LOOKED_AT_MAX, start_key=prefix
        )
        found: list[Object] = []
        for stored in listing.items:
            if not stored.key.startswith(prefix):
                break
            event = orjson.loads(stored.raw)
            about = event.get("involvedObject") or {}
            if about.get("kind") == NODES.kind and about.get("uid", uid) == uid:
                found.append({field: event.get(field) for field in _EVENT_FIELDS})
        found.sort(
            key=lambda event: str(event["lastTimestamp"] or event["firstTimestamp"] or ""), reverse=True
        )
        return {"events": found[:EVENTS_MAX]}


def _whose(key: str) -> tuple[str, str]:
    """(kind, namespace) of a document's key; ("", "") of one that is no object's."""
    kind, _, rest = key.partition("/")
    return (kind, rest.partition("/")[0]) if kind in _KINDS else ("", "")
