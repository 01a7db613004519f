"""Where the fleet's certificate authorities lie: sealed in a shared store, or beside a lone hub's own.

They are created once, in a shared store by a create-if-absent transaction, sealed under the replicas' key file. Of
replicas that start together on an empty store one wins, and the others take what it has made: two fleets of authorities
never arise. Every later change is a compare-and-swap of the whole set.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Protocol

from hub.files import write_atomically
from security.authorities import Authorities
from security.ca import CAError, CertificateAuthority, check_private
from security.keys import IN_MEMORY, KeySource
from security.sealed import KeyFileError, seal_set, unseal_set
from shards.claims import Fence
from shards.kv import Ambiguous, Compare, HistoryLost, Put, Store, StoreError, key_changed

log = logging.getLogger(__name__)

SET = "authorities.json"
"""In a lone hub's `ca` directory, in place of `ca.key`, once its root was rotated."""
RETRY_S = 1.0


def authority_key(root: str) -> str:
    """Where it lies, below a cell's root (which ends in `/`)."""
    return root + "ca"


class AuthorityStore(Protocol):
    """Reads and changes the set. `revision` is whatever `swap` compares; `source`: where the keys of new roots come from,
    and what opens those in tokens."""

    source: KeySource

    async def read(self, now: float) -> tuple[Authorities, int]:
        """The set, made where there is none. Raises KeyFileError, CAError, RotationError, and what the store raises."""
        ...

    async def swap(self, new: Authorities, revision: int, fence: Fence | None) -> bool:
        """Puts `new` in place of what was read at `revision`; False when that has changed, or `fence` is passed. Raises
        what the store raises."""
        ...

    async def changed(self, revision: int) -> None:
        """Returns when there may be another set than at `revision`."""
        ...


class SharedAuthority:
    """`AuthorityStore` in a store that replicas share. `secret` reads the key file that it is sealed under, each time: its
    keys may change while this runs."""

    def __init__(
        self,
        store: Store,
        root: str,
        secret: Callable[[], bytes],
        trust_domain: str,
        source: KeySource = IN_MEMORY,
    ) -> None:
        self.source = source
        self._store = store
        self._key = authority_key(root)
        self._secret = secret
        self._trust_domain = trust_domain

    async def read(self, now: float) -> tuple[Authorities, int]:
        held = await self._store.get(self._key)
        if held is None:
            made = Authorities.alone(CertificateAuthority.create(self._trust_domain, now, self.source))
            try:
                if await self.swap(made, 0, None):
                    log.info("made the fleet's certificate authority")
            except Ambiguous:
                log.warning("whether the authority was stored is not known; reading it again")
            held = await self._store.get(self._key)
            if held is None:
                raise KeyFileError(
                    "the authority could not be stored; start again once the store can be written"
                )
        found = unseal_set(held.value, self._secret(), self._trust_domain, now, self.source)
        return found, held.mod_revision

    async def swap(self, new: Authorities, revision: int, fence: Fence | None) -> bool:
        compares = [Compare(self._key, revision)]
        if fence is not None:
            compares.append(Compare(fence.key, fence.mod_revision))
        result = await self._store.txn(compares, [Put(self._key, seal_set(new, self._secret()))])
        return result.succeeded

    async def changed(self, revision: int) -> None:
        while True:
            try:
                return await key_changed(self._store, self._key, revision)
            except HistoryLost:
                raise
            except StoreError as failure:
                log.info("the authorities cannot be watched now: %s", failure)
            await asyncio.sleep(RETRY_S)


class OwnAuthority:
    """`AuthorityStore` in the directory of a lone hub, which has it locked and is the only one to change it. Holds one root
    as `ca.crt` and `ca.key`, and from the first rotation on SET, with all roots to trust in `ca.crt`."""

    def __init__(self, directory: str, trust_domain: str, source: KeySource = IN_MEMORY) -> None:
        self.source = source
        self._directory = directory
        self._trust_domain = trust_domain
        self._revision = 1

    async def read(self, now: float) -> tuple[Authorities, int]:
        found = read_directory(self._directory, self._trust_domain, now, self.source)
        if found is None:
            alone = CertificateAuthority.open(self._directory, self._trust_domain, now, self.source)
            found = Authorities.alone(alone)
        return found, self._revision

    async def swap(self, new: Authorities, revision: int, fence: Fence | None) -> bool:
        if revision != self._revision:
            return False
        save_directory(self._directory, new)
        self._revision += 1
        return True

    async def changed(self, revision: int) -> None:
        await asyncio.Event().wait()  # by nobody but this process


def read_directory(
    directory: str, trust_domain: str, now: float, source: KeySource = IN_MEMORY
) -> Authorities | None:
    """The set in a lone hub's `ca` directory; None where no root was ever rotated. `source` opens keys in tokens. Raises CAError, RotationError,
    OSError."""
    path = os.path.join(directory, SET)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    check_private(path)
    try:
        return unseal_set(data, None, trust_domain, now, source)
    except KeyFileError as damaged:
        raise CAError(f"{path} is damaged: {damaged}") from damaged


def save_directory(directory: str, authorities: Authorities) -> None:
    """Writes the set, durably and at once or not at all. Releases that know one root alone refuse to start on it, since
    `ca.key` is gone then. Raises OSError."""
    write_atomically(os.path.join(directory, SET), seal_set(authorities, None))
    bundle = "".join(held.ca.root_pem for held in authorities.held)
    write_atomically(os.path.join(directory, "ca.crt"), bundle.encode(), 0o644)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, "ca.key"))
