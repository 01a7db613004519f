"""The keys of service account tokens at rest in a shared store: sealed under the replicas' key file.

Each key is encrypted with AES-256-GCM under a key derived from the key file by HKDF-SHA-256 with a salt of its own, and
bound to its id. Whoever has the store and not the key file has ids and times alone.
"""

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.jwt import SigningKey, SigningKeyError, SigningKeys
from security.sealed import KeyFileError, keys_of

_INFO: Final = b"cloudhub sealed token key v1"
_SALT_BYTES, _NONCE_BYTES = 16, 12


class SealedKey(msgspec.Struct, frozen=True):
    """One key at rest. Bytes are base64 in JSON. `begins`, `ends`: as of `SigningKey`."""

    kid: str
    salt: bytes
    nonce: bytes
    key: bytes
    begins: float = 0.0
    ends: float | None = None


class SealedKeys(msgspec.Struct, frozen=True):
    """A set at rest, the newest key first. Releases that know no times sign with the first, too, and verify by all."""

    keys: list[SealedKey]
    v: int = 1


def seal(keys: Sequence[SigningKey], secret: bytes) -> bytes:
    """The set as JSON, under the first key of a key file. `secret`: what that file holds."""
    return msgspec.json.encode(SealedKeys([_seal(key, keys_of(secret)[0]) for key in keys]))


def _seal(key: SigningKey, secret: bytes) -> SealedKey:
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    text = AESGCM(_derive(secret, salt)).encrypt(nonce, key.pem(), key.kid.encode())
    return SealedKey(key.kid, salt, nonce, text, key.begins, key.ends)


def unseal(data: bytes, secret: bytes) -> SigningKeys:
    """The set again, by whichever key of the key file opens it. Raises KeyFileError for another key file, SigningKeyError
    for a damaged set."""
    return SigningKeys([key for key, _ in _open(data, secret)])


def resealed(data: bytes, secret: bytes) -> bytes | None:
    """The set under the first key of a key file, None where it is so already. Raises as `unseal`."""
    opened = _open(data, secret)
    return seal([key for key, _ in opened], secret) if any(number for _, number in opened) else None


def _open(data: bytes, secret: bytes) -> list[tuple[SigningKey, int]]:
    """The keys, and which of the key file's keys each is sealed under."""
    try:
        found = msgspec.json.decode(data, type=SealedKeys)
    except msgspec.MsgspecError as damaged:
        raise SigningKeyError(
            f"the keys of service account tokens in the store are damaged ({damaged}): restore a backup, or remove them to "
            "have new ones made, and every token requested anew"
        ) from damaged
    if found.v != 1:
        raise SigningKeyError(
            f"the keys of service account tokens have format {found.v}, this hub knows 1: start a newer hub"
        )
    return [_unseal(sealed, secret) for sealed in found.keys]


def _unseal(sealed: SealedKey, secret: bytes) -> tuple[SigningKey, int]:
    for number, candidate in enumerate(keys_of(secret)):
        try:
            pem = AESGCM(_derive(candidate, sealed.salt)).decrypt(
                sealed.nonce, sealed.key, sealed.kid.encode()
            )
        except (InvalidTag, ValueError):
            continue  # perhaps the next one
        return SigningKey.from_pem(pem, sealed.begins, sealed.ends), number
    raise KeyFileError(
        "the key file is not the one that this fleet's token keys are sealed under: give this replica the key file of"
        " the others"
    )


def _derive(secret: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=_INFO).derive(secret)
