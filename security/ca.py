"""The embedded certificate authority: one self-signed root that issues hub, node and user certificates.

Its key is of any algorithm of `security.keys`, in memory or in a token. The root lives in `ca.crt` and `ca.key` (0600; the
key, or the reference to a token's) in a directory that the caller has locked; it is made at first start;
`security.authorities` is a set of such roots, of which one takes another's place. Only a public key is ever taken from a
request (`security.requests`): names, usages and times come from the caller.

Invariant: no certificate outlives the authority. No certificate of a node has a DNS name or a common name, so that
even a client that checks nothing but the name cannot take a node for a hub.
Not guaranteed: revocation (the hub refuses revoked identities itself).
"""

import contextlib
import datetime
import hashlib
import ipaddress
import math
import os
import secrets
import time
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security import keys
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
from security.keys import KeyRefused, KeySource, SigningKey
from security.parsing import EXTENSIONS_UNREADABLE
from security.requests import request_key

CA_TTL_S = 5 * 365 * 86400
HUB_TTL_S = 24 * 3600
NODE_TTL_S = 14 * 86400
USER_TTL_S = 365 * 86400
BACKDATE_S = 300  # peers whose clock is a little behind accept a fresh certificate
BACKDATE_SHARE = 0.05  # of a short life at most, so that half life is not over when it is issued
SANS_MAX = 64
GROUPS_MAX = 32
DEFAULT_TRUST_DOMAIN = "cloudhub.local"
ROOT_NAME = "CloudHub root"

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class CAError(SecurityError):
    """The authority cannot be opened or cannot issue. The message says why and what to do."""


