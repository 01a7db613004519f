"""The agent's identity on disk: what it proves itself with, whom it trusts, and the renewal of both.

In the data directory, each file mode 0600, replaced atomically and fsynced:
    identity.new   key and request, from before the first attempt to join until identity.pem is there
    node.json      {"node", "trust_domain", "hub", "edge"}
    bundle.pem     the roots to trust
    identity.pem   certificate chain and key; written last: whoever has it has joined
    identity.next  key of a renewal under way

Functions that need P-256 import it themselves: the running agent needs it once in a week.

Invariant: at every moment, also after a power cut, identity.pem holds a certificate with its own key, and bundle.pem
loads. Not guaranteed: that the certificate is still valid; the hub decides that.
"""

import errno
import hashlib
import json
import os
import ssl

from edgelite import der

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROOTS_MAX = 16
FILE_BYTES_MAX = 256 * 1024
BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would write other line ends
CIPHERS_TLS12 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
    ":ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
)
"""This node's own key is P-256; a hub's may be of another kind."""

IDENTITY, IDENTITY_NEW, IDENTITY_NEXT = "identity.pem", "identity.new", "identity.next"
BUNDLE, FACTS = "bundle.pem", "node.json"


class EnrollError(Exception):
    """Joining or the identity on disk failed. `code` is CamelCase for machines, the message has facts and remedy;
    `retryable`: whether the same call may succeed later without anybody doing anything; `retry_s`: when, as the hub said,
    or None.

    Codes: TokenInvalid, TokenExpired, TokenUsed, PoolExhausted, NameNotAllowed, NameInvalid, NameTaken, RejoinNotAllowed,
    SiteMismatch, Denied, PendingApproval, RateLimited and Refused (by the hub); OtherAuthority, NotAHub, Clock (verification); Unreachable, Timeout, Protocol (the
    connection); AddressInvalid, AlreadyJoined, NotJoined, Damaged, KeyMismatch, Disk (here).
    """

    def __init__(
        self, code: str, message: str, retryable: bool = False, retry_s: "float | None" = None
    ) -> None:
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_s = retry_s


def hub_dns_name(trust_domain: str) -> str:
    """The DNS name that every hub certificate of a trust domain carries."""
    return "hub." + trust_domain


def hub_name(data_dir: str) -> str:
    """The DNS name that this node's hub must prove: what to pass as `server_hostname`. Raises EnrollError."""
    return str(load_facts(data_dir)["hub"])


def is_foreign(data_dir: str) -> bool:
    """Is this node of another trust domain than its hub? Then another authority issues its certificates, and puts them in
    place. Raises EnrollError."""
    facts = load_facts(data_dir)
    return bool(facts["hub"] != hub_dns_name(facts["trust_domain"]))


def load_facts(data_dir: str) -> "dict[str, Any]":
    """node.json of a machine that has joined. Raises EnrollError (NotJoined, Damaged)."""
    if not os.path.exists(os.path.join(data_dir, IDENTITY)):
        raise EnrollError("NotJoined", "%s has not joined a hub: run `edgelite join` first" % data_dir)
    text = read_file(data_dir, FACTS)
    try:
        facts = json.loads(text)
        for field in ("node", "trust_domain", "hub", "edge"):
            if not isinstance(facts[field], str):
                raise ValueError("%s is not text" % field)
    except (ValueError, KeyError, TypeError) as e:
        raise EnrollError(
            "Damaged", "%s in %s is damaged (%s): restore it from a backup" % (FACTS, data_dir, e)
        )
    return dict(facts)


def client_context(data_dir: str) -> ssl.SSLContext:
    """The agent's TLS context: its certificate, the bundle's roots, and the hub's name and usage checked. Connect with
    `server_hostname=hub_name(data_dir)`. Make a new one after `install_renewed`. Raises EnrollError."""
    if not os.path.exists(os.path.join(data_dir, IDENTITY)):
        raise EnrollError("NotJoined", "%s has not joined a hub: run `edgelite join` first" % data_dir)
    context = verifying_context([read_file(data_dir, BUNDLE)])
    try:
        # A password that is asked for would block on the terminal; there is none.
        context.load_cert_chain(os.path.join(data_dir, IDENTITY), password=b"")
    except (ssl.SSLError, OSError) as e:
        raise EnrollError(
            "Damaged", "%s in %s cannot be used (%s): restore it or join anew" % (IDENTITY, data_dir, e)
        )
    return context


