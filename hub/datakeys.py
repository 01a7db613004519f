"""Data keys of a fleet that is saved, restored or moved: wrapped anew under the key of the place that they come to.

What they seal is moved as it is (`hub.transfer`). Keys that a key file wraps are opened and wrapped again; those of a key
management service stay as they are, and their new place needs the same service. A backup that is not sealed holds them in
clear, as it does the authority's key.
"""

import os
from collections.abc import Sequence

import msgspec

from hub.keyproviders import own_key_file
from hub.store.sealing import GENERATIONS_MAX, Current, SealKeys, context_of
from hub.transfer import Pages, TransferError
from security.keyring import Wrapped, unwrap, wrap
from security.sealed import keys_of, read_key_file
from shards.kv import Compare, Put, Store, Unreadable, prefix_end

CLEAR = "clear"
"""The provider of a key that is not wrapped, in a backup that is not sealed."""


class DataKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    """All data keys of a fleet by generation, and which seals; none before its first sealed value."""

    current: Current | None = None
    keys: dict[str, Wrapped] = {}


async def read(pages: Pages, root: str, revision: int) -> DataKeys:
    """Those of a store at one revision. Raises Unreadable, and what the store raises."""
    places = SealKeys(root)
    page = await pages.page(
        places.prefix, prefix_end(places.prefix), revision=revision, limit=GENERATIONS_MAX
    )
    current, keys = None, {}
    try:
        for kv in page.items:
            if kv.key == places.current:
                current = msgspec.json.decode(kv.value, type=Current)
            else:
                keys[kv.key.removeprefix(places.keys)] = msgspec.json.decode(kv.value, type=Wrapped)
    except msgspec.MsgspecError as wrong:
        raise Unreadable(f"a data key in the store is damaged ({wrong}); restore a backup") from wrong
    return DataKeys(current, keys)


def opened(held: DataKeys, key_files: Sequence[bytes]) -> DataKeys:
    """The same with what key files wrap in clear. `key_files`: what each holds. Raises KeyUnknown."""
    keys = [key for text in key_files for key in keys_of(text)]
    found = {}
    for generation, wrapped in held.keys.items():
        if wrapped.provider == "file":
            plain = unwrap(keys, wrapped, context_of(generation), "the key file of --key-file")
            wrapped = Wrapped(CLEAR, "", plain)
        found[generation] = wrapped
    return DataKeys(held.current, found)


def wrapped_by(held: DataKeys, key_file: bytes) -> DataKeys:
    """The same with what is in clear wrapped under the first key of a key file. `key_file`: what it holds."""
    key = keys_of(key_file)[0]
    keys = {
        generation: wrap(key, wrapped.key, context_of(generation)) if wrapped.provider == CLEAR else wrapped
        for generation, wrapped in held.keys.items()
    }
    return DataKeys(held.current, keys)


async def put(target: Store, root: str, held: DataKeys) -> None:
    """Writes them into a store that is being filled; called again it changes nothing. Raises TransferError."""
    if held.current is None:
        return
    places = SealKeys(root)
    puts = [Put(places.key(generation), msgspec.json.encode(w)) for generation, w in held.keys.items()]
    result = await target.txn(
        [Compare(places.current, 0)], [Put(places.current, msgspec.json.encode(held.current)), *puts]
    )
    if result.succeeded:
        return
    there = result.current[0]
    if there is None or msgspec.json.decode(there.value, type=Current) != held.current:
        raise TransferError(
            "the target has other data keys already; empty the target and run the command again"
        )


def own_key(data_dir: str) -> list[bytes]:
    """What the key file of a hub that is alone holds, nothing where there is none. Raises KeyFileError."""
    path = own_key_file(data_dir)
    return [read_key_file(path)] if os.path.exists(path) else []
