"""Join tokens: who may become a node, and which one. [pure]

The hub stores a token's record (plain JSON; of the secret only a salted hash) and wraps `redeem` and `enrol` in one
compare-and-swap: read both records, call both, write both. Nothing here is random or knows the time.

Invariants: a node token names one key, a pool token at most `count`; the same key always gets the same name, so that
a lost answer costs nothing; a name that one key holds is never handed to another by a pool token; the tenant and
affinity come from the token, never from the request. A record stays below the store's bound (`POOL_COUNT_MAX`).
"""

import hashlib
import hmac
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from edgelite import jointoken
from security.errors import SecurityError
from security.identity import DEFAULT_TENANT, NAME_CHARS_MAX, IdentityError, NodeId, check_name

RECORD_FORMAT = 1
ENTROPY_BYTES = jointoken.ID_BYTES + jointoken.SECRET_BYTES + 16
NODE_TTL_S = 3600.0
POOL_TTL_S = 24 * 3600.0
TTL_S_MAX = 30 * 24 * 3600.0
POOL_COUNT_MAX = 4000  # 4000 x (64 + 253 + 6) bytes of key hash and name stay below an object's 1.45 MB
WAITING_S = 7 * 24 * 3600.0
"""How long after its token's end a machine that had redeemed it in time may wait to be approved."""
POOL_NAME_CHARS_MAX = NAME_CHARS_MAX - 17  # room for "-" and up to 16 digits


class TokenRequestError(SecurityError):
    """The token asked for cannot be made. The message names the field."""


class JoinRefused(SecurityError):
    """A join was refused. `reason` is CamelCase for machines; `retryable` whether the same request may succeed later.

    Reasons: TokenInvalid (also an unknown one), TokenExpired, TokenUsed, PoolExhausted, NameNotAllowed, NameInvalid,
    NameTaken, RejoinNotAllowed, SiteMismatch.
    """

    def __init__(self, reason: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What an operator asks for: either `node`, or `pool` with `count`."""

    trust_domain: str
    root_sha256: bytes
    """SHA-256 of the DER of the root that agents shall pin; 32 bytes."""
    node: str | None = None
    pool: str | None = None
    count: int = 1
    site: str | None = None
    """Becomes the affinity of the nodes; without one each node's own name does."""
    tenant: str = DEFAULT_TENANT
    ttl_s: float | None = None
    """Seconds; 1 h for a node and 24 h for a pool unless set; at most 30 days."""
    replace: bool = False
    """May its node take the place of one that has joined already? Only with `node`."""
    approval: bool = False
    """Do its nodes wait until an operator approves each?"""


def mint(request: TokenRequest, now: float, entropy: bytes) -> tuple[dict[str, Any], str]:
    """(record to store under its `id`, token text to hand out once). `entropy`: ENTROPY_BYTES random bytes.

    Raises TokenRequestError."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a token takes {ENTROPY_BYTES} bytes of entropy, got {len(entropy)}")
    ttl_s = _check(request)
    token_id = entropy[: jointoken.ID_BYTES].hex()
    secret = entropy[jointoken.ID_BYTES : jointoken.ID_BYTES + jointoken.SECRET_BYTES]
    salt = entropy[jointoken.ID_BYTES + jointoken.SECRET_BYTES :]
    record: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "id": token_id,
        "node": request.node,
        "pool": request.pool,
        "count": request.count,
        "site": request.site,
        "tenant": request.tenant,
        "trust_domain": request.trust_domain,
        "root": request.root_sha256.hex(),
        "created": now,
        "expires": now + ttl_s,
        "salt": salt.hex(),
        "hash": _secret_hash(salt, secret),
        "used": {},
    }
    for name, asked in (("replace", request.replace), ("approval", request.approval)):
        if asked:
            record[name] = True
    token = jointoken.JoinToken(token_id, secret, request.root_sha256, request.trust_domain)
    return record, token.text()


def unknown_token() -> JoinRefused:
    """The refusal for an id without a record: the same as for a wrong secret, so that ids cannot be probed."""
    return JoinRefused(
        "TokenInvalid", "the join token is not valid here: check that it was copied whole, or make a new one"
    )


def parse_token(text: str) -> jointoken.JoinToken:
    """The parts of a token's text. Raises JoinRefused(TokenInvalid) on anything else."""
    try:
        return jointoken.parse(text)
    except jointoken.TokenError as e:
        raise JoinRefused("TokenInvalid", str(e)) from e


def redeem(
    record: Mapping[str, Any],
    secret: bytes,
    csr_key_sha256: str,
    wanted_name: str | None,
    now: float,
    taken: Container[str] = (),
    waits: bool = False,
) -> tuple[dict[str, Any], NodeId]:
    """(the record to store in its place, the identity granted). Raises JoinRefused and changes nothing.

    csr_key_sha256: hex SHA-256 of the request's SubjectPublicKeyInfo; taken: generated names to avoid, because
    `enrol` found them held by others; waits: whoever redeems waits for an operator, also where the token does not say so.
    The record is returned unchanged (equal) when the same key asks again.
    """
    if record.get("format") != RECORD_FORMAT:
        raise JoinRefused(
            "TokenInvalid", "the token was made by a newer hub; upgrade this one", retryable=True
        )
    if not hmac.compare_digest(_secret_hash(bytes.fromhex(record["salt"]), secret), record["hash"]):
        raise unknown_token()
    used: Mapping[str, str] = record["used"]
    name = used.get(csr_key_sha256)
    # Whoever has come in time and waits for an operator does not fail because the operator takes long.
    late_s = WAITING_S if name is not None and (waits or record.get("approval")) else 0.0
    if now >= record["expires"] + late_s:
        raise JoinRefused(
            "TokenExpired", "the join token has expired; make a new one with `cloudhub token create`"
        )
    if name is not None:
        if wanted_name not in (None, "", name):
            raise JoinRefused(
                "NameNotAllowed", f"this machine has joined as {name!r} already; do not ask for another name"
            )
        return dict(record), _node_id(record, name)
    name = _grant(record, csr_key_sha256, wanted_name or None, taken)
    return {**record, "used": {**used, csr_key_sha256: name}}, _node_id(record, name)


def enrol(
    existing: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    node: NodeId,
    csr_key_sha256: str,
    now: float,
    allowed: bool = False,
) -> dict[str, Any]:
    """The enrolment record of a node name, to be written together with the token's. Raises JoinRefused.

    `existing` is the record of that name, None when it is new. Another key takes its place (a machine was set up anew)
    only with explicit permission: the token was made for that, or the node is `allowed` to come back with a new key; all
    certificates from before `void_before` are void then. `exact`: no certificate of this enrolment begins before `enrolled`,
    in whole seconds. A pool token alone never takes a name over, and no token moves a
    node to another site or tenant, since the affinity is fixed at enrolment.
    """
    replaced = False
    if existing is not None:
        same_key = existing["key"] == csr_key_sha256
        if not same_key and record["pool"] is not None and not allowed:
            raise JoinRefused(
                "NameTaken", f"the name {node.node!r} belongs to another machine; choose another with --name"
            )
        if not same_key and not record.get("replace") and not allowed:
            raise JoinRefused(
                "RejoinNotAllowed",
                f"node {node.node!r} has joined already, with another key. If its machine was set up anew, make a token with"
                f" `cloudhub token create --node {node.node} --replace`, or allow it once:"
                f" `cloudhub node allow-rejoin {node.node}`",
            )
        if (existing["tenant"], existing["affinity"]) != (node.tenant, node.affinity):
            raise JoinRefused(
                "SiteMismatch",
                f"node {node.node!r} is enrolled in tenant {existing['tenant']!r} with affinity"
                f" {existing['affinity']!r}; make the token for these, or delete the node first",
            )
        if same_key:
            # With the token that counts from now on: another one may be revoked.
            return {**existing, "token": record["id"]}
        replaced = True
    made: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "node": node.node,
        "tenant": node.tenant,
        "affinity": node.affinity,
        "key": csr_key_sha256,
        "token": record["id"],
        "enrolled": now,
        "exact": True,
    }
    if replaced:
        made["void_before"] = now
    return made