def certificate(data_dir: str) -> der.Certificate:
    """Facts of this node's certificate. Raises EnrollError."""
    return _leaf(read_file(data_dir, IDENTITY))


def renewal_time(data_dir: str, jitter: float) -> float:
    """When to renew, unix seconds: around half of the certificate's life, spread over a tenth of it by `jitter`
    in [0, 1), which a node keeps, so that nodes enrolled together do not renew together."""
    leaf = certificate(data_dir)
    life_s = leaf.not_after - leaf.not_before
    return leaf.not_before + life_s * (0.45 + 0.1 * jitter)


def renewal_retry_s(data_dir: str, now: float) -> float:
    """Seconds until a renewal that was not answered is tried again: a tenth of what is left of the certificate, 1 s to
    1 h. Raises EnrollError."""
    return min(max((certificate(data_dir).not_after - now) / 10, 1.0), 3600.0)


def renewal_due(data_dir: str, now: float, jitter: float) -> bool:
    """Whether `now` (unix seconds) is past `renewal_time`."""
    return now >= renewal_time(data_dir, jitter)


def begin_renewal(data_dir: str, entropy: "Callable[[int], bytes]" = os.urandom) -> str:
    """The request (PEM) to send as RENEW. Its new key is on disk before it is sent, and the same one is used until
    `install_renewed`, however often this is called."""
    from edgelite import p256

    node = load_facts(data_dir)["node"]
    path = os.path.join(data_dir, IDENTITY_NEXT)
    if os.path.exists(path):
        try:
            private = p256.private_from_pem(read_file(data_dir, IDENTITY_NEXT))
            # Equal when the power went after the commit and before the clean-up.
            if p256.public_point(private) != certificate(data_dir).point:
                return p256.request_pem(private, node)
        except p256.KeyError256:
            pass  # Nothing was issued for a key that we cannot read, or it is lost: a fresh one serves as well.
    private = p256.generate(entropy(p256.ENTROPY_BYTES))
    write_file(data_dir, IDENTITY_NEXT, p256.private_pem(private))
    return p256.request_pem(private, node)


def secrets(data_dir: str) -> "list[bytes]":
    """The node's private keys as bytes: the one in use, and the next where a renewal is under way. For deriving other keys;
    never to be shown or stored. Raises EnrollError."""
    from edgelite import p256

    found = []
    for name in (IDENTITY, IDENTITY_NEXT):
        if name == IDENTITY_NEXT and not os.path.exists(os.path.join(data_dir, name)):
            continue
        try:
            found.append(p256.private_from_pem(read_file(data_dir, name)).to_bytes(32, "big"))
        except p256.KeyError256 as e:
            if name == IDENTITY:
                raise EnrollError("Damaged", "%s in %s: %s; restore it or join anew" % (name, data_dir, e))
    return found


def install_renewed(data_dir: str, cert: str, bundle: "list[str]") -> None:
    """Commits a RENEWED answer: the roots, then certificate and key in one atomic replace. Until then, and when this
    raises EnrollError, the old identity stays in use."""
    from edgelite import p256

    try:
        private = p256.private_from_pem(read_file(data_dir, IDENTITY_NEXT))
    except p256.KeyError256 as e:
        raise EnrollError("Damaged", "%s in %s: %s; ask for a renewal again" % (IDENTITY_NEXT, data_dir, e))
    roots = checked_bundle(bundle)
    leaf = checked_leaf(cert, private)
    if leaf.uris != certificate(data_dir).uris:
        raise EnrollError("KeyMismatch", "the renewed certificate is for %s, not for this node" % leaf.uris)
    write_file(data_dir, BUNDLE, roots)
    write_file(data_dir, IDENTITY, cert.rstrip() + "\n" + p256.private_pem(private))
    os.unlink(os.path.join(data_dir, IDENTITY_NEXT))


def install_bundle(data_dir: str, roots: "list[str]") -> None:
    """Replaces the trusted roots (a BUNDLE that the verified hub pushed). Raises EnrollError on an unusable one."""
    write_file(data_dir, BUNDLE, checked_bundle(roots))


def trust_id(data_dir: str) -> str:
    """The short name of the bundle: 16 hex digits, of the SHA-256 over the sorted hex SHA-256 of each root's DER and a
    newline. Raises EnrollError."""
    return bundle_id(read_file(data_dir, BUNDLE))


