"""What simulated nodes of the tests keep, and how they join."""

import ssl

from cryptography import x509

from edgelite import credentials
from hub.simulate import enrolling
from hub.simulate.identities import new_request
from security import tls


class Kept:
    """What an agent keeps on disk: certificate, key, roots, and the key of a renewal under way."""

    def __init__(self, cert: str, key_pem: str, roots: list[str]) -> None:
        self.cert, self.key_pem, self.roots = cert, key_pem, roots
        self._next = ""
        self.context = self._made()

    def _made(self) -> ssl.SSLContext:
        return tls.client_context("".join(self.roots), self.cert, self.key_pem)

    @property
    def trust(self) -> str:
        """The short name of the bundle."""
        return credentials.bundle_id("".join(self.roots))

    @property
    def mark(self) -> str:
        """What the hub knows the certificate by."""
        return credentials.mark_of(self.cert)

    @property
    def issuer(self) -> str:
        """The common name of the root that it comes from."""
        name = x509.load_pem_x509_certificate(self.cert.encode()).issuer
        return str(name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)

    def request(self) -> str:
        """A request for a renewal, with a new key."""
        request, self._next = new_request()
        return request

    def install(self, cert: str, roots: list[str]) -> None:
        """What RENEWED (or with no certificate BUNDLE) has brought; the next connection shows it."""
        if cert:
            self.cert, self.key_pem = cert, self._next
        self.roots = roots
        self.context = self._made()


def enrol(edges: list[str], token: str, root: str, server_name: str, name: str) -> tuple[str, str]:
    """(certificate, key), PEM, of a node that a pool token admits; at any of the addresses. Raises NotEnrolled."""
    joined = enrolling.enrol(enrolling.Entrance(edges, token, root, server_name), name)
    return joined.chain, joined.key
