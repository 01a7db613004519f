"""Joining: what peers without a certificate may do, and how they get one; renewal for those that have one.

JOIN is one redemption of a token (compare-and-swap on the JoinToken) and then the Node, made or taken over under the
same rules (`security.join.enrol`). A crash between the two costs nothing: the same key may ask again until the token
expires, and gets the same name. The enrolment record lies in the Node's annotation ENROLLED. Where the token or this hub
asks for approval, the machine waits between the two (`hub.approvals`).

That the sender has the key it asks a certificate for is proved by the request's signature (`security.requests`), before
anything is read from the store.

A Node that has joined goes to another key only with permission: a token made with `replace`, or the Node's annotation
ALLOW_REJOIN, which holds once. What the old key was given is void from then on: `replaced` is told.

Bounds: JOINS_AT_ONCE redemptions run, JOINS_WAITING wait, and each source and token has a rate (`hub.joinlimits`); more
are told when to come back.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
import orjson

from edgelite.jointoken import JoinToken
from hub import errors
from hub.api.ages import unix
from hub.approvals import Approvals, Denied, NotYet
from hub.joinlimits import DEFAULT_RATES, JoinLimits, JoinRates
from hub.objects import JOINTOKENS, NODES, PREFIX, partition_of_slot
from hub.registry import Object, Objects
from hub.reports import ENROLLED, Enrolment, new_node
from hub.trust import Issuer
from observability.logs import about
from security import join
from security.ca import NODE_TTL_S
from security.identity import IdentityError, NodeId, hub_dns_name
from security.join import JoinRefused
from security.requests import BadRequest, request_key_sha256
from security.revocation import Revoked
from shards.ring import slot_of

log = logging.getLogger(__name__)

JOINS_AT_ONCE: Final = 16
JOINS_WAITING: Final = 512
NAME_TRIES: Final = 4
STAMP_S: Final = 1e-5
"""Moments that are nearer are one: stamps of revocations have microseconds."""
ALLOW_REJOIN: Final = f"{PREFIX}/allow-rejoin"
"""Annotation of a Node: until when (RFC 3339) a machine with another key may join as it, once."""


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
    `reached(slot, revision)` returns when this replica knows a Node of that slot and revision, if it serves the slot."""

    def __init__(
        self,
        registry: Objects,
        ca: Issuer,
        advertise: Callable[[], str | None],
        reached: Callable[[int, int], Awaitable[None]],
        now: Callable[[], float] = time.time,
        retry_s: Callable[[], float] = lambda: random.uniform(2.0, 10.0),  # noqa: S311 - spreads load, no secret
        node_ttl_s: float = NODE_TTL_S,
        *,
        approval: bool = False,
        rates: JoinRates = DEFAULT_RATES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`approval`: every node waits for an operator, whatever its token says; `clock`: of the rates."""
        self._registry = registry
        self._ca = ca
        self._advertise = advertise
        self._reached = reached
        self._now = now
        self._retry_s = retry_s
        self._node_ttl_s = node_ttl_s
        self._approval = approval
        self._approvals = Approvals(registry, now)
        self._limits = JoinLimits(rates)
        self._clock = clock
        self.replaced: Callable[[NodeId, float], Awaitable[None]] = _nobody
        """Told that all certificates of the node from before that moment (unix seconds) are void, before its new one is
        issued; told again when the same join is repeated."""
        self._gate = asyncio.Semaphore(JOINS_AT_ONCE)
        self._spending = asyncio.Lock()
        """Machines with the same token would otherwise only make each other read it again."""
        self._waiting = 0
        self.revoked = Revoked()
        """As `hub.gateway.Gateway.revoked`."""
        self.accepts: Callable[[NodeId], None] = lambda node: None
        """Raises IdentityError for a node that another trust domain speaks for."""
        self.granted = 0
        self.refused = 0
        self.limited = 0
        """Of the refused: for their rate."""
        self.pending = 0
        """Answers that an operator has not decided yet."""

    def roots(self) -> list[str]:
        """The trust bundle, PEM."""
        return self._ca.roots

    def renew(self, identity: NodeId, csr: str, not_before: float | None) -> tuple[str, bytes]:
        """The certificate, and the body of RENEWED. `not_before`: of the node's enrolment. Raises Refused."""
        try:
            chain = self._issue(csr, identity, not_before)
        except BadRequest as bad:
            raise Refused("denied", "RequestInvalid", str(bad), None) from bad
        return chain, orjson.dumps({"cert": chain, "bundle": self.roots()})

    def _issue(self, csr: str, identity: NodeId, not_before: float | None) -> str:
        """A certificate that no revocation of what the node had before refuses, and that is not taken for that of somebody who
        had the name before."""
        after = self.revoked.begins_after(identity.node)
        begins = max((at for at in (after, not_before) if at is not None), default=None)
        return self._ca.issue_node(csr, identity, self._now(), self._node_ttl_s, begins)

    async def join(self, body: bytes, source: str = "") -> bytes:
        """The body of JOINED. `source`: host:port of who asks. Raises Refused."""
        try:
            self.pace(source)
            if self._waiting >= JOINS_WAITING:
                raise Refused(
                    "overload", "TooManyJoins", "many machines join at this moment", self._retry_s()
                )
            self._waiting += 1
            try:
                async with self._gate:
                    return await self._join(body, source)
            finally:
                self._waiting -= 1
        except Refused as no:
            if no.code == "pending":
                self.pending += 1
            else:
                self.refused += 1
            if no.reason == "TokenInvalid":
                self._limits.invalid(source, self._clock())
            raise

    def pace(self, source: str) -> None:
        """Counts an attempt of `source`, host:port. Raises Refused when there were too many."""
        self._pace(self._limits.source(source, self._clock()))

    def _pace(self, wait_s: float) -> None:
        """Raises Refused when there is something to wait for."""
        if wait_s > 0:
            self.limited += 1
            text = "too many attempts to join from this address or with this token"
            # All that were refused together would else come back together.
            raise Refused("overload", "RateLimited", text, round(wait_s + self._retry_s() / 5, 2))

    async def _join(self, body: bytes, source: str) -> bytes:
        try:
            wanted = decode_join(body)
            token = join.parse_token(wanted.token)
            key = request_key_sha256(wanted.csr)
            chain, identity = await self._grant(token, key, wanted, source)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as malformed:
            raise Refused("protocol", "Malformed", f"JOIN is malformed: {malformed}", None) from malformed
        except BadRequest as bad:
            raise Refused("denied", "RequestInvalid", str(bad), None) from bad
        except NotYet as waits:
            raise Refused("pending", "PendingApproval", waits.message, self._spread(waits.retry_s)) from waits
        except Denied as no:
            raise Refused("denied", "Denied", str(no), None) from no
        except JoinRefused as no:
            retry_s = self._retry_s() if no.retryable else None
            raise Refused("denied", no.reason, no.message, retry_s) from no
        except errors.ApiError as failure:
            log.warning("a join could not be stored: %s", failure)
            text = f"the hub cannot store it now: {failure.message}"
            raise Refused("overload", "Unavailable", text, self._retry_s()) from failure
        self.granted += 1
        log.info("node %s joined with token %s", identity.node, token.id, extra=about(node=identity.node))
        answer: dict[str, Any] = {
            "cert": chain,
            "bundle": self.roots(),
            "node": identity.node,
            "trust_domain": identity.trust_domain,
            "hub": hub_dns_name(identity.trust_domain),
            "edge": self._advertise(),
        }
        return orjson.dumps(answer)

    def _spread(self, retry_s: float) -> float:
        """Up to a tenth later."""
        return round(retry_s * (1 + self._retry_s() / 100), 2)

    async def _grant(self, token: JoinToken, key: str, wanted: JoinBody, source: str) -> tuple[str, NodeId]:
        """(chain, identity): token, approval, Node, certificate, in this order."""
        record, identity = await self._redeem(token.id, token.secret, key, wanted)
        approved = ""
        if self._approval or record.get("approval"):
            approved = await self._approvals.require(
                identity, wanted.csr, key, record, source, self._node_ttl_s
            )
        enrolled = await self._enrol(record, identity, key, wanted)
        if "void_before" in enrolled:
            await self.replaced(identity, enrolled["void_before"])
        chain = self._issue(wanted.csr, identity, msgspec.convert(enrolled, Enrolment).not_before)
        if approved:
            await self._approvals.issued(approved, chain)
        return chain, identity

    async def _redeem(
        self, token_id: str, secret: bytes, key: str, wanted: JoinBody
    ) -> tuple[Object, NodeId]:
        """The token's record, and the identity that it grants. Names that turn out to be taken by another machine are
        avoided in the next try."""
        taken: list[str] = []
        for _ in range(NAME_TRIES):
            record, identity = await self._peek(token_id, secret, key, wanted.name, taken)
            self._pace(self._limits.token(token_id, self._clock()))
            try:
                await self._check_name(record, identity, key)
            except JoinRefused:
                if wanted.name or record["pool"] is None or key in record["used"]:
                    raise
                taken.append(identity.node)
                continue
            return await self._spend(token_id, secret, key, wanted.name, taken)
        raise JoinRefused("NameTaken", "no free name could be made for this machine; choose one with --name")

    async def _peek(
        self, token_id: str, secret: bytes, key: str, name: str | None, taken: Sequence[str]
    ) -> tuple[Object, NodeId]:
        stored = await self._registry.find(JOINTOKENS, "", token_id)
        record = _record(stored.obj()) if stored is not None else None
        if record is None:
            raise join.unknown_token()
        _, identity = join.redeem(record, secret, key, name, self._now(), taken, self._approval)
        await self._check_revoked(record, identity, key)
        return record, identity

    async def _check_revoked(self, record: Object, identity: NodeId, key: str) -> None:
        """Raises JoinRefused for a revoked token, and for a revoked node whose token was made before that; not for whoever
        has taken the node's place, by which the other was revoked."""
        entry = self.revoked.token(record["id"])
        if entry is not None:
            raise JoinRefused("TokenRevoked", "the join token was revoked; make a new one")
        after, begins = (
            self.revoked.tokens_after(identity.node),
            self.revoked.begins_after(identity.node),
        )
        if (
            after is not None
            and begins is not None
            and record["created"] < after
            and not await self._has_replaced(identity.node, key, begins)
        ):
            raise JoinRefused(
                "Revoked",
                f"node {identity.node!r} was revoked after this token had been made; make a new token for it once that is"
                " settled",
            )

    async def _has_replaced(self, node: str, key: str, after: float) -> bool:
        """Did this key take the node's place, and nothing has been revoked since? `after`: as of `begins_after`."""
        stored = await self._registry.find(NODES, "", node)
        held = (stored.obj()["metadata"].get("annotations") or {}).get(ENROLLED, "") if stored else ""
        try:
            record = orjson.loads(held)
        except orjson.JSONDecodeError:
            return False
        return bool(record.get("key") == key and record.get("void_before", 0.0) >= after - 1)

    async def _check_name(self, record: Object, identity: NodeId, key: str) -> None:
        try:
            self.accepts(identity)
        except IdentityError as no:
            raise JoinRefused("NameNotAllowed", str(no)) from no
        node = await self._registry.find(NODES, "", identity.node)
        if node is not None:
            self._take_over(node.obj(), record, identity, key)

    def _take_over(self, node: Object, record: Object, identity: NodeId, key: str) -> Object:
        """The enrolment record of a Node that exists, for this key. Raises JoinRefused."""
        until = unix((node["metadata"].get("annotations") or {}).get(ALLOW_REJOIN, ""))
        allowed = until is not None and self._now() < until
        held = _enrolled(node, record, identity, allowed)
        after = self.revoked.tokens_after(identity.node)
        if held is not None and after is not None and record["pool"] is None:
            # Whoever had the name was revoked, and the token was made after that: what could be lost is void already.
            # The revocation that its own enrolment made is as old as that, but for the rounding of its stamp.
            allowed = allowed or after - held.get("enrolled", 0.0) > STAMP_S
        return join.enrol(held, record, identity, key, self._now(), allowed)

    async def _spend(
        self, token_id: str, secret: bytes, key: str, name: str | None, taken: Sequence[str]
    ) -> tuple[Object, NodeId]:
        granted: list[tuple[Object, NodeId]] = []

        def redeem(obj: Object) -> Object | None:
            record = _record(obj)
            if record is None:
                raise join.unknown_token()
            new, identity = join.redeem(record, secret, key, name, self._now(), taken, self._approval)
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

    async def _enrol(self, record: Object, identity: NodeId, key: str, wanted: JoinBody) -> Object:
        """The Node, made or taken over; its enrolment record."""
        pool = str(record["pool"] or "")
        node = new_node(identity, pool=pool, labels=wanted.labels)
        enrolled = join.enrol(None, record, identity, key, self._now())
        _set_enrolled(node, enrolled)
        try:
            stored = await self._registry.create(NODES, node)
        except errors.AlreadyExists:

            def enrol(obj: Object) -> Object | None:
                nonlocal enrolled
                enrolled = self._take_over(obj, record, identity, key)
                if _set_enrolled(obj, enrolled):
                    obj["metadata"]["annotations"].pop(ALLOW_REJOIN, None)  # it holds for one key
                labels = {**node["metadata"]["labels"], **(obj["metadata"].get("labels") or {})}
                obj["metadata"]["labels"] = labels
                held = (obj.get("status") or {}).get("conditions") or []
                left = [c for c in held if c["type"] != "Unconfirmed"]
                if len(left) != len(held):  # all else of a status is for the slot's owner to write
                    obj["status"]["conditions"] = left
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
        await self._reached(slot, stored.revision)
        return enrolled


async def _nobody(node: NodeId, before: float) -> None:
    """Until there is who voids certificates."""


def _record(token: Object) -> Object | None:
    """What `security.join` minted; the API hides it."""
    record = (token.get("status") or {}).get("record")
    return record if isinstance(record, dict) else None


def _enrolled(node: Object, token: Object, identity: NodeId, allowed: bool) -> Object | None:
    """The enrolment record of a Node, None when nobody has joined as it and the token names it. Raises JoinRefused: a
    pool's token takes no Node that exists already, for whoever it belongs to may come back."""
    text = (node["metadata"].get("annotations") or {}).get(ENROLLED)
    if text is None:
        if (node.get("status") or {}).get("nodeInfo"):
            # It has come back to a hub that had lost it: somebody has its key, only nobody knows which.
            return {"key": "", "tenant": identity.tenant, "affinity": identity.affinity}
        if token["pool"] is not None and not allowed:
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


def _set_enrolled(node: Object, record: Object) -> bool:
    """Whether it is for another key than before."""
    annotations = node["metadata"].setdefault("annotations", {})
    text = orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()
    was, annotations[ENROLLED] = annotations.get(ENROLLED, ""), text
    return f'"key":"{record["key"]}"' not in was
