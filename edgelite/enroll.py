"""Joining a hub, and the agent's identity on disk.

`join` runs once, before the agent's loop, with blocking sockets under a deadline. It pins the one root that the
token names: the first connection is unverified and is used for nothing but to fetch certificates, of which only the
one with the token's SHA-256 is kept; token and request travel over a second connection that this root and the name
`hub.<trust domain>` verify. The key never leaves the machine.

Key and request are on disk before the first attempt, so that a lost answer is asked for again with the same key, which
the hub answers again. `edgelite.credentials` has the files and what the running agent needs; the names of its public
functions are found here too.
"""

import hashlib
import json
import os
import socket
import ssl
import sys
import time

from edgelite import credentials, der, jointoken, p256, wire
from edgelite.credentials import (
    BUNDLE,
    CIPHERS_TLS12,
    FACTS,
    IDENTITY,
    IDENTITY_NEW,
    EnrollError,
    begin_renewal,
    client_context,
    hub_dns_name,
    hub_name,
    install_bundle,
    install_renewed,
    load_facts,
    renewal_due,
    renewal_time,
)
from edgelite.hubs import split_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = [
    "EnrollError",
    "begin_renewal",
    "client_context",
    "hub_name",
    "install_bundle",
    "install_renewed",
    "join",
    "load_facts",
    "parse_address",
    "renewal_due",
    "renewal_time",
]

PORT_DEFAULT = 8444
TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 128 * 1024
RETRY_S_MAX = 3600.0
PENDING = "PendingApproval"

_VERIFY_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_VERIFY_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_VERIFY_PURPOSE = 26  # X509_V_ERR_INVALID_PURPOSE
_VERIFY_NAME = 62  # X509_V_ERR_HOSTNAME_MISMATCH


def join(
    hub: str,
    token: str,
    name: "str | None",
    labels: "Mapping[str, str]",
    data_dir: str,
    entropy: "Callable[[int], bytes]" = os.urandom,
    timeout_s: float = TIMEOUT_S,
    again: bool = False,
) -> "dict[str, Any]":
    """Enrols this machine and returns the facts of node.json. Raises EnrollError; may be called again after any error.

    hub: "host:port", or several with commas between, tried in turn; name: what this node wants to be called, only with pool tokens; entropy(n): n bytes of a
    cryptographic random source; timeout_s: for both connections together; again: the directory has joined already, and
    joins anew as the same node.
    """
    try:
        ticket = jointoken.parse(token)
    except jointoken.TokenError as e:
        raise EnrollError("TokenInvalid", "%s; copy it whole" % e)
    addresses = [parse_address(one) for one in split_list(hub) or [hub]]
    node = str(load_facts(data_dir)["node"]) if os.path.exists(os.path.join(data_dir, IDENTITY)) else ""
    if node and not again:
        raise EnrollError(
            "AlreadyJoined",
            "%s has joined a hub already: start it with `edgelite run`, or use another directory" % data_dir,
        )
    if name is not None and not jointoken.is_dns_name(name):
        raise EnrollError(
            "NameInvalid", "%r is no node name: use lower case letters, digits, '-' and '.'" % name
        )
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
    except OSError as e:
        raise EnrollError("Disk", "cannot make %s: %s" % (data_dir, e.strerror))
    private, csr = _pending_key(data_dir, name or socket.gethostname(), entropy)
    deadline = time.monotonic() + timeout_s
    address, root = pinned_root(addresses, ticket, deadline)
    body = {
        "token": ticket.text(),
        "csr": csr,
        "name": name,
        "labels": dict(labels),
        "info": {"os": sys.platform, "arch": _arch()},
    }
    channel = connect(
        address, credentials.verifying_context([root]), hub_dns_name(ticket.trust_domain), deadline
    )
    try:
        answer = ask(channel, address, wire.JOIN, body, wire.JOINED, deadline)
    finally:
        channel.close()
    if node and answer.get("node") != node:
        raise EnrollError(
            "OtherNode",
            "the token is for node %s, and %s is node %s: use a token of that node, or another directory"
            % (answer.get("node"), data_dir, node),
        )
    return _install_joined(data_dir, private, ticket, answer, hub)


