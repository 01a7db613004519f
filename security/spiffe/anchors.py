"""Trust anchors that speak for one trust domain each.

OpenSSL trusts every root of a context for everything: with the bundles of two trust domains side by side, each could
name the other's nodes. So each root is certified anew, in memory, by a root of our own that nobody else has, with a name
constraint: only URIs of its trust domain (RFC 5280 sections 4.2.1.10 and 6.1). The handshake then refuses any other.

Invariant: a certificate that such a context has verified, and that carries a URI, carries one of the trust domain whose
bundle it leads to.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from security.spiffe.material import SpiffeError, load

T = TypeVar("T", bound=x509.ExtensionType)
_LONG = datetime.timedelta(days=36500)
_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def constrained(bundles: Mapping[str, Sequence[bytes]]) -> str:
    """PEM to verify clients by: trust domain -> its roots (DER), each for its own trust domain alone. Raises SpiffeError
    for a root that is no authority, or that is constrained already."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CloudHub trust anchors of this process")])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    top = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LONG)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    made = [top]
    for trust_domain, roots in bundles.items():
        made += [_cross(load(root), trust_domain, name, identifier, key) for root in roots]
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in made)


def _cross(
    root: x509.Certificate,
    trust_domain: str,
    issuer: x509.Name,
    identifier: x509.SubjectKeyIdentifier,
    key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """The root's name and key, certified for one trust domain. What else it may do, and until when, stays as it says."""
    shown = f"{root.subject.rfc4514_string() or 'a root'} of {trust_domain}"
    constraints = _extension(root, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise SpiffeError(f"the bundle's {shown} is no certificate authority")
    if _extension(root, x509.NameConstraints) is not None:
        raise SpiffeError(f"the bundle's {shown} has name constraints of its own, which is not supported")
    own = _extension(root, x509.SubjectKeyIdentifier)
    public = root.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
        .add_extension(constraints, critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(own or x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .add_extension(
            x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], None), critical=True
        )
    )
    usages = _extension(root, x509.ExtendedKeyUsage)
    if usages is not None:
        builder = builder.add_extension(usages, critical=False)
    return builder.sign(key, hashes.SHA256())


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