def trust_domain_of(certificate_pem: str) -> str:
    """The trust domain that an authority's certificate is for. Raises CAError."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = san.get_values_for_type(x509.UniformResourceIdentifier)
    except EXTENSIONS_UNREADABLE as wrong:
        raise CAError(f"the authority's certificate is damaged: {wrong}") from wrong
    return uri.removeprefix("spiffe://")


class CertificateAuthority:
    """See the module. Made by `open`."""

    def __init__(self, certificate: x509.Certificate, key: SigningKey, trust_domain: str) -> None:
        self._certificate = certificate
        self._key = key
        self.trust_domain = trust_domain
        self.root_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.name = _common_name(certificate)
        """The root's common name, which certificates give as their issuer: different for each root of a set."""
        self.root_sha256 = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
        """SHA-256 of the root's DER; 32 bytes. What join tokens carry."""
        self.not_before = certificate.not_valid_before_utc.timestamp()
        """Since when it is valid; unix seconds."""
        self.not_after = certificate.not_valid_after_utc.timestamp()
        """When the authority ends; unix seconds."""

    @property
    def roots(self) -> list[str]:
        """What whoever trusts this authority trusts, PEM."""
        return [self.root_pem]

    @classmethod
    def open(
        cls,
        directory: str,
        trust_domain: str = DEFAULT_TRUST_DOMAIN,
        now: float | None = None,
        source: KeySource = keys.IN_MEMORY,
    ) -> "CertificateAuthority":
        """The authority in `directory`, made when there is none. `source`: where its key comes from. Raises CAError (half
        of it missing, damaged, another trust domain, readable to others, ended), KeyRefused (its token) and OSError
        (disk). The caller holds the directory's lock."""
        check_trust_domain(trust_domain)
        now = time.time() if now is None else now
        crt, key = os.path.join(directory, "ca.crt"), os.path.join(directory, "ca.key")
        have = os.path.exists(crt), os.path.exists(key)
        if have == (False, False):
            made = cls.create(trust_domain, now, source)
            _write(key, made.key_record().encode(), 0o600)
            _write(crt, made.root_pem.encode(), 0o644)
        elif have != (True, True):
            there, missing = (crt, key) if have[0] else (key, crt)
            raise CAError(
                f"{there} exists but {missing} does not: restore {missing} from a backup; only if this hub has never"
                f" served (its first start was cut short) delete {there} and start again"
            )
        check_private(key)
        with open(crt, "rb") as f, open(key, "rb") as g:
            return cls.load(f.read(), g.read(), trust_domain, now, (crt, key), source)

    def save(self, directory: str) -> None:
        """Writes it into an existing directory for `open`; one that is there already has to be the same. Raises CAError,
        OSError. The caller holds the directory's lock."""
        crt, key = os.path.join(directory, "ca.crt"), os.path.join(directory, "ca.key")
        for path, pem, mode in ((key, self.key_record(), 0o600), (crt, self.root_pem, 0o644)):
            if not os.path.exists(path):
                _write(path, pem.encode(), mode)
        with open(crt, "rb") as file:
            if file.read().strip() != self.root_pem.encode().strip():
                raise CAError(f"{crt} is another authority; use an empty data directory, or move it away")
        self.open(directory, self.trust_domain, source=keys.CLOSED)

    @classmethod
    def create(
        cls, trust_domain: str, now: float, source: KeySource = keys.IN_MEMORY
    ) -> "CertificateAuthority":
        """A new authority, kept nowhere yet. Raises IdentityError for the trust domain, KeyRefused for the key."""
        check_trust_domain(trust_domain)
        key = source.create()
        return cls(_make_root(trust_domain, now, key), key, trust_domain)

    @classmethod
    def create_next(
        cls, trust_domain: str, now: float, source: KeySource = keys.IN_MEMORY
    ) -> "CertificateAuthority":
        """As `create`, under a name of its own: for a set that has a root already."""
        check_trust_domain(trust_domain)
        key = source.create()
        name = f"{ROOT_NAME} {secrets.token_hex(8)}"
        return cls(_make_root(trust_domain, now, key, name), key, trust_domain)

    @classmethod
    def load(
        cls,
        certificate_pem: bytes,
        key_pem: bytes,
        trust_domain: str,
        now: float,
        names: tuple[str, str] = ("the certificate", "the key"),
        source: KeySource = keys.IN_MEMORY,
    ) -> "CertificateAuthority":
        """An authority from its certificate and its key's record, checked. `names`: what messages call the two; `source`:
        opens a token's key. Raises CAError, KeyRefused."""
        crt, key_path = names
        remedy = f"restore both {os.path.basename(crt)} and {os.path.basename(key_path)} from one backup"
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = san.get_values_for_type(x509.UniformResourceIdentifier)
        except EXTENSIONS_UNREADABLE as e:
            raise CAError(f"{crt} is damaged ({e}): {remedy}") from e
        try:
            key = source.load(key_pem)
        except KeyRefused as e:
            raise CAError(f"{key_path}: {e}; {remedy}" if not source.uri else f"{key_path}: {e}") from e
        if key.private is not None and key.public != certificate.public_key():
            raise CAError(f"{key_path} is not the key of {crt}: {remedy}")
        if uris != [f"spiffe://{trust_domain}"]:
            raise CAError(
                f"{crt} is for {', '.join(uris) or 'no trust domain'}, the hub is configured for"
                f" spiffe://{trust_domain}: set the trust domain back, or use another data directory"
            )
        authority = cls(certificate, key, trust_domain)
        if now >= authority.not_after:
            raise CAError(
                f"the certificate authority in {crt} ended on {_time(authority.not_after):%Y-%m-%d}; check the clock,"
                " or move ca.crt and ca.key away, start again and let all nodes join anew"
            )
        return authority

    def key_record(self) -> str:
        """The authority's own key, PKCS #8 in clear, or the reference to a token's: for whoever encrypts or backs it up."""
        return self._key.record()

    @property
    def key_reference(self) -> str:
        """Of a key in a token; "" for one that is here."""
        return self._key.reference

    @property
    def key_algorithm(self) -> str:
        """Of its own key."""
        return keys.algorithm_of(self._certificate.public_key())

    def ending(self, now: float, within_s: float = NODE_TTL_S) -> str | None:
        """A warning to log at start when the authority ends within `within_s`, so that certificates get shorter."""
        if self.not_after - now >= within_s:
            return None
        return (
            f"the certificate authority ends on {_time(self.not_after):%Y-%m-%d}: no certificate lasts longer"
        )

    def issue_hub(
        self,
        replica: str,
        trust_domain: str,
        dns_names: Sequence[str],
        ips: Sequence[str],
        now: float,
        algorithm: str = keys.P256,
    ) -> tuple[str, str]:
        """(chain PEM, key PEM) for a hub replica, 24 h: server and client of the edge port and the API.

        dns_names, ips: extra names under which clients reach it, beside `hub.<trust domain>`; algorithm: of the key."""
        self._check_trust_domain(trust_domain)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(HubId(trust_domain, replica).uri())]
        dns = [hub_dns_name(trust_domain), *(_dns_name(name) for name in dns_names)]
        names += [x509.DNSName(name) for name in dict.fromkeys(dns)]
        names += [x509.IPAddress(ip) for ip in dict.fromkeys(_ip(ip) for ip in ips)]
        if len(names) > SANS_MAX:
            raise CAError(f"{len(names)} names for one hub certificate, at most {SANS_MAX} are supported")
        key = keys.generate(algorithm)
        subject = _subject((NameOID.ORGANIZATION_NAME, "CloudHub hub"))
        return self._issue(key.public, subject, names, [SERVER, CLIENT], now, HUB_TTL_S), key.pem()

    def issue_node(
        self,
        csr_pem: str,
        node: NodeId,
        now: float,
        ttl_s: float = NODE_TTL_S,
        not_before: float | None = None,
    ) -> str:
        """Chain PEM for a node: its URI and clientAuth, nothing else. `not_before`: it is not dated back beyond this, unix
        seconds. Raises BadRequest for the request."""
        self._check_trust_domain(node.trust_domain)
        public = request_key(csr_pem)
        subject = _subject((NameOID.ORGANIZATION_NAME, "CloudHub node"))
        return self._issue(
            public, subject, [x509.UniformResourceIdentifier(node.uri())], [CLIENT], now, ttl_s, not_before
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
        key = keys.generate(keys.P256)
        names = [x509.UniformResourceIdentifier(user.uri())]
        return self._issue(key.public, subject, names, [CLIENT], now, ttl_s), key.pem()

    def issue_workload(self, spiffe_id: str, now: float, ttl_s: float) -> tuple[str, str]:
        """(chain PEM, key PEM) for a process beside the hub, as a server and as a client; `spiffe_id`: checked by the caller,
        of this trust domain. Without a DNS or a common name it is neither a hub nor a user of the API."""
        self._check_trust_domain(spiffe_id.removeprefix("spiffe://").partition("/")[0])
        key = keys.generate(keys.P256)
        names = [x509.UniformResourceIdentifier(spiffe_id)]
        subject = _subject((NameOID.ORGANIZATION_NAME, "CloudHub workload"))
        return self._issue(key.public, subject, names, [SERVER, CLIENT], now, ttl_s), key.pem()

    def _check_trust_domain(self, trust_domain: str) -> None:
        if trust_domain != self.trust_domain:
            raise CAError(
                f"this authority is for {self.trust_domain!r} and issues nothing for {trust_domain!r}"
            )

    def _issue(
        self,
        public: keys.PublicKey,
        subject: x509.Name,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        now: float,
        ttl_s: float,
        not_before: float | None = None,
    ) -> str:
        if ttl_s <= 0:
            raise CAError(f"a certificate must last longer than {ttl_s:g} s")
        if now >= self.not_after:
            raise CAError(
                "the certificate authority has ended; replace ca.crt and ca.key and let all nodes join anew"
            )
        root = self._certificate
        begin = max(now - min(BACKDATE_S, BACKDATE_SHARE * ttl_s), root.not_valid_before_utc.timestamp())
        if not_before is not None:
            begin = max(begin, math.ceil(not_before))
        identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(begin))
            .not_valid_after(_time(min(now + ttl_s, self.not_after)))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
            .sign(self._key.signer, self._key.hash)
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _make_root(
    trust_domain: str, now: float, key: SigningKey, common_name: str = ROOT_NAME
) -> x509.Certificate:
    name = _subject((NameOID.ORGANIZATION_NAME, "CloudHub"), (NameOID.COMMON_NAME, common_name))
    public = key.public
    return (
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
        .sign(key.signer, key.hash)
    )


def check_private(key_path: str) -> None:
    """Raises CAError when a file with a key is open to others."""
    mode = os.stat(key_path).st_mode & 0o777
    if os.name != "nt" and mode & 0o077:
        raise CAError(f"{key_path} is open to others (mode {mode:o}): run `chmod 600 {key_path}`")


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


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


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
