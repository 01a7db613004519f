"""Certificates for tests of the edge port: a CA in a temporary directory, hub and node identities, a client context."""

import ssl
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from security.ca import CertificateAuthority
from security.identity import NodeId
from security.keys import P256, KeySource
from security.tls import client_context, edge_server_context

TRUST_DOMAIN = "cloudhub.local"


class Pki:
    """One authority, one hub certificate, both with keys of `algorithm`, and one key that all simulated nodes share (keys
    cost most of the time)."""

    def __init__(self, directory: str, algorithm: str = P256) -> None:
        self.ca = CertificateAuthority.open(directory, source=KeySource(algorithm))
        self.hub_cert, self.hub_key = self.ca.issue_hub(
            "hub-0", TRUST_DOMAIN, ["localhost"], ["127.0.0.1"], time.time(), algorithm
        )
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        self.csr_pem = csr(self.key)

    def server(self) -> ssl.SSLContext:
        return edge_server_context(self.hub_cert, self.hub_key, self.ca.root_pem)

    def node_cert(self, name: str, affinity: str | None = None, tenant: str = "default") -> str:
        identity = NodeId(TRUST_DOMAIN, tenant, affinity or name, name)
        return self.ca.issue_node(self.csr_pem, identity, time.time())

    def client(self, name: str | None, affinity: str | None = None) -> ssl.SSLContext:
        """A context that shows `name`'s certificate; None: none."""
        if name is None:
            return client_context(self.ca.root_pem)
        return client_context(self.ca.root_pem, self.node_cert(name, affinity), self.key_pem)


def csr(key: ec.EllipticCurvePrivateKey, name: str = "anything") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
