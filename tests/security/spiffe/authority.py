"""Authorities of any shape for tests: roots, intermediates, leaves with any URI."""

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)


@dataclass
class Authority:
    """A root or an intermediate. `above`: DER of the intermediates between it and its root, itself first."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[bytes, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def below(self, trust_domain: str) -> "Authority":
        """An intermediate."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _ca(trust_domain, key, self.certificate, self.key)
        der = made.public_bytes(Encoding.DER)
        return Authority(made, key, (der, *self.above))

    def leaf(self, uri: str, dns: tuple[str, ...] = (), ends_s: float = 3600) -> tuple[str, str]:
        """(chain PEM, key PEM), for server and client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *map(x509.DNSName, dns)]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "leaf")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(minutes=5))
            .not_valid_after(NOW + datetime.timedelta(seconds=ends_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(_above(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        chain = made.public_bytes(Encoding.PEM).decode()
        chain += "".join(
            x509.load_der_x509_certificate(d).public_bytes(Encoding.PEM).decode() for d in self.above
        )
        return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def root(trust_domain: str, name_constraint: str | None = None) -> Authority:
    """A self-signed root, as SPIRE's are."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(_ca(trust_domain, key, None, key, name_constraint), key)


def _ca(
    trust_domain: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    name_constraint: str | None = None,
) -> x509.Certificate:
    serial = x509.random_serial_number()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIFFE"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - datetime.timedelta(minutes=5))
        .not_valid_after(NOW + datetime.timedelta(hours=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://" + trust_domain)]),
            critical=False,
        )
    )
    if issuer is not None:
        builder = builder.add_extension(_above(issuer), critical=False)
    if name_constraint:
        builder = builder.add_extension(
            x509.NameConstraints([x509.UniformResourceIdentifier(name_constraint)], None), critical=True
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _above(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )
