"""Keys and certificates of simulated nodes, on disk between runs.

One folder (0700) for each fleet, named by its trust domain and root, with a file (0600) for each node: the key and the
certificate chain, as OpenSSL reads them at every connection, so that a process of 19,000 nodes keeps none in memory.
`roots.pem` is the trust bundle. A crash loses a file, which is then made again, and leaves no half of one.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from security.errors import SecurityError

ROOTS: Final = "roots.pem"
ENDING_S: Final = 3600.0
"""A certificate that ends within this time is not used for another run."""
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


class IdentityFileError(SecurityError):
    """A cached identity cannot be used. The message names the file and the remedy."""


def new_request() -> tuple[str, str]:
    """(certificate request, private key) with a new P-256 key, PEM. The hub decides the name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "simulated")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return request.public_bytes(serialization.Encoding.PEM).decode(), pem.decode()


class IdentityCache:
    """The identities of one fleet's simulated nodes. `root_sha256`: of the DER of the root that names the fleet."""

    def __init__(self, directory: str, trust_domain: str, root_sha256: bytes) -> None:
        self.directory = os.path.join(directory, f"{trust_domain}-{root_sha256.hex()[:16]}")

    def open(self) -> None:
        """Makes the folder. Raises OSError, IdentityFileError."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        mode = os.stat(self.directory).st_mode
        if mode & 0o077:
            raise IdentityFileError(
                f"{self.directory} holds private keys and others may read it (mode {mode & 0o777:o}); chmod 700 it"
            )

    def path(self, name: str) -> str:
        return os.path.join(self.directory, f"{name}.pem")

    def missing(self, names: Iterable[str], now: float | None = None) -> list[str]:
        """Those of `names` without a certificate that lasts. Raises IdentityFileError, OSError."""
        now = time.time() if now is None else now
        have = set(os.listdir(self.directory))
        return [name for name in names if f"{name}.pem" not in have or self._ends(name) < now + ENDING_S]

    def _ends(self, name: str) -> float:
        path = self.path(name)
        try:
            with open(path, encoding="ascii") as file:
                found = _CERTIFICATE.search(file.read())
            if found is None:
                raise ValueError("it has no certificate")
            return x509.load_pem_x509_certificate(found[0].encode()).not_valid_after_utc.timestamp()
        except ValueError as wrong:
            raise IdentityFileError(f"{path} is damaged: {wrong}; delete it") from wrong

    def save(self, name: str, chain: str, key: str) -> None:
        """Raises OSError."""
        _write(self.path(name), key + chain)

    def save_roots(self, roots: Iterable[str]) -> None:
        """The trust bundle. Raises OSError."""
        _write(os.path.join(self.directory, ROOTS), "".join(root.rstrip() + "\n" for root in roots))

    def roots(self) -> str:
        """PEM. Raises OSError."""
        with open(os.path.join(self.directory, ROOTS), encoding="ascii") as file:
            return file.read()

    def chain(self, name: str) -> str:
        """PEM. Raises OSError."""
        with open(self.path(name), encoding="ascii") as file:
            return "".join(_CERTIFICATE.findall(file.read()))

    def discard(self) -> None:
        """Forgets all of the fleet. Raises OSError."""
        if os.path.isdir(self.directory):
            shutil.rmtree(self.directory)


def _write(path: str, text: str) -> None:
    """Whole or not at all. Not synced: 19,000 times that would take minutes, and what is lost is made again."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, path)
