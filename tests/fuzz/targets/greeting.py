"""What a stranger says first: HELLO and the messages after it, JOIN with its token and request, names, certificates.

A session answers whatever comes with actions and never with an exception; every other parser raises its one error.
"""

import base64
import json
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec
import orjson
from cryptography import x509

from edgelite import der, jointoken, wire
from hub.api import schema, tables
from hub.controllers.podnote import keep_pod
from hub.documents import Document
from hub.hello import Answer
from hub.joining import Joining, Refused, decode_join
from hub.messages import Close, Greeted
from hub.objects import NodeView, PodView
from hub.reports import merge_node, merge_pod, new_node
from hub.returns import proof_in
from hub.session import Session, Shared
from hub.statusforms import check_node, pod_status
from security import identity, join, requests
from security.ca import CertificateAuthority
from security.frames import decode_event, decode_hello, decode_node
from security.parsing import EXTENSIONS_UNREADABLE
from security.returning import ReturnRefused
from security.returning import check as check_return
from tests.fuzz.source import Source

INSTRUMENTED = (
    "edgelite",
    "hub.hello",
    "hub.session",
    "hub.messages",
    "hub.joining",
    "hub.returns",
    "hub.reports",
    "hub.statusforms",
    "hub.controllers.podnote",
    "hub.api.tables",
    "security",
)

WORDS = (
    *(
        "proto",
        "inc",
        "boot",
        "conn",
        "digest",
        "features",
        "agent",
        "docs",
        "claim",
        "rev",
        "limits",
        "redirects",
    ),
    *(
        "store",
        "gen",
        "slot",
        "epoch",
        "id",
        "document",
        "frame",
        "a",
        "pairs",
        "e",
        "n",
        "k",
        "t",
        "b",
        "v",
        "c",
    ),
    *(
        "reason",
        "message",
        "code",
        "error",
        "csr",
        "token",
        "name",
        "labels",
        "info",
        "capacity",
        "conditions",
    ),
    *(
        "allocatable",
        "nodeInfo",
        "addresses",
        "type",
        "status",
        "phase",
        "containerStatuses",
        "first",
        "last",
    ),
    *(
        "count",
        "field",
        "pod/default/p/u",
        "configmap/default/c",
        "1" * 32,
        "0" * 64,
        "Ready",
        "PodScheduled",
    ),
)
HELLO = {"proto": [1, 1], "inc": "1" * 32, "boot": 1, "conn": 1, "digest": "0" * 64}
TOKEN = jointoken.JoinToken("0" * 16, bytes(24), bytes(32), "cloudhub.local").text()
ROOT = CertificateAuthority.create("cloudhub.local", 1.7e9).root_pem
view_of_node = msgspec.json.Decoder(NodeView).decode
view_of_pod = msgspec.json.Decoder(PodView).decode
NODE = identity.NodeId("cloudhub.local", "default", "shop-7", "till-1")


class _Docs:
    """One document, 100 bytes long."""

    def __init__(self) -> None:
        self.revision = 7
        self._all = {"pod/default/p/u": Document("pod/default/p/u", b"x" * 100)}

    def of(self, node: str) -> Mapping[str, Document]:
        return self._all

    def body(self, document: Document) -> bytes:
        return b"x" * document.size

    def withhold(self, node: str, key: str) -> bool:
        return False


def check(data: bytes) -> None:
    source = Source(data)
    (_session, _token, _request, _name, _certificate, _report, _return)[source.byte() % 7](source)


def _json(source: Source) -> bytes:
    """Half of the time the bytes as they are."""
    if source.byte() % 2:
        return source.take(source.word() % 2048)
    return json.dumps(source.value(WORDS)).encode()


def _session(source: Source) -> None:
    session = Session(Shared(_Docs(), window=2, window_bytes=150, streams_max=2), "till-1")  # type: ignore[arg-type]
    if source.byte() % 4:
        changes = source.value(WORDS)
        body = json.dumps({**HELLO, **changes} if isinstance(changes, dict) else HELLO).encode()
        actions = session.receive(wire.HELLO, 0, body)
        if isinstance(actions[0], Greeted):
            assert decode_hello(msgspec.json.encode(actions[0].hello)) == actions[0].hello
            session.welcomed(Answer(source.of(("match", "diff", "hold"))))
            session.open_stream({"kind": "log"}, 8)
    while source.left:
        kind, stream = source.byte() % 33, source.of((0, 1, 2, 3, 65535))
        closed = session.state == "closed"
        actions = session.receive(kind, stream, _json(source))
        if any(isinstance(action, Close) for action in actions):
            assert session.state == "closed"
        assert not closed or not [a for a in actions if not isinstance(a, Close)], "it goes on after its end"
        session.pump()


