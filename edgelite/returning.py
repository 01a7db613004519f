"""The connection of a node whose certificate has ended: it proves that it has the key, and gets a new certificate. [pure]

Takes the place of `Session` on a connection that the hub's certificate verifies and that shows none of the node's own:

    agent   BUNDLE {}
    hub     BUNDLE {"roots": [..], "nonce": <hex>}         the nonce is of this connection alone
    agent   JOIN {"csr": PEM, "return": {"chain": PEM, "sig": <hex>}}
    hub     JOINED {"cert": PEM, "bundle": [PEM], ..}      or GOAWAY, which says why not

`sig` is the old key's ECDSA signature with SHA-256, in DER, over `proof(nonce, csr)`.
"""

import hashlib
import json

from edgelite import wire
from edgelite.actions import Close, Renewed, Send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ANSWER_S = 60.0
"""For the whole exchange; the hub may have many that come back at once."""
REMEDY = "; make a token with `cloudhub token create --node NODE --replace` and run `edgelite join --again`"


def proof(nonce: str, csr: str) -> bytes:
    """What is signed."""
    digest = hashlib.sha256(csr.encode()).hexdigest()
    return b"cloudhub return v1\n" + nonce.encode() + b"\n" + digest.encode() + b"\n"


class Returning:
    """See the module. `csr`: PEM; `chain`: the certificate that has ended, PEM; `sign(message)`: DER."""

    def __init__(self, csr: str, chain: str, sign: "Callable[[bytes], bytes]") -> None:
        self._csr = csr
        self._chain = chain
        self._sign = sign
        self._until = 0.0
        self._out: "list[Any]" = []
        # What the link and the agent ask of any session.
        self.state = "returning"
        self.redirects = 0
        self.unreached = ""
        self.heartbeat_s = ANSWER_S
        self.welcomed_at: "float | None" = None

    def start(self, now: float) -> "list[Any]":
        """The TLS handshake is done."""
        self._until = now + ANSWER_S
        return [Send(wire.message(wire.BUNDLE, b"{}"))]

    def receive(self, kind: int, stream: int, body: bytes, now: float) -> "list[Any]":
        """A message has arrived."""
        if self.state == "closed":
            return []
        try:
            fields = json.loads(body)
            if kind == wire.BUNDLE and self.state == "returning":
                return self._prove(fields)
            if kind == wire.JOINED:
                renewed = Renewed(str(fields["cert"]), [str(root) for root in fields["bundle"]])
                return [renewed] + self._end("returned", "the hub has taken this node back", 0.0)
            if kind == wire.GOAWAY:
                retry = fields.get("retry_s")
                text = str(fields.get("message") or "")
                if retry is None:
                    text += REMEDY
                return self._end(str(fields["code"]), text, None if retry is None else float(retry))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            name = wire.NAMES.get(kind, str(kind))
            return self.goodbye("protocol", "%s is malformed: %r" % (name, error))
        return []

    def _prove(self, fields: "dict[str, Any]") -> "list[Any]":
        nonce = fields.get("nonce")
        if not isinstance(nonce, str) or not 16 <= len(nonce) <= 128:
            text = "this node's certificate has ended, and the hub's release takes no node back" + REMEDY
            return self._end("expired", text, None)
        self.state = "proving"
        signature = self._sign(proof(nonce, self._csr)).hex()
        body = {"csr": self._csr, "return": {"chain": self._chain, "sig": signature}}
        return [Send(wire.message(wire.JOIN, json.dumps(body).encode()))]

    def tick(self, now: float) -> "list[Any]":
        """Time has passed."""
        if self.state != "closed" and now >= self._until:
            return self._end("silent", "the hub has not answered for %.0f s" % ANSWER_S, 0.0)
        return []

    def deadline(self) -> float:
        """When `tick` has to be called at the latest."""
        return self._until

    def goodbye(self, code: str, message: str) -> "list[Any]":
        """Ends the connection from this side."""
        return self._end(code, message, 30.0) if self.state != "closed" else []

    def _end(self, code: str, message: str, retry_s: "float | None") -> "list[Any]":
        self.state = "closed"
        return [Close(code, message, retry_s)]

    # Nothing of a session goes on here.

    def writes(self) -> "list[tuple[str, bytes | None]]":
        """Nothing to journal."""
        return []

    def commit(self, now: float) -> "list[Any]":
        """Nothing was journalled."""
        return []

    def stream(self, kind: int, stream: int, body: bytes) -> "list[Any]":
        """There are no streams."""
        return []

    def set_heartbeat(self, seconds: float) -> None:
        """There are no heartbeats."""

    def renew(self, csr_pem: str) -> "list[Any]":
        """This is a renewal."""
        return []

    def installed(self, trust: str, cert: str) -> "list[Any]":
        """The next connection says so."""
        return []
