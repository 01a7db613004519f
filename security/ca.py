"""The embedded certificate authority: one self-signed root that issues hub, node and user certificates.

ECDSA P-256 throughout. The root lives in `ca.crt` and `ca.key` (0600) in a directory that the caller has locked;
it is made at first start and never changed. Only a public key is ever taken from a request: names, usages and times
come from the caller.

Invariant: no certificate outlives the authority. No certificate of a node has a DNS name or a common name, so that
even a client that checks nothing but the name cannot take a node for a hub.
Not guaranteed: revocation (the hub refuses revoked identities itself), rotation of the root.
"""

import contextlib
import datetime
import hashlib
import ipaddress
import os
import time
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.errors import SecurityError
from security.identity import (
    HubId,
    IdentityError,
    NodeId,
    UserId,
    check_name,
    check_trust_domain,
    hub_dns_name,
)

CA_TTL_S = 5 * 365 * 86400
HUB_TTL_S = 24 * 3600
NODE_TTL_S = 14 * 86400
USER_TTL_S = 365 * 86400
BACKDATE_S = 300  # peers whose clock is a little behind accept a fresh certificate
BACKDATE_SHARE = 0.05  # of a short life at most, so that half life is not over when it is issued
CSR_CHARS_MAX = 8192
SANS_MAX = 64
GROUPS_MAX = 32
DEFAULT_TRUST_DOMAIN = "cloudhub.local"

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class CAError(SecurityError):
    """The authority cannot be opened or cannot issue. The message says why and what to do."""


class BadRequest(SecurityError):
    """A certificate request that is not acceptable: broken, badly signed, or not for a P-256 key."""


class CertificateAuthority:
    """See the module. Made by `open`."""

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust_domain: str
    ) -> None:
        self._certificate = certificate
        self._key = key
        self.trust_domain = trust_domain
        self.root_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.root_sha256 = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
        """SHA-256 of the root's DER; 32 bytes. What join tokens carry."""
        self.not_after = certificate.not_valid_after_utc.timestamp()
        """When the authority ends; unix seconds."""

    @classmethod
    def open(
        cls, directory: str, trust_domain: str = DEFAULT_TRUST_DOMAIN, now: float | None = None
    ) -> "CertificateAuthority":
        """The authority in `directory`, made when there is none. Raises CAError (half of it missing, damaged, another
        trust domain, readable to others, ended) and OSError (disk). The caller holds the directory's lock."""
        check_trust_domain(trust_domain)
        now = time.time() if now is None else now
        crt, key = os.path.join(directory, "ca.crt"), os.path.join(directory, "ca.key")
        have = os.path.exists(crt), os.path.exists(key)
        if have == (False, False):
            _create(crt, key, trust_domain, now)
        elif have != (True, True):
            there, missing = (crt, key) if have[0] else (key, crt)
            raise CAError(
                f"{there} exists but {missing} does not: restore {missing} from a backup; only if this hub has never"
                f" served (its first start was cut short) delete {there} and start again"
            )
        return _load(crt, key, trust_domain, now)

    def ending(self, now: float, within_s: float = NODE_TTL_S) -> str | None:
        """A warning to log at start when the authority ends within `within_s`, so that certificates get shorter."""
        if self.not_after - now >= within_s:
            return None
        return (
            f"the certificate authority ends on {_time(self.not_after):%Y-%m-%d}: no certificate lasts longer"
        )

    def issue_hub(
        self, replica: str, trust_domain: str, dns_names: Sequence[str], ips: Sequence[str], now: float
    ) -> tuple[str, str]:
        """(chain PEM, key PEM) for a hub replica, 24 h: server and client of the edge port and the API.

        dns_names, ips: extra names under which clients reach it, beside `hub.<trust domain>`."""
        self._check_trust_domain(trust_domain)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(HubId(trust_domain, replica).uri())]
        dns = [hub_dns_name(trust_domain), *(_dns_name(name) for name in dns_names)]
        names += [x509.DNSName(name) for name in dict.fromkeys(dns)]
        names += [x509.IPAddress(ip) for ip in dict.fromkeys(_ip(ip) for ip in ips)]
        if len(names) > SANS_MAX:
            raise CAError(f"{len(names)} names for one hub certificate, at most {SANS_MAX} are supported")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject((NameOID.ORGANIZATION_NAME, "CloudHub hub"))
        return self._issue(key.public_key(), subject, names, [SERVER, CLIENT], now, HUB_TTL_S), _key_pem(key)

    def issue_node(self, csr_pem: str, node: NodeId, now: float, ttl_s: float = NODE_TTL_S) -> str:
        """Chain PEM for a node: its URI and clientAuth, nothing else. Raises BadRequest for the request."""
        self._check_trust_domain(node.trust_domain)
        public = _request_key(csr_pem)
        subject = _subject((NameOID.ORGANIZATION_NAME, "CloudHub node"))
        return self._issue(
            public, subject, [x509.UniformResourceIdentifier(node.uri())], [CLIENT], now, ttl_s
        )

    def issue_user(
        self,
        name: str,
        groups: Sequence[str],
        trust_domain: str,
        now: float,
        ttl_s: float = USER_TTL_S,
    ) -> tuple[str, str]:
        """(chain PEM, key PEM) for a user of the API: common name and organisations as Kubernetes reads them."""
        self._check_trust_domain(trust_domain)
        user = UserId(trust_domain, name)
        if len(groups) > GROUPS_MAX or not all(0 < len(group) <= 64 for group in groups):
            raise CAError(f"groups: at most {GROUPS_MAX}, of 1 to 64 characters each")
        if len(name) > 64:
            raise CAError(f"user name of {len(name)} characters: a certificate holds at most 64")
        if name == hub_dns_name(trust_domain):
            raise CAError(f"user name {name!r} is the hub's DNS name")
        subject = _subject(
            *((NameOID.ORGANIZATION_NAME, group) for group in groups), (NameOID.COMMON_NAME, name)
        )
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(user.uri())]
        return self._issue(key.public_key(), subject, names, [CLIENT], now, ttl_s), _key_pem(key)

    def _check_trust_domain(self, trust_domain: str) -> None:
        if trust_domain != self.trust_domain:
            raise CAError(
                f"this authority is for {self.trust_domain!r} and issues nothing for {trust_domain!r}"
            )

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        now: float,
        ttl_s: float,
    ) -> str:
        if ttl_s <= 0:
            raise CAError(f"a certificate must last longer than {ttl_s:g} s")
        if now >= self.not_after:
            raise CAError(
                "the certificate authority has ended; replace ca.crt and ca.key and let all nodes join anew"
            )
        root = self._certificate
        backdate_s = min(BACKDATE_S, BACKDATE_SHARE * ttl_s)
        identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(max(now - backdate_s, root.not_valid_before_utc.timestamp())))
            .not_valid_after(_time(min(now + ttl_s, self.not_after)))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def request_key_sha256(csr_pem: str) -> str:
    """Hex SHA-256 of the SubjectPublicKeyInfo of a request, by which join tokens remember it. Raises BadRequest."""
    public = _request_key(csr_pem)
    info = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