def parse_address(text: str) -> "tuple[str, int]":
    """("host", port) of "host:port", "[v6]:port" or "host" (port 8444). Raises EnrollError."""
    host, port = text, str(PORT_DEFAULT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if rest or not bracket:
            port = rest[1:] if rest.startswith(":") else ""
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise EnrollError(
            "AddressInvalid", "%r is no address of a hub: give host:port, as in hub.example.com:8444" % text
        )
    return host, int(port)


# Joining, step by step


def _pending_key(data_dir: str, name: str, entropy: "Callable[[int], bytes]") -> "tuple[int, str]":
    """(private key, request PEM) of an attempt to join: of the last one, if that had no answer."""
    if os.path.exists(os.path.join(data_dir, IDENTITY_NEW)):
        text = credentials.read_file(data_dir, IDENTITY_NEW)
        try:
            private = p256.private_from_pem(text)
            request = der.unpem("CERTIFICATE REQUEST", text)
            return private, der.pem("CERTIFICATE REQUEST", request[0])
        except (p256.KeyError256, der.DerError, IndexError) as e:
            raise EnrollError(
                "Damaged",
                "%s in %s is damaged (%s): delete it and join with a new token" % (IDENTITY_NEW, data_dir, e),
            )
    private = p256.generate(entropy(p256.ENTROPY_BYTES))
    csr = p256.request_pem(private, name)
    credentials.write_file(data_dir, IDENTITY_NEW, p256.private_pem(private) + csr)
    return private, csr


def pinned_root(
    addresses: "list[tuple[str, int]]", ticket: jointoken.JoinToken, deadline: float
) -> "tuple[tuple[str, int], str]":
    """(address, PEM of the root that the token pins) of the first hub that answers; nobody is verified yet. Raises
    EnrollError."""
    for index, address in enumerate(addresses):
        left = max(0.0, deadline - time.monotonic())
        share = time.monotonic() + left / (len(addresses) - index)
        try:
            return address, fetch_root(address, ticket, share)
        except EnrollError as error:
            if error.code not in ("Unreachable", "Timeout") or index + 1 == len(addresses):
                raise
    raise AssertionError("there is at least one address")


def fetch_root(address: "tuple[str, int]", ticket: jointoken.JoinToken, deadline: float) -> str:
    """PEM of the root that the token pins. The peer is not verified and nothing else it says is kept."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    channel = connect(address, context, hub_dns_name(ticket.trust_domain), deadline)
    try:
        answer = ask(channel, address, wire.BUNDLE, {}, wire.BUNDLE, deadline)
    finally:
        channel.close()
    for root in credentials.pem_list(answer, "roots"):
        try:
            found = der.unpem("CERTIFICATE", root)
        except der.DerError as e:
            raise EnrollError("Protocol", "the hub sent a broken certificate: %s" % e)
        for one in found:
            if hashlib.sha256(one).digest() == ticket.root_sha256:
                return der.pem("CERTIFICATE", one)
    raise EnrollError(
        "OtherAuthority",
        "%s:%d does not have the certificate authority that the token names: the token is of another hub, or something"
        " between here and the hub answers in its place; nothing secret was sent" % address,
    )


def _install_joined(
    data_dir: str, private: int, ticket: jointoken.JoinToken, answer: "dict[str, Any]", hub: str
) -> "dict[str, Any]":
    cert, node = answer.get("cert"), answer.get("node")
    if not isinstance(cert, str) or not isinstance(node, str) or not jointoken.is_dns_name(node):
        raise EnrollError("Protocol", "the hub's answer lacks the certificate or the node's name")
    expected = {"trust_domain": ticket.trust_domain, "hub": hub_dns_name(ticket.trust_domain)}
    for field in expected:
        if answer.get(field) != expected[field]:
            raise EnrollError(
                "Protocol",
                "the hub's answer names %r as its %s, the token %r"
                % (answer.get(field), field, expected[field]),
            )
    leaf = credentials.checked_leaf(cert, private)
    prefix = "spiffe://%s/node/" % ticket.trust_domain
    if len(leaf.uris) != 1 or not leaf.uris[0].startswith(prefix) or leaf.uris[0].split("/")[-1] != node:
        raise EnrollError("KeyMismatch", "the certificate is for %s, not for node %s" % (leaf.uris, node))
    edge = answer.get("edge") or hub
    if not isinstance(edge, str):
        raise EnrollError("Protocol", "the hub's answer has an edge address that is not text")
    for address in split_list(edge):
        parse_address(address)
    facts = {"node": node, "trust_domain": ticket.trust_domain, "hub": expected["hub"], "edge": edge}
    credentials.write_file(
        data_dir, BUNDLE, credentials.checked_bundle(credentials.pem_list(answer, "bundle"))
    )
    credentials.write_file(data_dir, FACTS, json.dumps(facts) + "\n")
    credentials.write_file(data_dir, IDENTITY, cert.rstrip() + "\n" + p256.private_pem(private))
    os.unlink(os.path.join(data_dir, IDENTITY_NEW))
    return dict(facts)


# The connection


def connect(address: "tuple[str, int]", context: ssl.SSLContext, name: str, deadline: float) -> ssl.SSLSocket:
    """A connection after its handshake. Raises EnrollError with what to do about it."""
    raw = None
    try:
        raw = socket.create_connection(address, timeout=_left(deadline))
        raw.settimeout(_left(deadline))
        return context.wrap_socket(raw, server_hostname=name)
    except OSError as e:  # also ssl.SSLError, socket.timeout, socket.gaierror
        if raw is not None:
            raw.close()
        raise _connection_error(address, e)
    except ValueError as e:  # a name that cannot be encoded for DNS, a NUL in it
        raise EnrollError("AddressInvalid", "%r is no host name: %s" % (address[0], e))


def _connection_error(address: "tuple[str, int]", e: OSError) -> EnrollError:
    where = "%s:%d" % address
    if isinstance(e, ssl.SSLCertVerificationError):
        code = e.verify_code
        if code in (_VERIFY_NOT_YET_VALID, _VERIFY_EXPIRED):
            clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            return EnrollError(
                "Clock",
                "the hub's certificate at %s is not valid at this machine's time, %s: set the clock"
                % (where, clock),
                True,
            )
        if code in (_VERIFY_PURPOSE, _VERIFY_NAME):
            return EnrollError(
                "NotAHub",
                "%s is known to the certificate authority, but not as the hub that the token names: %s; check the address,"
                " and that the token was copied whole" % (where, e.verify_message.rstrip(".")),
            )
        return EnrollError(
            "OtherAuthority",
            "%s shows a certificate that the token's root did not issue (%s): check the address, and use a token of this"
            " hub" % (where, e.verify_message),
        )
    if isinstance(e, socket.timeout):
        return EnrollError(
            "Timeout", "%s did not answer in time: check the address and firewalls" % where, True
        )
    if isinstance(e, ssl.SSLError):
        return EnrollError(
            "Protocol", "%s does not speak the hub's TLS: %s; is it the edge port?" % (where, e), True
        )
    return EnrollError(
        "Unreachable", "cannot connect to %s: %s; check the address and firewalls" % (where, e), True
    )


def ask(
    channel: ssl.SSLSocket,
    address: "tuple[str, int]",
    kind: int,
    body: "dict[str, Any]",
    expected: int,
    deadline: float,
) -> "dict[str, Any]":
    """Sends one message and returns the body of the one answer. Raises EnrollError, also for a GOAWAY."""
    decoder = wire.Decoder(message_bytes_max=ANSWER_BYTES_MAX, frame_bytes_max=ANSWER_BYTES_MAX)
    try:
        channel.settimeout(_left(deadline))
        channel.sendall(wire.message(kind, json.dumps(body, separators=(",", ":")).encode()))
        while True:
            channel.settimeout(_left(deadline))
            data = channel.recv(16384)
            if not data:
                raise EnrollError(
                    "Unreachable", "the hub closed the connection without an answer; try again", True
                )
            for got, _, raw in decoder.feed(data):
                return _answer(got, raw, expected)
    except wire.WireError as e:
        raise EnrollError(
            "Protocol", "%s:%d does not speak the hub's protocol: %s; is it the edge port?" % (address + (e,))
        )
    except OSError as e:
        raise _connection_error(address, e)


def _answer(got: int, raw: bytes, expected: int) -> "dict[str, Any]":
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict) or got not in (expected, wire.GOAWAY):
        raise EnrollError("Protocol", "the peer does not speak the hub's protocol (message of type %d)" % got)
    if got == wire.GOAWAY:
        # `reason` says which refusal it is; hubs of a neighbouring version may send the code alone.
        code = str(body.get("reason") or "Refused")[:64]
        message = str(body.get("message"))[:1024]
        if code != PENDING:
            message = "the hub refused: " + message
        retry_s = body.get("retry_s")
        wait_s = float(retry_s) if isinstance(retry_s, (int, float)) and 0 <= retry_s <= RETRY_S_MAX else None
        raise EnrollError(code, message, retry_s is not None, wait_s)
    return body


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


def _arch() -> str:
    return os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
