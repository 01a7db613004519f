"""Nodes that wait until an operator approves them: one CertificateSigningRequest each, as Kubernetes' own.

A machine that has redeemed a token which asks for approval gets no certificate and no Node, but an object of
certificates.k8s.io/v1 with the signer cloudhub.dev/node, which `kubectl certificate approve` and `deny` decide. The
machine asks again with the same key and token, at any replica: all that waiting takes is in the store, or in the cluster
where objects live there. What was decided stays decided until the object is gone; then the machine waits anew.

Invariants: the identity comes from the token, as ever, and never from the object; what is approved is one key: the object's
name and its request hold it, and another key is another object. Bounds: an object takes a place of its token, so there
are no more of them than places; the hub removes old ones from its own store (`hub.controllers.enrolments`), a cluster
removes them itself.
"""

import base64
import binascii
import time
from collections.abc import Callable
from typing import Any, Final

from hub import errors
from hub.api.ages import unix
from hub.objects import CERTIFICATESIGNINGREQUESTS, PREFIX
from hub.registry import Object, Objects
from security.identity import NodeId
from security.requests import BadRequest, request_key_sha256

SIGNER: Final = f"{PREFIX}/node"
USER: Final = "system:cloudhub:join:"
"""With the token's id: who asks, in the hub's own store. A cluster names the hub's service account."""
GROUP: Final = "system:cloudhub:joining"
POLL_S_MIN: Final = 2.0
POLL_S_MAX: Final = 300.0
DURATION_S_MIN: Final = 600
"""Kubernetes takes no shorter one."""
_KEY_CHARS: Final = 16
_NAME_CHARS: Final = 253 - _KEY_CHARS - 1


class NotYet(Exception):
    """The node waits. `retry_s`: when to ask again; the longer it has waited, the later."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_s = retry_s


class Denied(Exception):
    """An operator has said no."""


def name_of(node: str, key_sha256: str) -> str:
    """What the object is called: by its node, for people, and by its key."""
    return f"{node[:_NAME_CHARS].rstrip('-.')}-{key_sha256[:_KEY_CHARS]}"


class Approvals:
    """See the module."""

    def __init__(self, registry: Objects, now: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._now = now

    async def require(
        self, identity: NodeId, csr_pem: str, key_sha256: str, token: Object, source: str, ttl_s: float
    ) -> str:
        """The name of the object by which this key was approved. Raises NotYet, Denied, ApiError."""
        name = name_of(identity.node, key_sha256)
        stored = await self._registry.find(CERTIFICATESIGNINGREQUESTS, "", name)
        if stored is None:
            made = _object(name, identity, csr_pem, key_sha256, token, source, ttl_s)
            try:
                stored = await self._registry.create(CERTIFICATESIGNINGREQUESTS, made)
            except errors.AlreadyExists:  # the same machine, at another replica
                stored = await self._registry.get(CERTIFICATESIGNINGREQUESTS, "", name)
        obj = stored.obj()
        _check_is_ours(obj, name, identity, key_sha256)
        decided = {c["type"]: c for c in obj.get("status", {}).get("conditions") or []}
        for verdict in ("Denied", "Failed"):
            if verdict in decided:
                why = decided[verdict].get("message") or decided[verdict].get("reason") or ""
                raise Denied(
                    f"an operator has refused node {identity.node!r} (certificatesigningrequest {name}){why and ': ' + why}"
                )
        if "Approved" not in decided:
            raise NotYet(
                f"node {identity.node!r} waits until an operator approves it: kubectl certificate approve {name}",
                self._poll_s(obj),
            )
        return name

    async def issued(self, name: str, chain_pem: str) -> None:
        """Shows the certificate in the object, for people; its node has it anyway. Raises ApiError."""

        def change(obj: Object) -> Object | None:
            status = obj.setdefault("status", {})
            if status.get("certificate"):
                return None
            status["certificate"] = base64.b64encode(chain_pem.encode()).decode()
            return obj

        try:
            await self._registry.mutate(CERTIFICATESIGNINGREQUESTS, "", name, change)
        except errors.NotFound:
            pass  # somebody has cleaned up; the node is approved

    def _poll_s(self, obj: Object) -> float:
        made = unix(obj["metadata"].get("creationTimestamp") or "")
        waited_s = max(0.0, self._now() - made) if made is not None else 0.0
        return min(max(POLL_S_MIN, waited_s / 10), POLL_S_MAX)


def _object(
    name: str,
    identity: NodeId,
    csr_pem: str,
    key_sha256: str,
    token: Object,
    source: str,
    ttl_s: float,
) -> Object:
    notes: dict[str, Any] = {
        "node": identity.node,
        "pool": token.get("pool"),
        "spiffe-id": identity.uri(),
        "token": token["id"],
        "source": source,
        "key-sha256": key_sha256,
    }
    return {
        "apiVersion": CERTIFICATESIGNINGREQUESTS.api_version,
        "kind": CERTIFICATESIGNINGREQUESTS.kind,
        "metadata": {
            "name": name,
            "annotations": {f"{PREFIX}/{key}": str(value) for key, value in notes.items() if value},
        },
        "spec": {
            "request": base64.b64encode(csr_pem.encode()).decode(),
            "signerName": SIGNER,
            "expirationSeconds": max(DURATION_S_MIN, int(ttl_s)),
            "usages": ["client auth"],
            "username": USER + str(token["id"]),
            "groups": [GROUP],
        },
    }


def _check_is_ours(obj: Object, name: str, identity: NodeId, key_sha256: str) -> None:
    """Somebody else may have made an object of that name, or for what another token would make of this key. Raises
    Denied."""
    annotations = obj["metadata"].get("annotations") or {}
    spec = obj.get("spec", {})
    try:
        held = request_key_sha256(base64.b64decode(spec.get("request", ""), validate=True).decode("ascii"))
    except (binascii.Error, UnicodeDecodeError, BadRequest):
        held = ""
    wanted = (SIGNER, key_sha256, identity.uri())
    if (spec.get("signerName"), held, annotations.get(f"{PREFIX}/spiffe-id")) != wanted:
        raise Denied(
            f"the certificatesigningrequest {name} is for another signer, key or identity: an operator has to delete it"
        )
