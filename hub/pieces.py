"""Pieces of a release of the agent, for the nodes that ask for them.

A node says how much of its release it has; which release that is, and where its bytes are, is read from its Node, never from what the
node sent (I5). A piece goes out as a document that is no part of the desired state: what is lost with a connection is asked for again.

Bounds: PIECE_BYTES_MAX and one piece at a time of a node, READS_AT_ONCE and WAITING_MAX of this replica, CHUNKS_KEPT in memory.
"""

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from edgelite.desired import PIECE
from edgelite.updateplan import SIZE_MAX, UpdateError
from hub import errors
from hub.objects import CONFIGMAPS
from hub.releases import CHUNK_BYTES, KEY, Wanted, chunk_name, chunk_of, wanted
from security.frames import Entry

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

PIECE_BYTES_MAX: Final = 64 << 10
READS_AT_ONCE: Final = 2
WAITING_MAX: Final = 2000
CHUNKS_KEPT: Final = 4
REASON_CHARS_MAX: Final = 256


class _Ask(msgspec.Struct, frozen=True):
    """The body of a `piece` entry: the hash of the release, where to begin, how much."""

    sha: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    at: Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]
    len: Annotated[int, msgspec.Meta(ge=1, le=SIZE_MAX)]


_decode = msgspec.json.Decoder(_Ask).decode


class Pieces:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._waiting: set[str] = set()
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._kept: OrderedDict[tuple[str, str, str, int], bytes] = OrderedDict()
        """Chunks by the release's hash and where they lie; those unused longest go first."""

    def take(self, peer: "Peer", entry: Entry) -> None:
        """A `piece` entry of a node. Raises MsgspecError for what is none."""
        ask = _decode(entry.b)
        assert peer.identity is not None
        node = peer.identity.node
        held = self._gateway.node_entry(node)
        try:
            found = wanted(held.meta.annotations) if held is not None else None
        except UpdateError:
            found = None
        if entry.k != KEY or found is None or found.sha256 != ask.sha or ask.at >= found.size:
            self._refuse(peer, entry, "obsolete")
        elif node in self._waiting or len(self._waiting) >= WAITING_MAX:
            self._refuse(peer, entry, f"TooManyRequests: {len(self._waiting)} nodes wait for pieces here")
        else:
            self._waiting.add(node)
            self._gateway.serve(peer, self._serve(peer, entry, found, ask), f"piece for {node}")

    async def _serve(self, peer: "Peer", entry: Entry, found: Wanted, ask: _Ask) -> None:
        assert peer.identity is not None
        try:
            async with self._turns:
                index, at = divmod(ask.at, CHUNK_BYTES)
                chunk = await self._chunk(found, index)
        except errors.ApiError as error:
            self._refuse(peer, entry, f"{error.reason}: {error.message}")
            return
        finally:
            self._waiting.discard(peer.identity.node)
        size = min(ask.len, PIECE_BYTES_MAX, found.size - ask.at)
        piece = chunk[at : at + size]
        session = peer.session
        # Looked at again: the read took its time.
        if session is None or peer.conn.owner is None or not self._gateway.slots.may_act(peer.slot):
            return
        key = f"{PIECE}{found.sha256[:16]}/{ask.at}"
        self._gateway.perform(peer, session.token(key, piece))
        self._gateway.answers.note(peer, entry.n, 0)

    async def _chunk(self, found: Wanted, index: int) -> bytes:
        """Raises ApiError."""
        key = (found.sha256, found.namespace, found.name, index)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        name = chunk_name(found.name, index)
        stored = await self._gateway.registry.get(CONFIGMAPS, found.namespace, name)
        chunk = chunk_of(stored.obj())
        if chunk is None:
            raise errors.NotFound(CONFIGMAPS.resource, name)
        if len(chunk) < min(CHUNK_BYTES, found.size - index * CHUNK_BYTES):
            raise errors.Conflict(CONFIGMAPS.resource, name, "it has fewer bytes than were signed")
        self._kept[key] = chunk
        while len(self._kept) > CHUNKS_KEPT:
            self._kept.popitem(last=False)
        return chunk

    def _refuse(self, peer: "Peer", entry: Entry, reason: str) -> None:
        self._gateway.answers.note(peer, entry.n, 0, reason[:REASON_CHARS_MAX])