def bundle_id(pem: str) -> str:
    """As `trust_id`, of PEM text."""
    try:
        roots = [hashlib.sha256(root).hexdigest() for root in der.unpem("CERTIFICATE", pem)]
    except der.DerError as e:
        raise EnrollError("Damaged", "the trusted roots cannot be read: %s" % e)
    text = "".join([root + "\n" for root in sorted(roots)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def certificate_mark(data_dir: str) -> str:
    """What the hub knows this node's certificate by: the first 16 hex digits of the SHA-256 of its DER. Raises
    EnrollError."""
    return mark_of(read_file(data_dir, IDENTITY))


def mark_of(pem: str) -> str:
    """As `certificate_mark`, of a PEM chain."""
    try:
        return hashlib.sha256(der.unpem("CERTIFICATE", pem)[0]).hexdigest()[:16]
    except (der.DerError, IndexError) as e:
        raise EnrollError("Damaged", "the certificate cannot be read: %s" % e)


def anonymous_context(data_dir: str) -> ssl.SSLContext:
    """As `client_context`, without this node's certificate: for one that has ended. Raises EnrollError."""
    return verifying_context([read_file(data_dir, BUNDLE)])


def returning(data_dir: str, entropy: "Callable[[int], bytes]" = os.urandom) -> "Any":
    """The session by which the node comes back once its certificate has ended. Raises EnrollError."""
    from edgelite import p256
    from edgelite.returning import Returning

    csr = begin_renewal(data_dir, entropy)
    text = read_file(data_dir, IDENTITY)
    try:
        private = p256.private_from_pem(text)
        chain = "".join([der.pem("CERTIFICATE", one) for one in der.unpem("CERTIFICATE", text)])
    except (p256.KeyError256, der.DerError) as e:
        raise EnrollError("Damaged", "%s in %s: %s; join anew" % (IDENTITY, data_dir, e))
    return Returning(csr, chain, lambda message: p256.signature_der(private, message))


def verifying_context(roots: "list[str]") -> ssl.SSLContext:
    """A context that trusts `roots` (PEM) and demands a certificate for servers with the name that is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED, check_hostname, purpose serverAuth
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    context.hostname_checks_common_name = False
    try:
        context.load_verify_locations(cadata="\n".join(roots))
    except (ssl.SSLError, ValueError) as e:
        raise EnrollError(
            "Damaged", "the trusted roots cannot be read: %s; restore %s or join anew" % (e, BUNDLE)
        )
    return context


# Checks and files


def pem_list(answer: "dict[str, Any]", field: str) -> "list[str]":
    value = answer.get(field)
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= ROOTS_MAX
        or [v for v in value if not isinstance(v, str)]
    ):
        raise EnrollError(
            "Protocol", "the hub's answer has no list of 1 to %d certificates in %s" % (ROOTS_MAX, field)
        )
    return value


def checked_bundle(roots: "list[str]") -> str:
    """The roots as one PEM text, known to be loadable: a bad one must not lock the node out for good."""
    text = "\n".join([root.strip() for root in pem_list({"roots": roots}, "roots")]) + "\n"
    verifying_context([text])
    return text


def _leaf(text: str) -> der.Certificate:
    try:
        return der.certificates(text)[0]
    except der.DerError as e:
        raise EnrollError("Damaged", "the certificate cannot be read: %s" % e)


def checked_leaf(cert: str, private: int) -> der.Certificate:
    from edgelite import p256

    leaf = _leaf(cert)
    if leaf.point != p256.public_point(private):
        raise EnrollError("KeyMismatch", "the hub's answer holds a certificate for another key; join again")
    return leaf


def read_file(data_dir: str, name: str) -> str:
    path = os.path.join(data_dir, name)
    try:
        with open(path, "rb") as f:
            raw = f.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise EnrollError("Damaged", "%s is larger than %d bytes" % (path, FILE_BYTES_MAX))
        return raw.decode()
    except UnicodeDecodeError:
        raise EnrollError("Damaged", "%s is not text: restore it from a backup or join anew" % path)
    except OSError as e:
        code = "Damaged" if e.errno == errno.ENOENT else "Disk"
        raise EnrollError(code, "cannot read %s: %s" % (path, e.strerror))


def write_file(data_dir: str, name: str, text: str) -> None:
    """Replaces the file atomically; durable on return."""
    path = os.path.join(data_dir, name)
    try:
        fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o600)
        try:
            data = text.encode()
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(path + ".part", path)
        if os.name != "nt":  # Windows cannot open directories, and orders the rename itself
            directory = os.open(data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as e:
        raise EnrollError("Disk", "cannot write %s: %s" % (path, e.strerror), e.errno == errno.ENOSPC)
