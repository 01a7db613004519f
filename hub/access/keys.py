"""The keys that sign service account tokens: one set per fleet, made once, rotated by a command.

In a shared store they lie beside the authority, sealed under the same key file, made by a create-if-absent transaction:
of replicas that start together one wins. A hub that is alone keeps them in its data directory, mode 0600. They move with the
fleet (`hub.access.keymoves`).

A rotation adds a key, which signs AHEAD_S later, when all replicas have it by their watch; the ones before verify until the last
token that they may have signed has ended. Besides, a token whose key is not known makes a replica read the set again
(`Keys.refresh`). Every change is a compare-and-swap of the whole set.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable
from typing import Final, Protocol

from hub.files import write_atomically
from security.errors import SecurityError
from security.jwt import LIFE_S_MAX, SigningKey, SigningKeyError, SigningKeys
from security.tokenkeys import seal, unseal
from shards.kv import (
    Ambiguous,
    Compare,
    HistoryLost,
    Put,
    Store,
    StoreError,
    Unavailable,
    key_changed,
)

log = logging.getLogger(__name__)

FILE: Final = "token.keys"
FILE_BYTES_MAX: Final = 65536
REFRESH_S: Final = 5.0
"""Between two readings of the set for tokens with unknown keys: anybody can send such a token."""
AHEAD_S: Final = 10.0
"""Replicas that share a store know a new key for so long before it signs."""
MARGIN_S: Final = 3600.0
"""Keys verify for so long beyond the longest token: replicas' clocks differ."""
RETRY_S: Final = 1.0
SWAPS_MAX: Final = 5
_BEGIN: Final = b"-----BEGIN PRIVATE KEY-----\n"
_END: Final = b"-----END PRIVATE KEY-----\n"
_TIMES: Final = re.compile(rb"begins ([0-9]{1,12})(?: ends ([0-9]{1,12}))?\n")


def signing_keys_key(root: str) -> str:
    """Where the set lies, below a cell's root (which ends in `/`)."""
    return root + "tokenkeys"


class Place(Protocol):
    """Where the set lies. `ahead_s`: how long others take to learn of a change. A revision is whatever `swap` compares."""

    ahead_s: float

    async def read(self) -> tuple[SigningKeys, int]:
        """Raises SecurityError, StoreError, OSError."""
        ...

    async def swap(self, new: SigningKeys, revision: int) -> bool:
        """Puts `new` in place of what was read at `revision`; False when that has changed. Raises StoreError, SecurityError,
        OSError."""
        ...

    async def changed(self, revision: int) -> None:
        """Returns when there may be another set than at `revision`. Raises StoreError."""
        ...


class Keys:
    """The set as this replica knows it."""

    def __init__(self, keys: SigningKeys, revision: int, place: Place) -> None:
        self.current = keys
        self._revision = revision
        self._place = place
        self._refreshed = -REFRESH_S

    async def refresh(self) -> bool:
        """Reads the set again, unless that was done just now; whether it did."""
        now = asyncio.get_running_loop().time()
        if now - self._refreshed < REFRESH_S:
            return False
        self._refreshed = now
        try:
            self._take(*await self._place.read())
        except (StoreError, SecurityError, OSError) as failure:
            log.warning("the keys of service account tokens cannot be read again: %s", failure)
            return False
        return True

    async def follow(self) -> None:
        """Keeps the set as it is elsewhere, for ever; what cannot be read leaves the last one in force. Raises HistoryLost."""
        while True:
            try:
                await self._place.changed(self._revision)
                self._take(*await self._place.read())
            except HistoryLost:
                raise
            except (StoreError, SecurityError, OSError) as failure:
                log.warning("the last keys of service account tokens stay in force: %s", failure)
                await asyncio.sleep(RETRY_S)

    async def rotate(self, now: float, void: bool) -> None:
        """Adds a key, or with `void` puts it in the place of all others, whose tokens end with that. Raises SigningKeyError (too
        many keys still verify), Unavailable, and what the place raises."""
        new = SigningKey.make(now if void else now + self._place.ahead_s)
        for _ in range(SWAPS_MAX):
            held, revision = await self._place.read()
            if new.kid not in {key.kid for key in held.keys}:
                wanted = SigningKeys([new]) if void else held.rotated(new, now, LIFE_S_MAX + MARGIN_S)
                try:
                    if not await self._place.swap(wanted, revision):
                        continue
                except Ambiguous:
                    continue  # the next reading tells
                held, revision = await self._place.read()
            self._take(held, revision)
            log.info(
                "service account tokens are signed by key %s now%s", new.kid, ", no other" if void else ""
            )
            return
        raise Unavailable("the keys of service account tokens change at the same time elsewhere; try again")

    def _take(self, keys: SigningKeys, revision: int) -> None:
        self.current, self._revision = keys, revision


