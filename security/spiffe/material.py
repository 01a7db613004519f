"""What a Workload API hands out: an X.509-SVID with its key, and the roots of trust domains.

Certificates are DER here, as the API carries them; PEM is made for OpenSSL and for agents. A value is never changed:
a rotation is another value.
"""

import datetime
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from security.errors import SecurityError
from security.identity import HubId, IdentityError, check_trust_domain, hub_dns_name
from security.parsing import UNREADABLE, read_whole

CERTIFICATES_MAX = 64
"""Of one chain or one bundle."""
TRUST_DOMAINS_MAX = 64


class SpiffeError(SecurityError):
    """Identities cannot be had from the Workload API or SPIRE, or are not usable. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An identity that this process can prove."""

    spiffe_id: str
    chain: tuple[bytes, ...] = field(repr=False)
    """DER, leaf first, without the root."""
    key_pem: str = field(repr=False)
    """PKCS #8 in clear."""

    def chain_pem(self) -> str:
        return pem_of(self.chain)


@dataclass(frozen=True, slots=True)
class Material:
    """One state of a source."""

    svid: X509Svid
    bundles: Mapping[str, tuple[bytes, ...]]
    """Trust domain -> its roots, DER: the SVID's own, and those that it is federated with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bundles", MappingProxyType(dict(self.bundles)))

    @property
    def trust_domain(self) -> str:
        return trust_domain_of(self.svid.spiffe_id)

    @property
    def own_bundle(self) -> tuple[bytes, ...]:
        """Roots of the SVID's trust domain; never empty in material that `checked` has passed."""
        return self.bundles.get(self.trust_domain, ())


def checked(material: Material, trust_domain: str, replica: str) -> Material:
    """`material` itself when a hub can serve edges with it. Raises SpiffeError, with the registration entry to make.

    Its SPIFFE ID must be the replica's, its leaf must carry `hub.<trust domain>`, the name that agents check, and lead
    to one of its own bundle's roots."""
    wanted = HubId(trust_domain, replica).uri()
    remedy = (
        f"make its entry so: spire-server entry create -spiffeID {wanted} -dns {hub_dns_name(trust_domain)}"
        " -downstream -parentID <the agent's> -selector <the hub's>"
    )
    found = material.svid.spiffe_id
    if found != wanted:
        raise SpiffeError(f"the Workload API names this process {found}, this replica is {wanted}; {remedy}")
    leaf = load(material.svid.chain[0])
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as missing:
        raise SpiffeError("the SVID of this hub has no names at all") from missing
    dns = names.get_values_for_type(x509.DNSName)
    if hub_dns_name(trust_domain) not in dns:
        shown = ", ".join(dns) or "no DNS name"
        raise SpiffeError(
            f"the SVID {wanted} carries {shown}, agents check for {hub_dns_name(trust_domain)}; {remedy}"
        )
    root_of(material.svid.chain, material.own_bundle)
    return material


def split_der(data: bytes) -> tuple[bytes, ...]:
    """The certificates in concatenated DER. Raises SpiffeError."""
    found: list[bytes] = []
    while data:
        length = _der_bytes(data)
        if length > len(data) or len(found) == CERTIFICATES_MAX:
            raise SpiffeError(f"no list of at most {CERTIFICATES_MAX} whole certificates")
        load(data[:length])
        found.append(data[:length])
        data = data[length:]
    return tuple(found)


def load(der: bytes) -> x509.Certificate:
    """One certificate. Raises SpiffeError."""
    try:
        return read_whole(x509.load_der_x509_certificate(der))
    except UNREADABLE as damaged:
        raise SpiffeError(f"a certificate is damaged: {damaged}") from damaged


def read_bundle(pem: bytes, what: str) -> tuple[bytes, ...]:
    """The roots in a PEM file, DER. Raises SpiffeError; `what` names the file."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as damaged:
        raise SpiffeError(f"{what}: no PEM certificates: {damaged}") from damaged
    if len(found) > CERTIFICATES_MAX:
        raise SpiffeError(f"{what}: {len(found)} certificates, at most {CERTIFICATES_MAX} are supported")
    return tuple(one.public_bytes(Encoding.DER) for one in found)


def pem_of(certificates: Sequence[bytes]) -> str:
    """DER certificates as one PEM text."""
    return "".join(load(der).public_bytes(Encoding.PEM).decode() for der in certificates)


def root_of(chain: Sequence[bytes], roots: Sequence[bytes]) -> bytes:
    """The root (DER) that a chain leads to, each link's signature checked. Raises SpiffeError when there is none: the
    chain is of another authority. Times and usages are OpenSSL's to check."""
    if not chain:
        raise SpiffeError("an empty certificate chain")
    links = [load(der) for der in chain]
    for child, parent in itertools.pairwise(links):
        if not _issued(child, parent):
            raise SpiffeError(f"a chain is broken: {_shown(parent)} has not issued {_shown(child)}")
    for der in roots:
        if der == chain[-1] or _issued(links[-1], load(der)):
            return der
    raise SpiffeError(f"none of the trust domain's {len(roots)} roots has issued {_shown(links[-1])}")


def not_after(der: bytes) -> float:
    """When a certificate ends, unix seconds."""
    return load(der).not_valid_after_utc.timestamp()


def life(der: bytes) -> tuple[float, float]:
    """(begin, end) of a certificate, unix seconds."""
    certificate = load(der)
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def sha256(der: bytes) -> bytes:
    return load(der).fingerprint(hashes.SHA256())


def trust_domain_of(spiffe_id: str) -> str:
    """The trust domain of any SPIFFE ID, also of one that names nobody here. Raises SpiffeError."""
    scheme, _, rest = spiffe_id.partition("://")
    domain = rest.partition("/")[0]
    if scheme != "spiffe":
        raise SpiffeError(f"{spiffe_id[:120]!r} is no SPIFFE ID")
    try:
        return check_trust_domain(domain)
    except IdentityError as wrong:
        raise SpiffeError(str(wrong)) from wrong


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _der_bytes(data: bytes) -> int:
    """The length of the SEQUENCE at the beginning, header included."""
    if len(data) < 2 or data[0] != 0x30:
        raise SpiffeError("no DER certificate")
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    if not 1 <= count <= 3 or len(data) < 2 + count:
        raise SpiffeError("no DER certificate")
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def _shown(certificate: x509.Certificate) -> str:
    ends = certificate.not_valid_after_utc.astimezone(datetime.UTC)
    return f"{certificate.subject.rfc4514_string()} (until {ends:%Y-%m-%d %H:%M:%S})"
