"""A node whose certificate has ended proves who it was: the certificate, and a signature by its key over the hub's nonce.
[pure]

What TLS would have checked is checked here, but for the end of the validity: issuer, signature, beginning, usage, name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgelite.returning import proof
from security.errors import SecurityError
from security.identity import IdentityError, NodeId, parse
from security.parsing import EXTENSIONS_UNREADABLE, read_whole

CHAIN_CHARS_MAX = 8192
CHAIN_MAX = 4
"""Certificates of one chain, the node's own included."""
SIGNATURE_CHARS_MAX = 2048


class ReturnRefused(SecurityError):
    """A node that is not taken back. `reason` is CamelCase for machines."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Returned:
    """Who has proved itself, and by which certificate."""

    identity: NodeId
    certificate: x509.Certificate


def check(
    chain_pem: str,
    csr_pem: str,
    signature: str,
    nonce: str,
    roots_pem: Iterable[str],
    trust_domain: str,
    now: float,
    return_s: float,
) -> Returned:
    """`signature`: hex, as `edgelite.returning` says. `nonce`: what was sent on this connection. `return_s`: for how long
    after its end a certificate counts, seconds. Raises ReturnRefused."""
    if return_s <= 0:
        raise ReturnRefused(
            "ReturnOff",
            "the node's certificate has ended, and this fleet takes no node back (node_return is 0s)",
        )
    if not nonce:
        raise ReturnRefused("ProofInvalid", "no nonce was asked for on this connection")
    try:
        chain = x509.load_pem_x509_certificates(chain_pem.encode())[: CHAIN_MAX + 1]
        certificate = read_whole(chain[0])
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = sans.get_values_for_type(x509.UniformResourceIdentifier)
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        public = certificate.public_key()
        for authority in chain[1:]:
            read_whole(authority)
    except EXTENSIONS_UNREADABLE as wrong:
        raise ReturnRefused("ProofInvalid", f"the node's certificate cannot be read: {wrong}") from wrong
    _check_issuer(chain, roots_pem)
    if now < certificate.not_valid_before_utc.timestamp():
        raise ReturnRefused("ProofInvalid", "the node's certificate is not valid yet")
    late_s = now - certificate.not_valid_after_utc.timestamp()
    if late_s > return_s:
        raise ReturnRefused(
            "ReturnTooLate",
            f"the node's certificate ended {late_s / 86400:.1f} days ago; nodes are taken back for {return_s / 86400:g} days",
        )
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages or len(uris) != 1 or len(list(sans)) != 1:
        raise ReturnRefused("ProofInvalid", "the certificate is not that of a node")
    try:
        identity = parse(uris[0])
    except IdentityError as wrong:
        raise ReturnRefused("ProofInvalid", str(wrong)) from wrong
    if not isinstance(identity, NodeId) or identity.trust_domain != trust_domain:
        raise ReturnRefused("ProofInvalid", f"{uris[0]} is no node of {trust_domain}")
    _check_signature(public, signature, proof(nonce, csr_pem))
    return Returned(identity, certificate)


def _check_issuer(chain: Sequence[x509.Certificate], roots_pem: Iterable[str]) -> None:
    """A root of ours has issued the certificate, or the last of the authorities that lead to it (an intermediate below
    SPIRE). Their ends do not count either: they ended with the node's certificate or after it."""
    roots = [x509.load_pem_x509_certificate(root_pem.encode()) for root_pem in roots_pem]
    if len(chain) <= CHAIN_MAX:
        for below, child in enumerate(chain):
            if any(_issued(child, root, below) for root in roots):
                return
            if below + 1 == len(chain) or not _issued(child, chain[below + 1], below):
                break
    raise ReturnRefused(
        "UnknownAuthority", "the node's certificate is of no root that this fleet trusts (any more)"
    )


def _issued(child: x509.Certificate, authority: x509.Certificate, below: int) -> bool:
    """`below`: how many authorities stand between this one and the node. One with name constraints, which only TLS would
    check, counts for nothing here."""
    if authority.subject != child.issuer:
        return False
    try:
        child.verify_directly_issued_by(authority)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
        named = any(isinstance(one.value, x509.NameConstraints) for one in authority.extensions)
    except (InvalidSignature, *EXTENSIONS_UNREADABLE):
        return False
    limited = constraints.path_length is not None and constraints.path_length < below
    return constraints.ca and usage.key_cert_sign and not limited and not named


def _check_signature(public: object, signature: str, message: bytes) -> None:
    try:
        raw = bytes.fromhex(signature)
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(raw, message, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(raw, message)
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(raw, message, padding.PKCS1v15(), hashes.SHA256())
        else:
            raise ReturnRefused("ProofInvalid", "the node's key is of a kind that this hub does not know")
    except (InvalidSignature, ValueError) as wrong:
        raise ReturnRefused(
            "ProofInvalid", "the proof is wrong: it was made with another key, or for another connection"
        ) from wrong