class _Shared:
    """`Place` in a store that replicas share."""

    ahead_s = AHEAD_S

    def __init__(self, store: Store, root: str, secret: Callable[[], bytes]) -> None:
        self._store = store
        self._key = signing_keys_key(root)
        self._secret = secret

    async def read(self) -> tuple[SigningKeys, int]:
        held = await self._store.get(self._key)
        if held is None:
            raise SigningKeyError("the store has no key for service account tokens; start again to make one")
        return unseal(held.value, self._secret()), held.mod_revision

    async def swap(self, new: SigningKeys, revision: int) -> bool:
        value = seal(new.keys, self._secret())
        return (await self._store.txn([Compare(self._key, revision)], [Put(self._key, value)])).succeeded

    async def changed(self, revision: int) -> None:
        await key_changed(self._store, self._key, revision)


async def open_shared(store: Store, root: str, secret: Callable[[], bytes]) -> Keys:
    """The set of this store, made where there is none. `secret`: what the key file holds now. Raises KeyFileError (another
    key file), SigningKeyError (damaged), and what the store raises."""
    place = _Shared(store, root, secret)
    if await store.get(signing_keys_key(root)) is None:
        try:
            if await place.swap(SigningKeys([SigningKey.make()]), 0):
                log.info("made the key that signs service account tokens")
        except Ambiguous:
            log.warning("whether the key of service account tokens was stored is not known; reading it again")
    return Keys(*await place.read(), place)


class _File:
    """`Place` in the directory of a lone hub, which has it locked and is the only one to change it."""

    ahead_s = 0.0

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, FILE)
        self._revision = 1

    async def read(self) -> tuple[SigningKeys, int]:
        revision = self._revision
        return await asyncio.to_thread(read_file, self._path), revision

    async def swap(self, new: SigningKeys, revision: int) -> bool:
        if revision != self._revision:
            return False
        self._revision += 1
        await asyncio.to_thread(write_file, self._path, new)
        return True

    async def changed(self, revision: int) -> None:
        await asyncio.Event().wait()  # by nobody but this process


async def open_alone(directory: str) -> Keys:
    """The set of a hub that is alone, in a directory that its caller has locked. Raises SigningKeyError, OSError."""
    place = _File(directory)
    path = os.path.join(directory, FILE)
    if not await asyncio.to_thread(os.path.exists, path):
        await place.swap(SigningKeys([SigningKey.make()]), 1)
    return Keys(*await place.read(), place)


def read_file(path: str) -> SigningKeys:
    """A lone hub's set. Raises SigningKeyError, OSError."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(FILE_BYTES_MAX)
    if mode & 0o077:
        raise SigningKeyError(f"{path} is open to others (mode {mode & 0o777:o}): run `chmod 600 {path}`")
    return from_text(text)


def write_file(path: str, keys: SigningKeys) -> None:
    """Raises OSError."""
    write_atomically(path, to_text(keys), 0o600)


def to_text(keys: SigningKeys) -> bytes:
    """The set in clear: PEM, with a line of times before each key, which readers of PEM pass over."""
    parts = []
    for key in keys.keys:
        ends = b"" if key.ends is None else b" ends %d" % key.ends
        parts.append(b"begins %d%s\n%s" % (key.begins, ends, key.pem()))
    return b"".join(parts)


def from_text(text: bytes) -> SigningKeys:
    """Raises SigningKeyError."""
    found = []
    for part in text.split(_END):
        head, begin, body = part.partition(_BEGIN)
        if not part.strip():
            continue
        times = _TIMES.search(head)
        begins, ends = times.groups() if times else (b"0", None)
        pem = begin + body + _END
        found.append(SigningKey.from_pem(pem, float(begins), None if ends is None else float(ends)))
    return SigningKeys(found)
