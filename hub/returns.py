"""Takes nodes back whose certificates have ended while they were away: JOIN with `return` (`edgelite.returning`).

Never one that is revoked, or whose Node was deleted. Bounds: RETURNS_AT_ONCE run, RETURNS_WAITING wait; more are told to
come back, with jitter, as after an outage of weeks the whole fleet may be there at once.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
from cryptography import x509

from hub import errors
from hub.joining import Refused
from hub.objects import NODES
from hub.peers import Peer, shown_by
from hub.reports import Enrolment, enrolment_of
from hub.revocations import replaced_text
from security.identity import NodeId, hub_dns_name
from security.requests import CSR_CHARS_MAX, BadRequest
from security.returning import CHAIN_CHARS_MAX, SIGNATURE_CHARS_MAX, ReturnRefused, check

if TYPE_CHECKING:
    from hub.gateway import Gateway
from observability.logs import about

log = logging.getLogger(__name__)

RETURNS_AT_ONCE: Final = 8
RETURNS_WAITING: Final = 512


class Proof(msgspec.Struct, frozen=True):
    """What proves it: `chain` in PEM, `sig` in hex."""

    chain: Annotated[str, msgspec.Meta(max_length=CHAIN_CHARS_MAX)]
    sig: Annotated[str, msgspec.Meta(max_length=SIGNATURE_CHARS_MAX)]


class ReturnBody(msgspec.Struct, frozen=True, rename={"proof": "return"}):
    """The body of such a JOIN; `proof` None: it is another one."""

    csr: Annotated[str, msgspec.Meta(max_length=CSR_CHARS_MAX)] = ""
    proof: Proof | None = None


_decode = msgspec.json.Decoder(ReturnBody).decode


def proof_in(body: bytes) -> ReturnBody | None:
    """The body of a JOIN by which a node comes back; None: it is any other."""
    try:
        found = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return found if found.proof is not None else None


class Returns:
    """See the module. `return_s`: for how long after its end a certificate counts; 0: never."""

    def __init__(
        self, gateway: "Gateway", roots: Callable[[], list[str]], trust_domain: str, return_s: float
    ) -> None:
        self._gateway = gateway
        self._roots = roots
        self._trust_domain = trust_domain
        self.return_s = return_s
        self._gate = asyncio.Semaphore(RETURNS_AT_ONCE)
        self._waiting = 0
        self.granted = 0
        self.refused = 0

    def nonce(self, peer: Peer) -> str:
        """What the peer has to sign, for this connection alone."""
        if not peer.nonce:
            peer.nonce = secrets.token_hex(16)
        return peer.nonce

    async def come_back(self, peer: Peer, body: ReturnBody) -> bytes:
        """The body of JOINED. Raises Refused."""
        if self._waiting >= RETURNS_WAITING:
            retry_s = self._gateway.jitter(5, 60)
            raise Refused("overload", "TooManyJoins", "many nodes come back at this moment", retry_s)
        self._waiting += 1
        try:
            async with self._gate:
                joined = await self._come_back(peer, body)
        except Refused:
            self.refused += 1
            raise
        finally:
            self._waiting -= 1
        self.granted += 1
        return joined

    async def _come_back(self, peer: Peer, body: ReturnBody) -> bytes:
        assert body.proof is not None
        nonce, peer.nonce = peer.nonce, ""  # of one use
        gateway, proof = self._gateway, body.proof
        try:
            found = check(
                proof.chain,
                body.csr,
                proof.sig,
                nonce,
                self._roots(),
                self._trust_domain,
                gateway.wall(),
                self.return_s,
            )
            enrolled = await self._check_node(found.identity, found.certificate)
            _, renewed = gateway.joining.renew(found.identity, body.csr, enrolled.not_before)
        except ReturnRefused as no:
            raise Refused("denied", no.reason, no.message, None) from no
        except BadRequest as bad:
            raise Refused("denied", "RequestInvalid", str(bad), None) from bad
        except errors.ApiError as failure:
            text = f"the hub cannot read the node's Node now: {failure.message}"
            raise Refused("overload", "Unavailable", text, gateway.jitter(2, 10)) from failure
        identity = found.identity
        log.info(
            "node %s came back with a certificate that had ended at %s",
            identity.node,
            found.certificate.not_valid_after_utc,
            extra=about(node=identity.node),
        )
        answer: dict[str, Any] = {
            **orjson.loads(renewed),
            "node": identity.node,
            "trust_domain": identity.trust_domain,
            "hub": hub_dns_name(identity.trust_domain),
            "edge": None,
        }
        return orjson.dumps(answer)

    async def _check_node(self, identity: NodeId, certificate: x509.Certificate) -> Enrolment:
        """By whom the Node was enrolled. Raises ReturnRefused, ApiError."""
        revoked, shown = self._gateway.revoked, shown_by(certificate)
        entry = revoked.certificate(identity.node, shown.serial, shown.begins)
        node = await self._gateway.registry.find(NODES, "", identity.node)
        enrolled = enrolment_of(node.obj()["metadata"].get("annotations") if node is not None else None)
        if entry is None and revoked.tokens:
            entry = revoked.token(enrolled.token)
        if entry is not None:
            raise ReturnRefused("Revoked", entry.message())
        if node is None:
            raise ReturnRefused("NodeDeleted", f"there is no Node {identity.node!r} any more")
        if enrolled.is_foreign(shown.begins):
            raise ReturnRefused("Replaced", replaced_text(identity))
        return enrolled
