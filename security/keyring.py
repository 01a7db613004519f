"""Who wraps data keys: key providers, and the record of a wrapped key as it lies in the store.

A data key never lies anywhere in clear. A provider wraps it under a key of its own and says which (`Wrapped.id`); several
providers may be known, of which the first wraps and each opens what it has wrapped. `KeyFiles` is here; a key management
service is in `security.kms`.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.errors import SecurityError
from security.sealed import create_key_file, keys_of, read_key_file

_INFO = b"cloudhub wrapped data key v1"
_SALT_BYTES, _NONCE_BYTES = 16, 12


class KeyUnknown(SecurityError):
    """No key that was given opens a data key. The message names the one that is wanted."""


class ProviderFailed(SecurityError):
    """The provider cannot be asked now, or answered what cannot be used. A later try may succeed."""


class Wrapped(msgspec.Struct, frozen=True, omit_defaults=True):
    """A data key at rest. `provider` has wrapped it under its key `id`; `annotations` are the provider's own. Bytes are
    base64 in JSON."""

    provider: str
    id: str
    key: bytes
    annotations: dict[str, bytes] = {}
    v: int = 1


class KeyProvider(Protocol):
    """What wraps data keys. All of it may ask another process."""

    name: str

    async def current(self) -> str:
        """The id of the key that wraps from now on. Raises ProviderFailed, and KeyFileError."""
        ...

    async def wrap(self, data_key: bytes, context: str) -> Wrapped:
        """`context` names the data key: it opens under the same one only. Raises as `current`."""
        ...

    async def unwrap(self, wrapped: Wrapped, context: str) -> bytes:
        """The data key. Raises KeyUnknown, and as `current`."""
        ...

    async def close(self) -> None: ...


class KeyFiles:
    """Keys in files (`security.sealed`): the first of the first file wraps. Files are read whenever a key is wanted, so
    that a new one counts without a restart. `make`: the first file is made when something is wrapped and it is not there;
    never where something is to be opened, for a key that was lost cannot be made again."""

    name = "file"

    def __init__(self, paths: Sequence[str], *, make: bool = False) -> None:
        self._paths = tuple(paths)
        self._make = make

    def _keys(self) -> list[bytes]:
        return [key for path in self._paths for key in keys_of(read_key_file(path))]

    async def current(self) -> str:
        return key_id(self._keys()[0])

    async def wrap(self, data_key: bytes, context: str) -> Wrapped:
        if self._make and not os.path.exists(self._paths[0]):  # noqa: ASYNC240 - once, at the first start
            create_key_file(self._paths[0])
        return wrap(self._keys()[0], data_key, context)

    async def unwrap(self, wrapped: Wrapped, context: str) -> bytes:
        absent = [path for path in self._paths if not os.path.exists(path)]  # noqa: ASYNC240 - once for each data key
        if absent:
            raise KeyUnknown(wanted(wrapped, context, f"{absent[0]} does not exist"))
        return unwrap(self._keys(), wrapped, context, f"the key file {' or '.join(self._paths)}")

    async def close(self) -> None:
        """Nothing is held open."""


def key_id(key: bytes) -> str:
    """The name of a key of a key file, which tells nothing of it: 16 hex digits."""
    return hashlib.sha256(b"cloudhub key id v1\0" + key).hexdigest()[:16]


def wrap(key: bytes, data_key: bytes, context: str) -> Wrapped:
    """The data key sealed under a key of a key file."""
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    text = AESGCM(_derive(key, salt)).encrypt(nonce, data_key, context.encode())
    return Wrapped("file", key_id(key), salt + nonce + text)


def unwrap(keys: Sequence[bytes], wrapped: Wrapped, context: str, where: str) -> bytes:
    """`where` the keys are, for the message. Raises KeyUnknown."""
    cut = _SALT_BYTES + _NONCE_BYTES
    salt, nonce = wrapped.key[:_SALT_BYTES], wrapped.key[_SALT_BYTES:cut]
    for key in keys:
        if key_id(key) != wrapped.id:
            continue
        try:
            return AESGCM(_derive(key, salt)).decrypt(nonce, wrapped.key[cut:], context.encode())
        except (InvalidTag, ValueError) as wrong:
            raise KeyUnknown(
                f"{context} is damaged: key {wrapped.id} of {where} does not open it; restore a backup"
            ) from wrong
    have = ", ".join(key_id(key) for key in keys) or "none"
    raise KeyUnknown(wanted(wrapped, context, f"{where} has {have}"))


def wanted(wrapped: Wrapped, context: str, have: str) -> str:
    """The message for a data key that nobody here can open."""
    return (
        f"{context} is wrapped under key {wrapped.id} of provider {wrapped.provider}, and {have}: give this hub that key as"
        " well; without it Secrets and join tokens cannot be read"
    )


async def unwrap_by(providers: Sequence[KeyProvider], wrapped: Wrapped, context: str) -> bytes:
    """The data key, by the provider that has wrapped it. Raises KeyUnknown, and what the provider does."""
    for provider in providers:
        if provider.name == wrapped.provider:
            return await provider.unwrap(wrapped, context)
    names = ", ".join(provider.name for provider in providers)
    raise KeyUnknown(wanted(wrapped, context, f"only the provider {names} is configured"))


def _derive(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=_INFO).derive(key)
