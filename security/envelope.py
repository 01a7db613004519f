"""Envelope encryption of single values: sealed under a data key, bound to the name they lie under. [pure]

A sealed value is `MAGIC, length of the generation u8, generation, salt (16), nonce (12), AES-256-GCM text and tag`. Every
value has a key of its own, HMAC-SHA-256(data key, salt): with 28 random bytes for each there is no number of writes after
which a data key has to be changed. Authenticated with it are the generation and the value's name, so a sealed value that
is moved to another name does not open.

Guarantees nothing against whoever replaces a value by an older one of the same name, and shows a value's length.
"""

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.errors import SecurityError

MAGIC = b"\x00sealed1\x00"
"""No JSON begins so: what was written in clear is told apart by it."""
DATA_KEY_BYTES = 32
SALT_BYTES, NONCE_BYTES, TAG_BYTES = 16, 12, 16
GENERATION_BYTES_MAX = 32
OVERHEAD_BYTES_MAX = len(MAGIC) + 1 + GENERATION_BYTES_MAX + SALT_BYTES + NONCE_BYTES + TAG_BYTES


class EnvelopeError(SecurityError):
    """A value does not open: another key, another name, or it was changed."""


def seal(data_key: bytes, generation: str, name: str, plain: bytes, entropy: Callable[[int], bytes]) -> bytes:
    """`generation` names the data key, for whoever opens it; `entropy`: random bytes."""
    head = MAGIC + bytes([len(generation)]) + generation.encode("ascii")
    salt, nonce = entropy(SALT_BYTES), entropy(NONCE_BYTES)
    text = AESGCM(_value_key(data_key, salt)).encrypt(nonce, plain, _bound(head, name))
    return head + salt + nonce + text


def generation_of(value: bytes) -> str | None:
    """The generation that a value is sealed under, None for one in clear. Raises EnvelopeError for a damaged one."""
    if not value.startswith(MAGIC):
        return None
    at = len(MAGIC)
    length = value[at] if len(value) > at else 0
    generation = value[at + 1 : at + 1 + length]
    if not 0 < length <= GENERATION_BYTES_MAX or not generation.isascii() or len(generation) != length:
        raise EnvelopeError("a sealed value is damaged; restore a backup")
    return generation.decode()


def unseal(data_key: bytes, name: str, value: bytes) -> bytes:
    """The plain value; `value` is a sealed one. Raises EnvelopeError."""
    at = len(MAGIC) + 1 + len(generation_of(value) or "")
    salt, nonce = value[at : at + SALT_BYTES], value[at + SALT_BYTES : at + SALT_BYTES + NONCE_BYTES]
    text = value[at + SALT_BYTES + NONCE_BYTES :]
    try:
        return AESGCM(_value_key(data_key, salt)).decrypt(nonce, text, _bound(value[:at], name))
    except (InvalidTag, ValueError) as wrong:
        raise EnvelopeError(
            f"{name} does not open under the data key that it names: it was changed, or sealed for another name; restore"
            " a backup, or write it anew"
        ) from wrong


def _value_key(data_key: bytes, salt: bytes) -> bytes:
    return hmac.digest(data_key, b"cloudhub value key 1" + salt, hashlib.sha256)


def _bound(head: bytes, name: str) -> bytes:
    return head + name.encode()
