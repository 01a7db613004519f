"""Keeps secrets in the journal unreadable for whoever takes the disk without the node's private key. [pure]

Everything is sealed under one random data key; the data key is wrapped by a key derived from the node's private key
(ARCHITECTURE.md, "Secrets on the edge"). While a certificate is renewed there are two wraps, one by each private key, so that a
power cut at any moment leaves one that opens.

Sealed: nonce (16 bytes), text XOR keystream, tag (32 bytes). The keystream is HMAC-SHA-256 in counter mode; the tag is
HMAC-SHA-256 over name, nonce and text: encrypt-then-MAC, bound to the name it is kept under. The standard library has no cipher.
Guarantees neither that a removed value is gone from the disk's free blocks, nor anything against root on a running node.
Runs on MicroPython.
"""

import json
from binascii import hexlify, unhexlify

from edgelite.p256 import hmac_sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BYTES = 32
NONCE_BYTES = 16
TAG_BYTES = 32


class Unreadable(Exception):
    """It was sealed under another key, for another name, or was changed since."""


def seal(key: bytes, name: str, text: bytes, nonce: bytes) -> bytes:
    """nonce: NONCE_BYTES, never used before with this key."""
    sealed = nonce + _crypt(key, nonce, text)
    return sealed + _tag(key, name, sealed)


def unseal(key: bytes, name: str, sealed: bytes) -> bytes:
    """Raises Unreadable."""
    cut = len(sealed) - TAG_BYTES
    if cut < NONCE_BYTES or not _same(sealed[cut:], _tag(key, name, sealed[:cut])):
        raise Unreadable("%s is not readable with this node's key" % name)
    return _crypt(key, sealed[:NONCE_BYTES], sealed[NONCE_BYTES:cut])


def _crypt(key: bytes, nonce: bytes, text: bytes) -> bytes:
    stream_key = hmac_sha256(key, b"edgelite vault stream")
    out = bytearray(text)
    for at in range(0, len(out), 32):
        block = hmac_sha256(stream_key, nonce + at.to_bytes(8, "big"))
        for n in range(min(32, len(out) - at)):
            out[at + n] ^= block[n]
    return bytes(out)


def _tag(key: bytes, name: str, sealed: bytes) -> bytes:
    tag_key = hmac_sha256(key, b"edgelite vault tag")
    return hmac_sha256(tag_key, name.encode() + b"\0" + sealed)


def _same(a: bytes, b: bytes) -> bool:
    """Without telling by its time where they differ."""
    different = len(a) ^ len(b)
    for x, y in zip(a, b):  # noqa: B905  (MicroPython's zip has no strict)
        different |= x ^ y
    return not different


class Vault:
    """The data key in use. stored: what `record` gave last, None at first; secrets: bytes of the private keys that may open it,
    the current one first; entropy: bytes fit for keys. `fresh`: nothing could be opened, so what was sealed before is lost."""

    def __init__(
        self, stored: "bytes | None", secrets: "list[bytes]", entropy: "Callable[[int], bytes]"
    ) -> None:
        self._entropy = entropy
        self._key = b""
        for wrap in json.loads(stored or b"[]"):
            for secret in secrets:
                try:
                    self._key = unseal(_wrapping_key(secret), "data key", unhexlify(wrap.encode()))
                except Unreadable:
                    continue
        self.fresh = not self._key
        if self.fresh:
            self._key = entropy(KEY_BYTES)

    def record(self, secrets: "list[bytes]") -> bytes:
        """The data key wrapped for each of these private keys: to be durable before any of them is the only one."""
        wraps = [
            seal(_wrapping_key(secret), "data key", self._key, self._entropy(NONCE_BYTES))
            for secret in secrets
        ]
        return json.dumps([hexlify(wrap).decode() for wrap in wraps]).encode()

    def seal(self, name: str, text: bytes) -> bytes:
        return seal(self._key, name, text, self._entropy(NONCE_BYTES))

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """Raises Unreadable."""
        return unseal(self._key, name, sealed)


def _wrapping_key(secret: bytes) -> bytes:
    return hmac_sha256(secret, b"edgelite vault wrap 1")
