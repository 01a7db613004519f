"""What only the owner of a node's slot can tell of it: its connection, where each of its documents stands, when it came
and went. Asked for by the fleet page, at this replica or, over the bus, at another one."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from hub import errors
from hub.documents import split_pod_key
from hub.peers import Peer

if TYPE_CHECKING:
    from hub.gateway import Gateway

PATH: Final = "cloudhub/session"
"""Beside the paths of a kubelet, under which replicas ask each other about nodes (`Relay.open_document`)."""
DOCUMENTS_MAX: Final = 1000
Documents = Callable[[str, str], AsyncIterator[bytes]]


class _Status(msgspec.Struct):
    phase: str = ""


class _Pod(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


_decode_pod: Final = msgspec.json.Decoder(_Pod).decode


def told(gateway: "Gateway", name: str) -> dict[str, Any]:
    """Of a node of this replica, as JSON. Raises ServiceUnavailable when this replica does not serve it."""
    if gateway.node_entry(name) is None:
        raise errors.ServiceUnavailable(f'node "{name}" is not served by this hub; ask again')
    peer = gateway.peers.get(name)
    documents = gateway.desired.of(name)
    listed = sorted(documents)[:DOCUMENTS_MAX]
    phases = _phases(gateway, name)
    return {
        "session": _session(gateway, peer) if peer is not None else None,
        "documents": [_document(peer, documents[key], phases) for key in listed],
        "documentsInAll": len(documents),
        "connections": [{"at": entry.at, "ended": entry.why or None} for entry in gateway.sessions.of(name)],
    }


def _session(gateway: "Gateway", peer: Peer) -> dict[str, Any]:
    """Times are seconds ago: this replica's clock is none that the browser knows."""
    now, wall, session, conn = gateway.now(), gateway.wall(), peer.session, peer.conn
    began = getattr(conn, "began", None)  # a relayed connection's beginning is another replica's to know
    return {
        "state": session.state if session is not None else "elsewhere",
        "address": conn.peername(),
        "connectedS": round(now - began, 1) if began is not None else None,
        "heardS": round(max(0.0, now - conn.heard), 1),
        "heartbeatS": gateway.config.heartbeat_s,
        "incarnation": peer.inc,
        "streams": len(peer.streams or ()),
        "backlogBytes": conn.backlog_bytes,
        "features": sorted(session.speaks) if session is not None else [],
        "certificate": {
            "issuer": peer.shown.issuer,
            "serial": peer.shown.serial,
            "endsS": round(peer.shown.ends - wall) if peer.shown.ends < float("inf") else None,
        },
    }


def _document(peer: Peer | None, document: Any, phases: Mapping[str, str]) -> dict[str, Any]:
    session = peer.session if peer is not None else None
    standing, why = ("away", "") if session is None else session.standing(document.key)
    pod = split_pod_key(document.key)
    return {
        "key": document.key,
        "version": document.version,
        "bytes": document.size,
        "standing": standing,
        "why": why,
        "phase": phases.get(pod[2], "") if pod is not None else "",
    }


def _phases(gateway: "Gateway", name: str) -> dict[str, str]:
    """Phases of the node's pods by UID."""
    entries = gateway.share.pods.cache.find("node", name)[:DOCUMENTS_MAX]
    return {entry.meta.uid: _decode_pod(entry.raw()).status.phase for entry in entries}


def telling(gateway: "Gateway", others: Documents | None) -> Documents:
    """What `FarEnd.documents` is asked by other replicas: PATH from here, and whatever `others` know."""

    async def document(node: str, path: str) -> AsyncIterator[bytes]:
        if path == PATH:
            yield orjson.dumps(told(gateway, node))
        elif others is not None:
            async for chunk in others(node, path):
                yield chunk
        else:
            raise errors.NotFound.no_such_path()

    return document