def _check(request: TokenRequest) -> float:
    """The ttl in seconds of a request that is in order."""
    if (request.node is None) == (request.pool is None):
        raise TokenRequestError("a token is for a node or for a pool: give exactly one of node and pool")
    if len(request.root_sha256) != jointoken.ROOT_BYTES:
        raise TokenRequestError("root_sha256 must have 32 bytes")
    try:
        if request.node is not None:
            check_name("node", request.node)
        if request.pool is not None:
            check_name("pool", request.pool, POOL_NAME_CHARS_MAX)
        # Builds the identity to be granted, so that a token never fails on its own fields later.
        NodeId(request.trust_domain, request.tenant, request.site or "affinity", "node")
        if request.site is not None:
            check_name("site", request.site)
    except IdentityError as e:
        raise TokenRequestError(str(e)) from e
    if request.node is not None and request.count != 1:
        raise TokenRequestError("count: a node token is for one machine; use a pool for more")
    if request.replace and request.node is None:
        raise TokenRequestError("replace: goes with a node; a pool's token takes no place of another machine")
    if not 1 <= request.count <= POOL_COUNT_MAX:
        raise TokenRequestError(f"count must be 1 to {POOL_COUNT_MAX}; make several tokens for more nodes")
    default_s = NODE_TTL_S if request.node is not None else POOL_TTL_S
    ttl_s = default_s if request.ttl_s is None else request.ttl_s
    if not 0 < ttl_s <= TTL_S_MAX:
        raise TokenRequestError(f"ttl must be more than 0 and at most 30 days, got {ttl_s:g} s")
    return ttl_s


def _grant(record: Mapping[str, Any], key: str, wanted: str | None, taken: Container[str]) -> str:
    """The name for a key that comes for the first time."""
    used: Mapping[str, str] = record["used"]
    if record["node"] is not None:
        if wanted not in (None, record["node"]):
            raise JoinRefused(
                "NameNotAllowed",
                f"this token is for node {record['node']!r} only; --name goes with pool tokens",
            )
        if used:
            raise JoinRefused(
                "TokenUsed", "the join token was used by another machine; make a new one for this machine"
            )
        return str(record["node"])
    if len(used) >= record["count"]:
        raise JoinRefused(
            "PoolExhausted", f"all {record['count']} places of the pool token are taken; make a new token"
        )
    held = set(used.values())
    if wanted is None:
        for digits in (8, 12, 16):
            name = f"{record['pool']}-{key[:digits]}"
            if name not in held and name not in taken:
                return name
        raise JoinRefused("NameTaken", "no free name could be made for this machine; choose one with --name")
    try:
        check_name("node name", wanted)
    except IdentityError as e:
        raise JoinRefused("NameInvalid", str(e)) from e
    if wanted in held:
        raise JoinRefused(
            "NameTaken", f"the name {wanted!r} belongs to another machine; choose another with --name"
        )
    return wanted


def _node_id(record: Mapping[str, Any], name: str) -> NodeId:
    return NodeId(record["trust_domain"], record["tenant"], record["site"] or name, name)


def _secret_hash(salt: bytes, secret: bytes) -> str:
    # One round is enough: the secret has 192 random bits, there is nothing to guess.
    return hashlib.sha256(salt + secret).hexdigest()