def _token(source: Source) -> None:
    parts = (
        (jointoken.PREFIX, source.text()),
        ("0123456789abcdef", source.text()),
        (jointoken._encode(source.take(24)), source.text()),
        (jointoken._encode(source.take(32)), source.text()),
        ("cloudhub.local", source.text()),
    )
    text = (
        ".".join(source.of(pair) for pair in parts)
        if source.byte() % 2
        else source.rest().decode(errors="replace")
    )
    try:
        token = jointoken.parse(text)
    except jointoken.TokenError as refused:
        assert len(text) < 12 or text not in str(refused), "the refusal repeats the secret"
        try:
            join.parse_token(text)
        except join.JoinRefused:
            return
        raise AssertionError("the hub takes what the agent refuses") from refused
    assert token.text() == text.strip()
    identity.check_trust_domain(token.trust_domain)


class _NoTokens:
    """As much of a registry as a join with an unknown token sees."""

    async def find(self, *_: object) -> None:
        return None


def _request(source: Source) -> None:
    """JOIN as it comes, with a request in DER half of the time; and the labels that it wants."""
    body = source.rest()
    if body[:1] not in b"{[":
        text = der.pem("CERTIFICATE REQUEST", body)
        try:
            assert len(requests.request_key_sha256(text)) == 64
        except requests.BadRequest:
            pass
        body = json.dumps({"token": TOKEN, "csr": text}).encode()
    joining: Any = Joining(_NoTokens(), None, lambda: None, None, retry_s=lambda: 5.0)  # type: ignore[arg-type]
    try:
        joining.join(body, "192.0.2.1:1").send(None)
    except Refused as refused:
        json.dumps([refused.code, refused.reason, refused.message, refused.retry_s])
    else:
        raise AssertionError("a join that waits for something, or is granted")
    try:
        node = new_node(NODE, pool="shop", labels=decode_join(body).labels)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "till-1"


def _name(source: Source) -> None:
    if source.byte() % 2:
        segments = [source.of(("node", "hub", "user", "relay", "default", "till-1", "", "..", "%2e", source.text()))
                    for _ in range(source.byte() % 6)]  # fmt: skip
        text = "/".join(["spiffe://" + source.of(("cloudhub.local", source.text())), *segments])
    else:
        text = source.rest().decode(errors="replace")
    certificate = {"subjectAltName": (("URI", text),)}
    try:
        found = identity.parse(text)
    except identity.IdentityError:
        try:
            identity.from_peercert(certificate)
        except identity.IdentityError:
            return
        raise AssertionError("a certificate is taken for a name that is refused") from None
    assert found.uri() == text, "two spellings of one identity"
    assert identity.from_peercert(certificate) == found
    assert text.isascii() and "%" not in text and "//" not in text[9:] and "/." not in text


def _certificate(source: Source) -> None:
    """The agent's few bits of DER against a whole X.509 parser: what both can read they read alike."""
    raw = source.rest()
    text = der.pem("CERTIFICATE", raw)
    try:
        (ours,) = der.certificates(text)
    except der.DerError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # certificates that cryptography is about to stop reading
        try:
            theirs = x509.load_der_x509_certificate(raw)
            names = theirs.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
            ends = int(theirs.not_valid_after_utc.timestamp())
        except EXTENSIONS_UNREADABLE:
            return
    assert ours.uris == uris and ours.not_after == ends
    assert base64.b64decode("".join(text.split("-----")[2].split())) == raw


def _return(source: Source) -> None:
    """A node whose certificate has ended comes back: the body of its JOIN, then any certificate in DER."""
    if source.byte() % 2:
        proof_in(_json(source))
        return
    signature = source.take(source.byte() % 80).hex()
    certificate = der.pem("CERTIFICATE", source.rest())
    try:
        check_return(certificate, "", signature, "nonce", [ROOT], "cloudhub.local", 1.8e9, 3e8)
    except ReturnRefused:
        return
    raise AssertionError("nobody has signed this")


def _report(source: Source) -> None:
    """Bodies of upstream entries, and what becomes of objects: everyone who follows them has to be able to read them."""
    node: dict[str, Any] = new_node(NODE)
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "uid": "u"},
        "spec": {"nodeName": "till-1"},
        "status": {},
    }
    while source.left:
        kind, body = source.byte() % 3, _json(source)
        try:
            if kind == 0:
                report = decode_node(body)
                check_node(body)
                node = merge_node(node, report)
                assert node["metadata"]["labels"]["kubernetes.io/hostname"]
            elif kind == 1:
                decode_event(body)
            else:
                pod = merge_pod("till-1", pod_status(body))(pod) or pod
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue
        _readable(node, pod)


def _readable(node: dict[str, Any], pod: dict[str, Any]) -> None:
    """By caches, controllers and tables."""
    view_of_node(orjson.dumps(node))
    raw = orjson.dumps(pod)
    keep_pod(view_of_pod(raw), raw)
    for resource, obj in (("nodes", node), ("pods", pod)):
        found = schema.resource("", "v1", resource)
        assert found is not None
        tables.row(found, obj, now=1.8e9)
