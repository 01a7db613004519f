"""TLS contexts of the hub and of clients that have their keys in memory.

TLS 1.2 (boards have nothing newer) and 1.3, ECDSA only. A context is never changed once it is in use: rotation makes
a new one for new connections, since OpenSSL can add but not remove trusted roots. Keys reach OpenSSL through a memfd
where there is one, else through a file of mode 0600 that is gone before the function returns.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from security.errors import SecurityError

CIPHERS_TLS12 = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"


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


def expires_at(peercert: Mapping[str, Any]) -> float:
    """When a certificate (the dict of `getpeercert()`) ends, unix seconds. A resumed session does not check that
    again by itself: the gateway compares it with the time at every HELLO and while connected."""
    return float(ssl.cert_time_to_seconds(peercert["notAfter"]))


def _server_context(cert_pem: str, key_pem: str, client_ca_pem: str, mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, client_ca_pem)
    context.verify_mode = mode
    context.num_tickets = 1
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    _load_identity(context, cert_pem, key_pem)
    return context


def _common(context: ssl.SSLContext, roots_pem: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    context.options |= ssl.OP_NO_COMPRESSION
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=roots_pem)
    except (ssl.SSLError, ValueError) as e:
        raise TLSError(f"the trusted roots are not PEM certificates: {e}") from e


def _load_identity(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    with _secret_file((cert_pem.rstrip() + "\n" + key_pem).encode()) as path:
        try:
            # A password that is asked for would block on the terminal; there is none.
            context.load_cert_chain(path, password=b"")
        except ssl.SSLError as e:
            raise TLSError(f"certificate and key do not belong together or are damaged: {e}") from e


@contextlib.contextmanager
def _secret_file(data: bytes) -> Iterator[str]:
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
