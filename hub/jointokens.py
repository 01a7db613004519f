"""How a join token lies in the store. [pure]

The object is a JoinToken: `spec` as the client gave it, `status.expires` and `status.redeemed` for people to read, and
`status.record`: what `security.join` minted and redeems (the secret is in it only as a salted hash). The record is
not part of the API: `conceal` takes it out of every answer, and the token's text is in the answer to its creation
alone.
"""

from collections.abc import Mapping
from typing import Any, Final

from security.identity import DEFAULT_TENANT
from security.join import TokenRequest

Object = dict[str, Any]
RECORD: Final = "record"


def request(spec: Mapping[str, Any], trust_domain: str, root_sha256: bytes) -> TokenRequest:
    """What `security.join.mint` is asked for by a JoinToken's spec. Raises TokenRequestError."""
    return TokenRequest(
        trust_domain,
        root_sha256,
        node=spec.get("node"),
        pool=spec.get("pool"),
        count=spec.get("count", 1),
        site=spec.get("site"),
        tenant=spec.get("tenant") or DEFAULT_TENANT,
        ttl_s=spec.get("ttlSeconds"),
        replace=spec.get("replace", False),
        approval=spec.get("approval", False),
    )


def with_record(obj: Object, record: Object) -> Object:
    """The object as it is stored, with `record` in place of an earlier one."""
    return {**obj, "status": {**obj.get("status", {}), RECORD: record}}


def record(obj: Object) -> Object | None:
    """The record of a stored object."""
    found = obj.get("status", {}).get(RECORD)
    return found if isinstance(found, dict) else None


def conceal(obj: Object) -> Object:
    """The object as clients see it."""
    status = obj.get("status")
    if not status or RECORD not in status:
        return obj
    return {**obj, "status": {k: v for k, v in status.items() if k != RECORD}}
