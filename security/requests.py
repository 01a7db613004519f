"""Certificate requests (PKCS #10, RFC 2986): what is taken from them is a public key, after its proof of possession.

A request is signed by the key that it asks a certificate for, so whoever sends it has that key: this is the one place
where that is checked, for JOIN, RENEW and whatever else issues. Names, usages and attributes of a request count for
nothing. Nothing bigger than CSR_CHARS_MAX is parsed.
"""

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from security import keys
from security.errors import SecurityError
from security.parsing import UNREADABLE

CSR_CHARS_MAX = 8192


class BadRequest(SecurityError):
    """A certificate request that is not acceptable: broken, badly signed, or for a key that is not supported."""


def request_key(csr_pem: str) -> keys.PublicKey:
    """The key of a request whose signature proves that the sender has it. Raises BadRequest."""
    if not isinstance(csr_pem, str) or len(csr_pem) > CSR_CHARS_MAX:
        raise BadRequest(f"the certificate request is not text of at most {CSR_CHARS_MAX} characters")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        public = csr.public_key()
        algorithm = keys.algorithm_of(public)
        hashed = csr.signature_hash_algorithm
        if algorithm != keys.ED25519 and not isinstance(
            hashed, (hashes.SHA256, hashes.SHA384, hashes.SHA512)
        ):
            raise BadRequest("the certificate request is not signed with SHA-256, SHA-384 or SHA-512")
        if not csr.is_signature_valid:
            raise BadRequest(
                "the certificate request's signature is wrong: it was changed, or made by another key"
            )
    except keys.KeyRefused as refused:
        raise BadRequest(f"the certificate request is for {refused}") from refused
    except (InvalidSignature, *UNREADABLE) as e:
        raise BadRequest(f"the certificate request cannot be read: {e}") from e
    assert isinstance(public, keys.PublicKey)  # as algorithm_of has said
    return public


def request_key_sha256(csr_pem: str) -> str:
    """Hex SHA-256 of the SubjectPublicKeyInfo of a request, by which join tokens remember it. Raises BadRequest."""
    return public_key_sha256(request_key(csr_pem))


def public_key_sha256(public: keys.PublicKey) -> str:
    """Hex SHA-256 of the SubjectPublicKeyInfo."""
    info = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()
