"""Which keys wrap the data keys of a hub's store, by its settings.

A replica of several has the key file that seals their authority. A hub that is alone has one of its own in its data
directory, made at its first start, unless it is given a key file; the one in the data directory then opens still what it
has wrapped. A key management service, where there is one, wraps, and the files open what they have wrapped before.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from security.keyring import KeyFiles, KeyProvider
from security.sealed import create_key_file

OWN_KEY_FILE = "secrets.key"


def own_key_file(data_dir: str) -> str:
    """The key file of a hub that is alone."""
    return os.path.join(data_dir, OWN_KEY_FILE)


def ensure_own_key_file(data_dir: str) -> str:
    """The same, made where there is none. Raises OSError."""
    path = own_key_file(data_dir)
    if not os.path.exists(path):
        create_key_file(path)
    return path


@dataclass(frozen=True, slots=True)
class KeySettings:
    """Where a hub's keys are. `data_dir`: of one that is alone, else ""; `key_file`, `kms_socket`: "" for none."""

    data_dir: str = ""
    key_file: str = ""
    kms_socket: str = ""

    def provider(self) -> KeyFiles | None:
        """The key files, the one that wraps first; None where there are none."""
        given = [self.key_file] if self.key_file else []
        own = own_key_file(self.data_dir) if self.data_dir else ""
        if own and (os.path.exists(own) or not (given or self.kms_socket)):
            return KeyFiles([*given, own], make=not given)
        return KeyFiles(given) if given else None


@contextlib.asynccontextmanager
async def key_providers(settings: KeySettings) -> AsyncIterator[tuple[KeyProvider, ...]]:
    """The providers, the one that wraps first."""
    files = settings.provider()
    providers: list[KeyProvider] = [files] if files else []
    if settings.kms_socket:
        from security.kms.provider import KmsProvider  # grpc takes 14 MB

        providers.insert(0, KmsProvider(settings.kms_socket))
    try:
        yield tuple(providers)
    finally:
        for provider in providers:
            await provider.close()
