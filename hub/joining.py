"""Joining: what peers without a certificate may do, and how they get one; renewal for those that have one.

JOIN is one redemption of a token (compare-and-swap on the JoinToken) and then the Node, made or taken over under the
same rules (`security.join.enrol`). A crash between the two costs nothing: the same key may ask again until the token
expires, and gets the same name. The enrolment record lies in the Node's annotation ENROLLED.

Bounds: JOINS_AT_ONCE redemptions run, JOINS_WAITING wait; more are told to come back.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
import orjson

from hub import errors
from hub.objects import JOINTOKENS, NODES, PREFIX, partition_of_slot
from hub.registry import Object, Registry
from hub.reports import new_node
from security import join
from security.ca import NODE_TTL_S, BadRequest, CertificateAuthority, request_key_sha256
from security.identity import NodeId, hub_dns_name
from security.join import JoinRefused
from shards.ring import slot_of

log = logging.getLogger(__name__)

ENROLLED: Final = f"{PREFIX}/enrolled"
JOINS_AT_ONCE: Final = 16
JOINS_WAITING: Final = 512
NAME_TRIES: Final = 4


class JoinBody(msgspec.Struct, frozen=True):
    """The body of JOIN."""

    token: Annotated[str, msgspec.Meta(max_length=512)]
    csr: Annotated[str, msgspec.Meta(max_length=8192)]
    name: Annotated[str, msgspec.Meta(max_length=253)] | None = None
    labels: Annotated[
        dict[Annotated[str, msgspec.Meta(max_length=317)], Annotated[str, msgspec.Meta(max_length=63)]],
        msgspec.Meta(max_length=64),
    ] = msgspec.field(default_factory=dict)


decode_join = msgspec.json.Decoder(JoinBody).decode


class Refused(Exception):
    """A join or renewal that is not granted: fields of the GOAWAY. `retry_s` None: do not come back by yourself."""

    def __init__(self, code: str, reason: str, message: str, retry_s: float | None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_s = retry_s


class Joining:
    """Grants identities. `advertise` is the address that agents shall use from then on, None: the one they have.
    `reached(revision)` returns when this replica's informers have seen that revision."""

    def __init__(
        self,
        registry: Registry,
        ca: CertificateAuthority,
        advertise: Callable[[], str | None],
        reached: Callable[[int], Awaitable[None]],
        now: Callable[[], float] = time.time,
        retry_s: Callable[[], float] = lambda: random.uniform(2.0, 10.0),  # noqa: S311 - spreads load, no secret
        node_ttl_s: float = NODE_TTL_S,
    ) -> None:
        self._registry = registry
        self._ca = ca
        self._advertise = advertise
        self._reached = reached
        self._now = now
        self._retry_s = retry_s
        self._node_ttl_s = node_ttl_s
        self._gate = asyncio.Semaphore(JOINS_AT_ONCE)
        self._spending = asyncio.Lock()
        """Machines with the same token would otherwise only make each other read it again."""
        self._waiting = 0
        self.granted = 0
        self.refused = 0

    def roots(self) -> list[str]:
        """The trust bundle, PEM."""
        return [self._ca.root_pem]

    def renew(self, identity: NodeId, csr: str) -> bytes:
        """The body of RENEWED. Raises Refused."""
        try:
            chain = self._ca.issue_node(csr, identity, self._now(), self._node_ttl_s)
        except BadRequest as bad:
            raise Refused("denied", "RequestInvalid", str(bad), None) from bad
        return orjson.dumps({"cert": chain, "bundle": self.roots()})

    async def join(self, body: bytes) -> bytes:
        """The body of JOINED. Raises Refused."""
        if self._waiting >= JOINS_WAITING:
            raise Refused("overload", "TooManyJoins", "many machines join at this moment", self._retry_s())
        self._waiting += 1
        try:
            async with self._gate:
                return await self._join(body)
        except Refused:
            self.refused += 1
            raise
        finally:
            self._waiting -= 1

    async def _join(self, body: bytes) -> bytes:
        try:
            wanted = decode_join(body)
            token = join.parse_token(wanted.token)
            key = request_key_sha256(wanted.csr)
            identity = await self._redeem(token.id, token.secret, key, wanted)
            chain = self._ca.issue_node(wanted.csr, identity, self._now(), self._node_ttl_s)
        except (msgspec.MsgspecError, UnicodeError) as malformed:
            raise Refused("protocol", "Malformed", f"JOIN is malformed: {malformed}", None) from malformed
        except BadRequest as bad:
            raise Refused("denied", "RequestInvalid", str(bad), None) from bad
        except JoinRefused as no:
            retry_s = self._retry_s() if no.retryable else None
            raise Refused("denied", no.reason, no.message, retry_s) from no
        except errors.ApiError as failure:
            log.warning("a join could not be stored: %s", failure)
            text = f"the hub cannot store it now: {failure.message}"
            raise Refused("overload", "Unavailable", text, self._retry_s()) from failure
        self.granted += 1
        log.info("node %s joined with token %s", identity.node, token.id)
        answer: dict[str, Any] = {
            "cert": chain,
            "bundle": self.roots(),
            "node": identity.node,
            "trust_domain": identity.trust_domain,
            "hub": hub_dns_name(identity.trust_domain),
            "edge": self._advertise(),
        }
        return orjson.dumps(answer)

    async def _redeem(self, token_id: str, secret: bytes, key: str, wanted: JoinBody) -> NodeId:
        """Token, then Node. Names that turn out to be taken by another machine are avoided in the next try."""
        taken: list[str] = []
        for _ in range(NAME_TRIES):
            record, identity = await self._peek(token_id, secret, key, wanted.name, taken)
            try:
                await self._check_name(record, identity, key)
            except JoinRefused:
                if wanted.name or record["pool"] is None or key in record["used"]:
                    raise
                taken.append(identity.node)
                continue
            record, identity = await self._spend(token_id, secret, key, wanted.name, taken)
            await self._enrol(record, identity, key, wanted)
            return identity
        raise JoinRefused("NameTaken", "no free name could be made for this machine; choose one with --name")

    async def _peek(
        self, token_id: str, secret: bytes, key: str, name: str | None, taken: Sequence[str]
    ) -> tuple[Object, NodeId]:
        stored = await self._registry.find(JOINTOKENS, "", token_id)
        record = _record(stored.obj()) if stored is not None else None
        if record is None:
            raise join.unknown_token()
        _, identity = join.redeem(record, secret, key, name, self._now(), taken)
        return record, identity

    async def _check_name(self, record: Object, identity: NodeId, key: str) -> None:
        node = await self._registry.find(NODES, "", identity.node)
        if node is not None:
            join.enrol(_enrolled(node.obj(), record, identity), record, identity, key, self._now())

    async def _spend(
        self, token_id: str, secret: bytes, key: str, name: str | None, taken: Sequence[str]
    ) -> tuple[Object, NodeId]:
        granted: list[tuple[Object, NodeId]] = []

        def redeem(obj: Object) -> Object | None:
            record = _record(obj)
            if record is None:
                raise join.unknown_token()
            new, identity = join.redeem(record, secret, key, name, self._now(), taken)
            granted[:] = [(new, identity)]
            if new == record:
                return None
            obj["status"] = {**obj["status"], "record": new, "redeemed": len(new["used"])}
            return obj

        try:
            async with self._spending:
                await self._registry.mutate(JOINTOKENS, "", token_id, redeem)
        except errors.NotFound:
            raise join.unknown_token() from None
        return granted[0]

    async def _enrol(self, record: Object, identity: NodeId, key: str, wanted: JoinBody) -> None:
        pool = str(record["pool"] or "")
        node = new_node(identity, pool=pool, labels=wanted.labels)
        _set_enrolled(node, join.enrol(None, record, identity, key, self._now()))
        try:
            stored = await self._registry.create(NODES, node)
        except errors.AlreadyExists:

            def enrol(obj: Object) -> Object | None:
                new = join.enrol(_enrolled(obj, record, identity), record, identity, key, self._now())
                _set_enrolled(obj, new)
                labels = {**node["metadata"]["labels"], **(obj["metadata"].get("labels") or {})}
                obj["metadata"]["labels"] = labels
                conditions = obj.setdefault("status", {}).get("conditions") or []
                obj["status"]["conditions"] = [c for c in conditions if c["type"] != "Unconfirmed"]
                return obj

            stored = await self._registry.mutate(NODES, "", identity.node, enrol)
        slot = slot_of(identity.affinity, self._registry.store.identity.slots)
        if stored.partition != partition_of_slot(slot):
            raise JoinRefused(
                "SiteMismatch",
                f"the Node {identity.node!r} was made for another site; delete it or correct its label"
                f" {PREFIX}/site, then join again",
            )
        # The agent connects at once; the Node has to be known here by then.
        await self._reached(stored.revision)


def _record(token: Object) -> Object | None:
    """What `security.join` minted; the API hides it."""
    record = (token.get("status") or {}).get("record")
    return record if isinstance(record, dict) else None


def _enrolled(node: Object, token: Object, identity: NodeId) -> Object | None:
    """The enrolment record of a Node, None when it has none and the token names it. Raises JoinRefused: a pool's token
    takes no Node that exists already, for whoever it belongs to may come back."""
    text = (node["metadata"].get("annotations") or {}).get(ENROLLED)
    if text is None:
        if token["pool"] is not None:
            raise JoinRefused(
                "NameTaken", f"a Node {identity.node!r} exists already; choose another with --name"
            )
        return None
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as damaged:
        raise JoinRefused(
            "NameTaken",
            f"the Node {identity.node!r} has a damaged annotation {ENROLLED}; remove it, then join again",
        ) from damaged
    return record if isinstance(record, dict) else None


def _set_enrolled(node: Object, record: Object) -> None:
    annotations = node["metadata"].setdefault("annotations", {})
    annotations[ENROLLED] = orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()
