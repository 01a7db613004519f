"""Tokens of service accounts, requested for the nodes that ask for them.

A node says which volumes of which of its pods need a token; for whom, for how long and for which audience is read from the
Pod that is bound to it, never from what the node sent (I5). The token goes out as a document of its own kind and is kept
nowhere here: it is part of no digest, and a node that lacks one asks again. So a hub that has just taken over a slot
requests nothing that its nodes already hold.

Bounds: REQUESTS_AT_ONCE and WAITING_MAX of this replica, WANTS_MAX of one pod.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson

from edgelite.tokens import SECONDS_DEFAULT, token_key
from hub import errors
from hub.documents import split_pod_key
from security.frames import Entry

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

log = logging.getLogger(__name__)

REQUESTS_AT_ONCE: Final = 16
WAITING_MAX: Final = 2000
WANTS_MAX: Final = 64
REASON_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a token is asked for: `audience` "" is the API server's own, `seconds` its life."""

    namespace: str
    service_account: str
    pod: str
    uid: str
    audience: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token; `until`: Unix seconds."""

    text: str
    until: float


Issue = Callable[[Wanted], Awaitable[Token]]
"""Raises ApiError."""


class _Want(msgspec.Struct, array_like=True, frozen=True):
    volume: Annotated[str, msgspec.Meta(max_length=253)]
    source: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


class _Report(msgspec.Struct, frozen=True):
    """The body of a `token` entry."""

    want: Annotated[list[_Want], msgspec.Meta(max_length=WANTS_MAX)]


_decode = msgspec.json.Decoder(_Report).decode


class Tokens:
    """See the module. `issue`: set by whoever issues tokens here, the hub itself or an API server; None before."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.issue: Issue | None = None
        self._waiting = 0
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)

    def take(self, peer: "Peer", entry: Entry) -> None:
        """A `token` entry, about a pod that is bound to the peer. Raises MsgspecError for what is none."""
        wants = _decode(entry.b).want
        pod = self._pod(entry.k)
        if self.issue is None:
            self._refuse(peer, entry, "Unsupported: nothing issues tokens at this hub")
        elif pod is None:
            self._refuse(peer, entry, "obsolete")
        elif self._waiting >= WAITING_MAX:
            self._refuse(peer, entry, f"TooManyRequests: {WAITING_MAX} requests for tokens are waiting here")
        else:
            self._waiting += 1
            self._gateway.serve(
                peer, self._serve(peer, entry, pod, wants, self.issue), f"tokens of {entry.k}"
            )

    def _pod(self, key: str) -> dict[str, Any] | None:
        parts = split_pod_key(key)
        held = self._gateway.pod_entry(parts[0], parts[1]) if parts is not None else None
        if parts is None or held is None or held.meta.uid != parts[2]:
            return None
        return dict(held.obj())

    async def _serve(
        self, peer: "Peer", entry: Entry, pod: dict[str, Any], wants: list[_Want], issue: Issue
    ) -> None:
        try:
            for want in wants:
                await self._request(peer, wanted_of(pod, want.volume, want.source), issue)
        except errors.ApiError as error:
            log.warning("no token for %s: %s", entry.k, error.message)
            self._refuse(peer, entry, f"{error.reason}: {error.message}")
        else:
            self._gateway.answers.note(peer, entry.n, 0)
        finally:
            self._waiting -= 1

    async def _request(self, peer: "Peer", wanted: Wanted, issue: Issue) -> None:
        async with self._turns:
            if peer.session is None or peer.conn.owner is None:
                return  # it asks again when it is back
            began = self._gateway.wall()
            token = await issue(wanted)
        document = {
            "kind": "Token",
            "uid": wanted.uid,
            "audience": wanted.audience,
            "seconds": wanted.seconds,
            "token": token.text,
            "from": began,
            "until": token.until,
        }
        session = peer.session
        # Looked at again: the request took its time.
        if session is not None and peer.conn.owner is not None and self._gateway.slots.may_act(peer.slot):
            key = token_key(wanted.uid, wanted.audience, wanted.seconds)
            self._gateway.perform(peer, session.token(key, orjson.dumps(document)))

    def _refuse(self, peer: "Peer", entry: Entry, reason: str) -> None:
        self._gateway.answers.note(peer, entry.n, 0, reason[:REASON_CHARS_MAX])


def wanted_of(pod: dict[str, Any], volume: str, source: int) -> Wanted:
    """What that source of the pod's volume asks for. Raises BadRequest when it asks for no token."""
    spec, meta = pod["spec"], pod["metadata"]
    for found in spec.get("volumes") or ():
        sources = (found.get("projected") or {}).get("sources") or ()
        if found.get("name") == volume and source < len(sources):
            wanted = sources[source].get("serviceAccountToken")
            if wanted is not None:
                return Wanted(
                    meta["namespace"],
                    spec.get("serviceAccountName") or "default",
                    meta["name"],
                    meta["uid"],
                    wanted.get("audience") or "",
                    wanted.get("expirationSeconds") or SECONDS_DEFAULT,
                )
    raise errors.BadRequest(f'source {source} of volume "{volume}" is no token of a service account')
