"""TLS contexts of the hub and of clients that have their keys in memory.

TLS 1.2 (boards have nothing newer) and 1.3, with keys of any algorithm of `security.keys`. A context is never changed once it is in use: rotation makes
a new one for new connections, since OpenSSL can add but not remove trusted roots. Keys reach OpenSSL through a memfd
where there is one, else through a file of mode 0600 that is gone before the function returns.
"""

import calendar
import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from security.errors import SecurityError
from security.parsing import UNREADABLE

CIPHERS_TLS12 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
    ":ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Those for ECDSA serve Ed25519 as well (RFC 8422, section 5.1)."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""The words are fixed (RFC 5280's times as OpenSSL prints them), whatever the locale is."""


class TLSError(SecurityError):
    """Certificate, key or roots are not usable together. The message says which."""


def edge_server_context(cert_pem: str, key_pem: str, client_ca_pem: str) -> ssl.SSLContext:
    """For the edge port: client certificates are asked for but not demanded (a joining agent has none); those shown
    must come from `client_ca_pem` and be for clients. One session ticket: it halves the cost of a reconnect."""
    return _server_context(cert_pem, key_pem, client_ca_pem, ssl.CERT_OPTIONAL)


def api_server_context(
    cert_pem: str, key_pem: str, client_ca_pem: str, client_cert_required: bool = False
) -> ssl.SSLContext:
    """For the API port. Without `client_cert_required` other means of authentication remain possible."""
    mode = ssl.CERT_REQUIRED if client_cert_required else ssl.CERT_OPTIONAL
    context = _server_context(cert_pem, key_pem, client_ca_pem, mode)
    context.set_alpn_protocols(["http/1.1"])
    return context


def kubelet_server_context(cert_pem: str, key_pem: str, client_ca_pem: str | None) -> ssl.SSLContext:
    """For the kubelet's face, whose callers others have set up: RSA is served. Those who show a certificate must have it
    from `client_ca_pem`; None: nobody is asked for one, and tokens remain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    if client_ca_pem is not None:
        _load_roots(context, client_ca_pem)
        context.verify_mode = ssl.CERT_OPTIONAL
    _load_identity(context, cert_pem, key_pem)
    context.set_alpn_protocols(["http/1.1"])
    return context


def replace_identity(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    """New connections of a listener that cannot change its context show this certificate; the roots stay."""
    _load_identity(context, cert_pem, key_pem)


def client_context(root_pem: str, cert_pem: str | None = None, key_pem: str | None = None) -> ssl.SSLContext:
    """For the CLI and tests: verifies the server by `root_pem`, its name and its usage; shows the given certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _common(context, root_pem)
    context.hostname_checks_common_name = False
    if cert_pem is not None and key_pem is not None:
        _load_identity(context, cert_pem, key_pem)
    elif (cert_pem is None) != (key_pem is None):
        raise TLSError("a client certificate needs its key, and a key its certificate")
    return context


def foreign_client_context(
    root_pem: str, cert_pem: str | None = None, key_pem: str | None = None
) -> ssl.SSLContext:
    """For servers that others have set up, as a Kubernetes API server: verified by `root_pem` and by name. RSA is served,
    and authorities without the key identifiers of RFC 5280, as many clusters have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    _load_roots(context, root_pem)
    if cert_pem is not None and key_pem is not None:
        _load_identity(context, cert_pem, key_pem)
    return context


def mutual_client_context(root_pem: str, cert_pem: str, key_pem: str) -> ssl.SSLContext:
    """For servers that are known by their SPIFFE ID alone, as SPIRE's: verified by `root_pem`; the caller compares the ID
    before it says anything. Shows the given certificate."""
    context = foreign_client_context(root_pem, cert_pem, key_pem)
    context.check_hostname = False
    return context


def expires_at(peercert: Mapping[str, Any]) -> float:
    """When a certificate (the dict of `getpeercert()`) ends, unix seconds. A resumed session does not check that
    again by itself: the gateway compares it with the time at every HELLO and while connected."""
    return certificate_time(peercert["notAfter"])


def certificate_time(text: str) -> float:
    """A time of the dict of `getpeercert()`, as `Nov 21 18:02:15 2026 GMT`, unix seconds: what `ssl.cert_time_to_seconds` does,
    ten times as fast. Raises ValueError."""
    try:
        month, day, clock, year, zone = text.split()
        hour, minute, second = clock.split(":")
        if zone != "GMT":
            raise ValueError("not in GMT")
        date = int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second)
        return float(calendar.timegm(date))
    except ValueError as wrong:
        raise ValueError(f"{text!r} is no time of a certificate: {wrong}") from wrong


def _server_context(cert_pem: str, key_pem: str, client_ca_pem: str, mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, client_ca_pem)
    context.verify_mode = mode
    context.num_tickets = 1
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    _load_identity(context, _with_root(cert_pem, client_ca_pem), key_pem)
    return context


def _with_root(cert_pem: str, roots_pem: str) -> str:
    """A certificate that comes alone, with the root of `roots_pem` that issued it. Without that OpenSSL looks for the chain
    among the context's roots in every handshake, verifies it, and sends what it has found: the same bytes, for a signature
    more. Raises TLSError."""
    try:
        chain = x509.load_pem_x509_certificates(cert_pem.encode())
        roots = x509.load_pem_x509_certificates(roots_pem.encode())
    except UNREADABLE as e:
        raise TLSError(f"certificate or trusted roots are no PEM certificates: {e}") from e
    if len(chain) > 1:
        return cert_pem
    for root in roots:
        # Of federated roots some are issued anew, by one that nobody else has: they are no use to a peer.
        if root.subject != root.issuer:
            continue
        try:
            chain[0].verify_directly_issued_by(root)
        except (InvalidSignature, *UNREADABLE):
            continue
        return cert_pem.rstrip() + "\n" + root.public_bytes(serialization.Encoding.PEM).decode()
    return cert_pem


def _common(context: ssl.SSLContext, roots_pem: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    context.options |= ssl.OP_NO_COMPRESSION
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    _load_roots(context, roots_pem)


def _load_roots(context: ssl.SSLContext, roots_pem: str) -> None:
    try:
        context.load_verify_locations(cadata=roots_pem)
    except (ssl.SSLError, ValueError) as e:
        raise TLSError(f"the trusted roots are not PEM certificates: {e}") from e


def _load_identity(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    with secret_file((cert_pem.rstrip() + "\n" + key_pem).encode()) as path:
        try:
            # A password that is asked for would block on the terminal; there is none.
            context.load_cert_chain(path, password=b"")
        except ssl.SSLError as e:
            raise TLSError(f"certificate and key do not belong together or are damaged: {e}") from e


@contextlib.contextmanager
def secret_file(data: bytes) -> Iterator[str]:
    """A path under which `data` can be read while the context lasts, by this process alone."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as f:
                f.write(data)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    fd, path = tempfile.mkstemp(prefix="cloudhub-")  # mode 0600
    try:
        with open(fd, "wb") as f:
            f.write(data)
        yield path
    finally:
        os.unlink(path)