def _request_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a request whose signature proves that the sender has it."""
    if not isinstance(csr_pem, str) or len(csr_pem) > CSR_CHARS_MAX:
        raise BadRequest(f"the certificate request is not text of at most {CSR_CHARS_MAX} characters")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        public = csr.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise BadRequest("the certificate request is not for a P-256 key; only these are supported")
        algorithm = csr.signature_hash_algorithm
        if not isinstance(algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
            raise BadRequest("the certificate request is not signed with SHA-256, SHA-384 or SHA-512")
        if not csr.is_signature_valid:
            raise BadRequest(
                "the certificate request's signature is wrong: it was changed, or made by another key"
            )
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as e:
        raise BadRequest(f"the certificate request cannot be read: {e}") from e
    return public


def _create(crt: str, key_path: str, trust_domain: str, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject((NameOID.ORGANIZATION_NAME, "CloudHub"), (NameOID.COMMON_NAME, "CloudHub root"))
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - BACKDATE_S))
        .not_valid_after(_time(now + CA_TTL_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _key_pem(key).encode(), 0o600)
    _write(crt, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _load(crt: str, key_path: str, trust_domain: str, now: float) -> CertificateAuthority:
    mode = os.stat(key_path).st_mode & 0o777
    if os.name != "nt" and mode & 0o077:
        raise CAError(f"{key_path} is open to others (mode {mode:o}): run `chmod 600 {key_path}`")
    remedy = "restore both ca.crt and ca.key from one backup"
    try:
        with open(crt, "rb") as f:
            certificate = x509.load_pem_x509_certificate(f.read())
        with open(key_path, "rb") as f:
            key = serialization.load_pem_private_key(f.read(), password=None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as e:
        raise CAError(f"{crt} or {key_path} is damaged ({e}): {remedy}") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CAError(f"{key_path} is not the key of {crt}: {remedy}")
    if uris != [f"spiffe://{trust_domain}"]:
        raise CAError(
            f"{crt} is for {', '.join(uris) or 'no trust domain'}, the hub is configured for spiffe://{trust_domain}:"
            " set the trust domain back, or use another data directory"
        )
    authority = CertificateAuthority(certificate, key, trust_domain)
    if now >= authority.not_after:
        raise CAError(
            f"the certificate authority in {crt} ended on {_time(authority.not_after):%Y-%m-%d}; check the clock, or"
            " move ca.crt and ca.key away, start again and let all nodes join anew"
        )
    return authority


def _write(path: str, data: bytes, mode: int) -> None:
    """Creates `path` whole or not at all, durable on return."""
    part = path + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.rename(part, path)
    if os.name != "nt":
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _subject(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def _key_usage(
    digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _dns_name(name: str) -> str:
    """A DNS name for a certificate; a leading `*.` is allowed."""
    try:
        check_name("DNS name", name.removeprefix("*."))
    except IdentityError as e:
        raise CAError(f"--tls-san: {e}") from e
    return name


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as e:
        raise CAError(f"--tls-san: {text!r} is not an IP address") from e


def _time(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)
