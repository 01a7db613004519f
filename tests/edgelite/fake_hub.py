"""A hub's edge port, as far as joining needs it: real TLS, codec, admission, tokens and authority; one thread."""

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from edgelite import wire
from security import join, tls
from security.ca import CertificateAuthority
from security.policy import OWN, STRANGER, judge, message_bytes_max
from security.requests import BadRequest, request_key_sha256

TD = "cloudhub.local"


class FakeHub:
    """Context manager. `spoil(answer)` may change a JOINED body, or return None to lose it; `bundle` is what BUNDLE
    answers; `identity` the (chain, key) it shows."""

    def __init__(self, ca: CertificateAuthority, identity: tuple[str, str] | None = None) -> None:
        self.ca = ca
        self.records: dict[str, dict[str, Any]] = {}
        self.enrolled: dict[str, dict[str, Any]] = {}
        self.bundle = [ca.root_pem]
        self.spoil: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda answer: answer
        self.raw: bytes | None = None
        self.joins: list[dict[str, Any]] = []
        chain, key = identity or ca.issue_hub("hub-0", TD, [], [], time.time())
        self.context = tls.edge_server_context(chain, key, ca.root_pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="fake-hub")

    def token(self, **request: Any) -> str:
        request = request or {"node": "till-1"}
        now = request.pop("now", time.time())
        wanted = join.TokenRequest(TD, self.ca.root_sha256, **request)
        record, text = join.mint(wanted, now, os.urandom(join.ENTROPY_BYTES))
        self.records[record["id"]] = record
        return text

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(5)
            try:
                with self.context.wrap_socket(raw, server_side=True) as channel:
                    self._connection(channel)
            except OSError:
                pass  # The client refused us, or went away: what these tests are about.
            finally:
                raw.close()

    def _connection(self, channel: ssl.SSLSocket) -> None:
        decoder = wire.Decoder(message_bytes_max=message_bytes_max(STRANGER))
        while data := channel.recv(65536):
            for kind, _, body in decoder.feed(data):
                assert judge(STRANGER, kind, OWN, len(body)) is None
                if self.raw is not None:
                    channel.sendall(self.raw)
                    return
                answer = self._answer(kind, body)
                if answer is None:
                    return
                channel.sendall(answer)

    def _answer(self, kind: int, body: bytes) -> bytes | None:
        if kind == wire.BUNDLE:
            return _message(wire.BUNDLE, {"roots": self.bundle})
        request = json.loads(body)
        self.joins.append(request)
        try:
            answer = self.spoil(self._join(request))
        except join.JoinRefused as e:
            refusal = {"code": "denied", "reason": e.reason, "message": e.message, "retry_s": None}
            return _message(wire.GOAWAY, refusal)
        except BadRequest as e:
            return _message(wire.GOAWAY, {"code": "denied", "message": str(e), "retry_s": None})
        return None if answer is None else _message(wire.JOINED, answer)

    def _join(self, request: dict[str, Any]) -> dict[str, Any]:
        now = time.time()
        token = join.parse_token(request["token"])
        if token.id not in self.records:
            raise join.unknown_token()
        key = request_key_sha256(request["csr"])
        record, node = join.redeem(self.records[token.id], token.secret, key, request["name"], now)
        enrolment = join.enrol(self.enrolled.get(node.node), record, node, key, now)
        self.records[token.id], self.enrolled[node.node] = record, enrolment
        return {
            "cert": self.ca.issue_node(request["csr"], node, now),
            "bundle": [self.ca.root_pem],
            "node": node.node,
            "trust_domain": TD,
            "hub": "hub." + TD,
            "edge": None,
        }


def _message(kind: int, body: dict[str, Any]) -> bytes:
    return wire.message(kind, json.dumps(body).encode())
