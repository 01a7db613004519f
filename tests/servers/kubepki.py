"""The certificates, keys and tokens of a cluster of the tests, made by `cryptography` as kubeadm would make them."""

import base64
import datetime
import ipaddress
import json
import os
import time
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER = "https://kubernetes.default.svc"
LIFE = datetime.timedelta(days=1)
BACKDATED = datetime.timedelta(minutes=5)


class Pki:
    """One authority for servers and clients, and the key that signs service-account tokens. Files are PEM; keys 0600."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self._root = (
            self._certificate(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.root_pem = self._root.public_bytes(serialization.Encoding.PEM).decode()
        self.root = self._write("ca.crt", self.root_pem)
        self.root_key = self._write("ca.key", _pem(self._key))
        self._signer = ec.generate_private_key(ec.SECP256R1())
        self.signer_key = self._write("sa.key", _pem(self._signer))
        public = self._signer.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.signer_public = self._write("sa.pub", public.decode())

    def issue(
        self, name: str, groups: tuple[str, ...] = (), addresses: tuple[str, ...] = ()
    ) -> tuple[str, str]:
        """Paths of a certificate and its key, for a client `name` in `groups`, and for a server at `addresses` (IPs and
        DNS names) where there are some."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if addresses else [])]
        builder = (
            self._certificate(subject, self._root.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if addresses:
            names = x509.SubjectAlternativeName([_general_name(address) for address in addresses])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        file = name.replace(":", "-").replace("/", "-")
        chain = signed.public_bytes(serialization.Encoding.PEM).decode()
        return self._write(f"{file}.crt", chain), self._write(f"{file}.key", _pem(key))

    def token(self, namespace: str, account: str, uid: str, life_s: float) -> str:
        """A service account's token as the API server signs them, of any life; negative: one that has expired."""
        now = time.time()
        claims = {
            "aud": [ISSUER],
            "iss": ISSUER,
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": int(now + min(0.0, life_s) - 60),
            "nbf": int(now + min(0.0, life_s) - 60),
            "exp": int(now + life_s),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}},
        }
        header = {"alg": "ES256", "typ": "JWT"}
        signed = ".".join(_url64(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._signer.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def kubeconfig(
        self, server: str, name: str, groups: tuple[str, ...] = (), *, token_file: str | None = None
    ) -> str:
        """The path of a kubeconfig for `name`: with a certificate of its own, or with the token in `token_file`."""
        user: dict[str, str] = {}
        if token_file is not None:
            user["tokenFile"] = token_file
        else:
            for key, path in zip(("client-certificate", "client-key"), self.issue(name, groups), strict=True):
                user[f"{key}-data"] = base64.b64encode(Path(path).read_bytes()).decode()
        root = base64.b64encode(self.root_pem.encode()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": root}}],
            "users": [{"name": name, "user": user}],
        }
        port = server.rsplit(":", 1)[-1]
        return self._write(f"{name.replace(':', '-')}-{port}.kubeconfig", yaml.safe_dump(config))

    def _certificate(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFE)
        )

    def _write(self, name: str, text: str) -> str:
        path = self._directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return os.fspath(path)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
