"""Certificates as an attacker would like to have them: any bytes as SPIFFE ID, any time, usage and issuer."""

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.tls import client_context
from tests.hub.edge_pki import TRUST_DOMAIN, Pki

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Forgery:
    """What differs from a good certificate of the victim. `uris`: raw bytes of URI names; `own_root`: signed by an
    authority of the attacker's own that says it is the hub's."""

    name: str
    uris: tuple[bytes, ...]
    begins: datetime.timedelta = -DAY
    ends: datetime.timedelta = DAY
    usages: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    own_root: bool = False
    self_signed: bool = False


def spiffe(path: str, trust_domain: str = TRUST_DOMAIN) -> tuple[bytes, ...]:
    return (f"spiffe://{trust_domain}/{path}".encode(),)


def forgeries(victim: str) -> list[Forgery]:
    """All that must not pass for the node `victim`, nor for anybody else."""
    own = f"node/default/{victim}/{victim}"
    tricky = {
        "dot segments": f"node/default/x/../{victim}",
        "dot segments at the end": f"node/default/{victim}/..",
        "one dot": f"node/default/./{victim}",
        "escaped dots": f"node/default/%2e%2e/{victim}",
        "escaped slash": f"node/default/{victim}%2F{victim}",
        "escaped letter": f"node/default/{victim}/%65dge",
        "empty segment": f"node/default//{victim}",
        "one segment more": f"{own}/x",
        "one segment less": f"node/default/{victim}",
        "slash at the end": f"{own}/",
        "double slash at the beginning": f"/{own}",
        "query": f"{own}?x",
        "fragment": f"{own}#x",
        "backslash": f"node\\default\\{victim}\\{victim}",
        "upper case": f"node/default/{victim}/{victim.upper()}",
        "upper case kind": f"NODE/default/{victim}/{victim}",
        "blank": f"node/default/{victim}/{victim} ",
        "line feed": f"{own}\n",
        "NUL": f"{own}\0.evil",
        "Cyrillic letter": f"node/default/{victim}/{victim.replace('e', chr(0x0435), 1)}",
        "fullwidth letters": f"node/default/{victim}/" + "".join(chr(ord(c) + 0xFEE0) for c in victim),
        "right-to-left override": f"node/default/{victim}/{chr(0x202E)}{victim[::-1]}",
        "zero width joiner": f"node/default/{victim}/{victim}{chr(0x200D)}",
        "combining accent": f"node/default/{victim}/{victim}{chr(0x0301)}",
        "dotless i": f"node/default/{victim}/{victim}{chr(0x0131)}",
        "too long": f"node/default/{victim}/" + "a" * 3000,
        "unknown kind": f"device/default/{victim}/{victim}",
        "no path": "",
    }
    found = [Forgery(f"tricky: {name}", spiffe(path)) for name, path in tricky.items()]
    found += [
        Forgery("unenrolled key, self-signed", spiffe(own), self_signed=True),
        Forgery("unenrolled key, own authority", spiffe(own), own_root=True),
        Forgery("expired", spiffe(own), begins=-2 * DAY, ends=-DAY / 24),
        Forgery("not yet valid", spiffe(own), begins=DAY / 24),
        Forgery("usage: server", spiffe(own), usages=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        Forgery("usage: code", spiffe(own), usages=(ExtendedKeyUsageOID.CODE_SIGNING,)),
        Forgery("trust domain", spiffe(own, "evil.local")),
        Forgery("trust domain in upper case", spiffe(own, TRUST_DOMAIN.upper())),
        Forgery("trust domain with a port", spiffe(own, TRUST_DOMAIN + ":443")),
        Forgery("trust domain with a user", spiffe(own, "a@" + TRUST_DOMAIN)),
        Forgery("trust domain that ends alike", spiffe(own, "x" + TRUST_DOMAIN)),
        Forgery("another scheme", (f"https://{TRUST_DOMAIN}/{own}".encode(),)),
        Forgery("scheme in upper case", (f"SPIFFE://{TRUST_DOMAIN}/{own}".encode(),)),
        Forgery("two identities", spiffe(own) + spiffe("node/default/x/x")),
        Forgery("no identity", ()),
        Forgery("a hub", spiffe("hub/hub-1")),
        Forgery("a relay", spiffe("relay/berlin")),
        Forgery("a relay that names a node", spiffe(f"relay/{victim}/{victim}")),
        Forgery("a user", spiffe("user/admin")),
    ]
    return found


def context_of(pki: Pki, forgery: Forgery) -> ssl.SSLContext:
    """A client that shows the forged certificate; the hub is verified as by anybody."""
    key = pki.key
    issuer_key: Any = pki.ca._key.signer
    root = x509.load_pem_x509_certificate(pki.ca.root_pem.encode())
    issuer, identifier = (
        root.subject,
        root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value,
    )
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "CloudHub node")])
    if forgery.own_root or forgery.self_signed:
        issuer_key = ec.generate_private_key(ec.SECP256R1())
    if forgery.self_signed:
        key, issuer = issuer_key, subject
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + forgery.begins)
        .not_valid_after(now + forgery.ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(forgery.usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    names = _names(forgery.uris) if forgery.uris else _tlv(0x30, _tlv(0x82, b"edge.example"))
    san = x509.UnrecognizedExtension(x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names)
    certificate = builder.add_extension(san, critical=False).sign(issuer_key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return client_context(pki.ca.root_pem, pem, key_pem)


def _names(uris: Sequence[bytes]) -> bytes:
    """A SubjectAltName whose URIs are these very bytes, which no library would write."""
    return _tlv(0x30, b"".join(_tlv(0x86, uri) for uri in uris))


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 128:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value
