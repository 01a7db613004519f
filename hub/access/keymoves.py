"""The keys of service account tokens of a fleet that is saved, restored or moved: sealed for the place that they come to.

So tokens outlive a restore as far as their accounts, and what they are bound to, do. A key that was put out of use after a
backup was taken is in use again where that backup is restored.
"""

import asyncio
import os

import msgspec

from hub.access import keys as tokenkeys
from hub.access.keys import signing_keys_key
from hub.transfer import StoreSource, TransferError
from security.jwt import SigningKeys
from security.sealed import KeyFileError
from security.tokenkeys import seal, unseal
from shards.kv import Compare, Put, Store


class TokenKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    """The set in a backup: `sealed` under a key file (as in a shared store), or in `clear`; neither where there was none."""

    sealed: str = ""
    clear: str = ""


async def of_store(source: StoreSource, secret: bytes | None) -> TokenKeys:
    """Those of a shared store; with `secret` it is checked that it opens them. Raises KeyFileError, SigningKeyError, and what
    the store raises."""
    key = signing_keys_key(source.root)
    page = await source.store.page(key, key + "\0", revision=source.revision)
    if not page.items:
        return TokenKeys()
    if secret is not None:
        unseal(page.items[0].value, secret)
    return TokenKeys(sealed=page.items[0].value.decode())


async def of_directory(data_dir: str, secret: bytes | None) -> TokenKeys:
    """Those of a lone hub, sealed under `secret` where there is one. Raises SigningKeyError, OSError."""
    path = _path(data_dir)
    try:
        held = await asyncio.to_thread(tokenkeys.read_file, path)
    except FileNotFoundError:
        return TokenKeys()
    if secret is None:
        return TokenKeys(clear=tokenkeys.to_text(held).decode())
    return TokenKeys(sealed=seal(held.keys, secret).decode())


def opened(held: TokenKeys, secret: bytes | None) -> SigningKeys | None:
    """None where there was none. Raises KeyFileError, SigningKeyError."""
    if held.clear:
        return tokenkeys.from_text(held.clear.encode())
    if not held.sealed:
        return None
    if secret is None:
        raise KeyFileError(
            "the keys of service account tokens in this backup are sealed: give its key file with --key-file"
        )
    return unseal(held.sealed.encode(), secret)


async def put_store(target: Store, root: str, held: SigningKeys | None, secret: bytes) -> None:
    """Writes them into a shared store that is being filled; called again it changes nothing. Raises TransferError."""
    if held is None:
        return
    key = signing_keys_key(root)
    await target.txn([Compare(key, 0)], [Put(key, seal(held.keys, secret))])
    there = await target.get(key)
    if there is None or not _same(unseal(there.value, secret), held):
        raise TransferError(
            "the target has other keys of service account tokens already; empty the target and run the command again"
        )


async def put_directory(data_dir: str, held: SigningKeys | None) -> None:
    """Writes them into a data directory that is being filled, as `put_store`. Raises TransferError, SigningKeyError, OSError."""
    if held is None:
        return
    path = _path(data_dir)
    if not await asyncio.to_thread(os.path.exists, path):
        await asyncio.to_thread(tokenkeys.write_file, path, held)
    elif not _same(await asyncio.to_thread(tokenkeys.read_file, path), held):
        raise TransferError(f"{path} holds other keys; use an empty data directory, or move it away")


def _path(data_dir: str) -> str:
    return os.path.join(data_dir, "ca", tokenkeys.FILE)


def _same(one: SigningKeys, other: SigningKeys) -> bool:
    return [key.kid for key in one.keys] == [key.kid for key in other.keys]
