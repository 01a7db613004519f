"""Key algorithms behind one small interface: what a key is called, its public half, how it signs, and how it is kept.

A `SigningKey` is a key whose private half lies in this process, or in a token that signs for it (`security.pkcs11`; a
TPM can come the same way). Everybody else hands it to the builders of `cryptography` as `private`, and keeps `record`:
PKCS #8 where the key is ours, a reference (RFC 7512, without PIN and module) where it is a token's. So whatever holds a
record, a file or the sealed authority in the store, says which kind of key it is.

Invariant: no other algorithms and strengths than those of ALGORITHMS are made, loaded or accepted from others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from security.algorithms import ALGORITHMS, ED25519, P256, P384, RSA2048, RSA3072
from security.errors import SecurityError

RSA_EXPONENT: Final = 65537
REFERENCE: Final = "pkcs11:"
"""How the record of a key in a token begins."""
_RSA_BITS: Final = {2048: RSA2048, 3072: RSA3072}

__all__ = [
    "ALGORITHMS",
    "CLOSED",
    "ED25519",
    "IN_MEMORY",
    "P256",
    "P384",
    "RSA2048",
    "RSA3072",
    "KeyRefused",
    "KeySource",
    "PrivateKey",
    "PublicKey",
    "SigningKey",
    "algorithm_of",
    "from_pem",
    "generate",
    "hash_of",
]

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class KeyRefused(SecurityError):
    """A key that cannot be made, opened or accepted. The message says why, and what would do."""


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A key that signs here or in a token. `private` is what `cryptography` signs with, None for one in a token that was
    not opened (`CLOSED`)."""

    algorithm: str
    private: PrivateKey | None
    reference: str = ""
    """`pkcs11:..` of a key in a token, "" for one in memory."""

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm}, {self.reference or 'in memory'})"

    @property
    def signer(self) -> PrivateKey:
        """For the builders of `cryptography`. Raises KeyRefused where only the reference is known."""
        if self.private is None:
            raise KeyRefused(f"the token of the key {self.reference} was not opened here")
        return self.private

    @property
    def public(self) -> PublicKey:
        return self.signer.public_key()

    @property
    def hash(self) -> hashes.SHA256 | hashes.SHA384 | None:
        """What its signatures of certificates hash with; None: the algorithm has its own."""
        return hash_of(self.algorithm)

    @property
    def leaves(self) -> bool:
        """Can its private half be read? Not that of a token's."""
        return not self.reference

    def pem(self) -> str:
        """PKCS #8 in clear. Raises KeyRefused for a key that does not leave its token."""
        if not self.leaves:
            raise KeyRefused(f"the key {self.reference} does not leave its token")
        return self.signer.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def record(self) -> str:
        """What to keep of it, and what `KeySource.load` takes: PKCS #8, or the reference."""
        return self.reference or self.pem()


OpenToken = Callable[[str, str], SigningKey]
"""(the record's reference, this replica's own URI) to the key. Raises KeyRefused."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an authority's key comes from, as this replica is told."""

    algorithm: str = P256
    """Of a key that has to be made; what exists keeps its own."""
    uri: str = ""
    """RFC 7512: the key in a token, with module and PIN source; "": keys are made here and kept by the hub."""
    opens: bool = True
    """Tokens are opened; else what loads is the reference alone, for whoever only moves it."""
    _opened: dict[str, SigningKey] = field(default_factory=dict, compare=False, repr=False)
    """Of tokens, by record: a token has few sessions, and records are read often. As many as a fleet has roots."""

    def create(self) -> SigningKey:
        """The key of a new authority. Raises KeyRefused."""
        if not self.uri:
            return generate(self.algorithm)
        from security.pkcs11 import open_key  # the library is an extra, and not for everybody

        return open_key(self.uri)

    def load(self, record: bytes | str) -> SigningKey:
        """The key of a record. Raises KeyRefused: damaged, of another kind than this replica is told, no such token."""
        text = record.decode("utf-8", "replace") if isinstance(record, bytes) else record
        if not text.startswith(REFERENCE):
            return from_pem(text)  # also where a token is named: the next root's key comes from it
        if not self.opens:
            return SigningKey("", None, text.strip())
        if not self.uri:
            raise KeyRefused(
                f"the authority's key is in a token ({text.strip()}): give this replica --ca-key with the token's module"
                " and PIN source"
            )
        key = self._opened.get(text)
        if key is None:
            from security.pkcs11 import open_key

            key = self._opened[text] = open_key(self.uri, text.strip())
        return key


IN_MEMORY: Final = KeySource()
CLOSED: Final = KeySource(opens=False)


def generate(algorithm: str) -> SigningKey:
    """A new key in memory. Raises KeyRefused for an algorithm that is not known."""
    if algorithm == P256:
        return SigningKey(P256, ec.generate_private_key(ec.SECP256R1()))
    if algorithm == P384:
        return SigningKey(P384, ec.generate_private_key(ec.SECP384R1()))
    if algorithm == ED25519:
        return SigningKey(ED25519, ed25519.Ed25519PrivateKey.generate())
    for bits, name in _RSA_BITS.items():
        if name == algorithm:
            return SigningKey(name, rsa.generate_private_key(RSA_EXPONENT, bits))
    raise KeyRefused(f"key algorithm {algorithm!r}: there are {', '.join(ALGORITHMS)}")


def from_pem(text: str) -> SigningKey:
    """A key from its PKCS #8. Raises KeyRefused."""
    try:
        private = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as damaged:
        # The library's words may quote what they could not read.
        raise KeyRefused("the private key is damaged, encrypted or of an unknown kind") from damaged
    if not isinstance(private, PrivateKey):
        raise KeyRefused(f"private keys of {', '.join(ALGORITHMS)} are supported")
    return SigningKey(algorithm_of(private.public_key()), private)


def algorithm_of(public: object) -> str:
    """Which of ALGORITHMS a public key is of. Raises KeyRefused, with the reason, for any other."""
    if isinstance(public, ec.EllipticCurvePublicKey):
        if isinstance(public.curve, ec.SECP256R1):
            return P256
        if isinstance(public.curve, ec.SECP384R1):
            return P384
        raise KeyRefused(f"a key on the curve {public.curve.name}; P-256 and P-384 are supported")
    if isinstance(public, ed25519.Ed25519PublicKey):
        return ED25519
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size not in _RSA_BITS:
            raise KeyRefused(f"an RSA key of {public.key_size} bits; 2048 and 3072 are supported")
        if (exponent := public.public_numbers().e) != RSA_EXPONENT:
            raise KeyRefused(f"an RSA key with the exponent {exponent}; {RSA_EXPONENT} is supported")
        return _RSA_BITS[public.key_size]
    name = type(public).__name__.removesuffix("PublicKey")
    raise KeyRefused(f"a key of the kind {name}; {', '.join(ALGORITHMS)} are supported")


def hash_of(algorithm: str) -> hashes.SHA256 | hashes.SHA384 | None:
    """As strong as the key (RFC 5480, section 4); None for Ed25519, which hashes by itself (RFC 8410)."""
    if algorithm == ED25519:
        return None
    return hashes.SHA384() if algorithm == P384 else hashes.SHA256()
