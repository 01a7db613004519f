"""Backup, restore and the move to etcd: what `cloudhub backup`, `restore`, `store copy` and `reencrypt` do with a fleet.

The order of a restore and a copy is what makes them safe to cut off anywhere: the target is marked as half filled,
gets the authority, then the data, is compared with the source, and only then loses the mark. The source of a copy
is marked as moved before that. So no two stores, and no half of one, are ever served (I9).

The generation is raised, and never twice to the same value: the nodes take a higher generation of their store as
confirmed, and of two restores of one backup only one is followed.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from hub import backup, datakeys
from hub import reencrypt as sealing
from hub.access import keymoves
from hub.authority import authority_key, read_directory, save_directory
from hub.backup import Authority, BackupSource, Header
from hub.datakeys import DataKeys
from hub.keyproviders import KeySettings, ensure_own_key_file, key_providers
from hub.objects import Keys
from hub.reencrypt import Resealed
from hub.store.directory import DirectoryLocked
from hub.store.etcd import ROOT, EtcdStore
from hub.store.marks import Opening
from hub.store.sealing import SealedStore
from hub.store.sqlite import SqliteReader, SqliteStore
from hub.transfer import Progress, Source, StoreSource, TransferError, fill
from security.authorities import Authorities
from security.ca import CAError, CertificateAuthority, trust_domain_of
from security.jwt import SigningKeys
from security.keys import CLOSED
from security.sealed import KeyFileError, certificate_of, read_key_file, seal_set, unseal_set
from shards.etcd.client import Tls
from shards.kv import Compacted, Compare, Put, StoreIdentity


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fleet is kept: a hub's data directory, or etcd. `root`: of the cell in it."""

    data_dir: str = ""
    etcd: tuple[str, ...] = ()
    tls: Tls | None = None
    root: str = ROOT

    def __str__(self) -> str:
        return self.data_dir or f"etcd at {','.join(self.etcd)}"


@dataclass(frozen=True, slots=True)
class Done:
    """What was done. `clear`: the backup holds the authority's key, and those of Secrets, in clear."""

    uuid: str
    generation: int
    keys: int
    trust_domain: str
    clear: bool = False


def raised(identity: StoreIdentity, now: float) -> StoreIdentity:
    """The identity of a copy that the nodes follow without being confirmed. By the clock, so that two restores of one
    backup differ."""
    return replace(identity, generation=max(identity.generation + 1, int(now)))


async def back_up(place: Place, path: str, secret: bytes | None, now: float, progress: Progress) -> Done:
    """Writes the fleet at `place` into a new file, while hubs run. With `secret` the authority's key and those of tokens are
    sealed under it; from etcd they always are. Raises StoreError, SecurityError, OSError."""
    async with _pages(place) as (source, sealed):
        if sealed:
            trust_domain = trust_domain_of(certificate_of(sealed.encode()))
            authority, keys = (
                Authority(sealed=sealed),
                await datakeys.read(source.store, place.root, source.revision),
            )
            token_keys = await keymoves.of_store(source, secret)
            if secret is not None:
                unseal_set(sealed.encode(), secret, trust_domain, now, CLOSED)
                datakeys.opened(keys, [secret])
        else:
            held = _held_authority(place.data_dir, now)
            trust_domain = held.trust_domain
            token_keys = await keymoves.of_directory(place.data_dir, secret)
            keys = await datakeys.read(source.store, place.root, source.revision)
            keys = datakeys.opened(keys, [*datakeys.own_key(place.data_dir), *([secret] if secret else [])])
            if secret is not None:
                authority = Authority(sealed=seal_set(held, secret).decode())
                keys = datakeys.wrapped_by(keys, secret)
            elif len(held.held) == 1:
                authority = Authority(certificate=held.active.root_pem, key=held.active.key_record())
            else:
                authority = Authority(clear=seal_set(held, None).decode())
        i = source.identity
        header = Header(
            backup.FORMAT,
            i.uuid,
            i.generation,
            i.format,
            i.slots,
            source.label,
            now,
            trust_domain,
            authority,
            keys,
            token_keys,
        )
        try:
            count = await backup.write(path, source, header, progress)
        except Compacted as late:
            raise TransferError(
                "the backup took longer than the hub keeps history; run it again, or raise the hub's setting `history`"
            ) from late
    return Done(i.uuid, i.generation, count, trust_domain, not authority.sealed)


async def restore(
    source: BackupSource, place: Place, secret: bytes | None, now: float, progress: Progress
) -> Done:
    """Fills the empty store at `place` from a backup; called again it goes on. Raises StoreError, SecurityError,
    OSError."""
    authority = open_authority(source.header, secret, now)
    own = datakeys.own_key(place.data_dir) if place.data_dir else []
    keys = datakeys.opened(source.header.data_keys, [*([secret] if secret else []), *own])
    token_keys = keymoves.opened(source.header.token_keys, secret)
    async with _target(place, source, now) as target:
        sealed = source.header.authority.sealed.encode()
        await _put_authority(target, place, authority, sealed, secret, now)
        await _put_data_keys(target, place, keys, secret)
        await _put_token_keys(target, place, token_keys, secret)
        count = await fill(target, place.root, source, target.identity.generation, progress)
        await target.finish_filling()
        return Done(target.identity.uuid, target.identity.generation, count, authority.trust_domain)


async def copy(data_dir: str, place: Place, secret: bytes, now: float, progress: Progress) -> Done:
    """Moves the fleet of a stopped hub's data directory to etcd; called again it goes on. Raises StoreError,
    SecurityError, OSError."""
    authority = _held_authority(data_dir, now)
    try:
        store = await SqliteStore.open(data_dir, opening=Opening(source=True, moved_to=str(place)))
    except DirectoryLocked as running:
        raise TransferError(
            f"{running}: a fleet that a hub changes cannot be moved; stop the hub first"
        ) from running
    try:
        source = await StoreSource.of(store, ROOT)
        keys = await datakeys.read(store, ROOT, source.revision)
        keys = datakeys.opened(keys, [*datakeys.own_key(data_dir), secret])
        token_keys = keymoves.opened(await keymoves.of_directory(data_dir, None), None)
        async with _target(place, source, now) as target:
            await _put_authority(target, place, authority, b"", secret, now)
            await _put_data_keys(target, place, keys, secret)
            await _put_token_keys(target, place, token_keys, secret)
            count = await fill(target, place.root, source, target.identity.generation, progress)
            await store.mark_moved(str(place))
            await target.finish_filling()
            return Done(target.identity.uuid, target.identity.generation, count, authority.trust_domain)
    finally:
        await store.close()


async def reencrypt(place: Place, keys: KeySettings, new_key: bool, progress: Progress) -> Resealed:
    """Seals all Secrets and join tokens at `place` anew (`hub.reencrypt`), and the authority that replicas share. Raises
    StoreError, SecurityError, OSError."""
    inner: EtcdStore | SqliteStore
    if place.etcd:
        inner = await EtcdStore.open(place.etcd, root=place.root, tls=place.tls, opening=Opening(source=True))
    else:
        try:
            inner = await SqliteStore.open(place.data_dir, opening=Opening(source=True))
        except DirectoryLocked as running:
            raise TransferError(
                f"{running}: stop the hub first, which has the directory for itself"
            ) from running
    try:
        async with key_providers(keys) as providers:
            store = await SealedStore.open(inner, Keys.at(place.root), providers)
            done = await sealing.reencrypt(store, new_key=new_key, progress=progress)
            if place.etcd:
                changed = await sealing.reseal_shared(inner, place.root, read_key_file(keys.key_file))
                done = replace(done, shared=changed)
            return done
    finally:
        await inner.close()


def open_authority(header: Header, secret: bytes | None, now: float) -> Authorities:
    """The authorities in a backup. Raises KeyFileError without the key file or with another one, CAError."""
    held = header.authority
    if held.clear:
        return unseal_set(held.clear.encode(), None, header.trust_domain, now, CLOSED)
    if not held.sealed:
        names = ("the certificate in the backup", "the key in the backup")
        certificate, key = held.certificate.encode(), held.key.encode()
        return Authorities.alone(
            CertificateAuthority.load(certificate, key, header.trust_domain, now, names, CLOSED)
        )
    if secret is None:
        raise KeyFileError("the authority in this backup is sealed: give its key file with --key-file")
    return unseal_set(held.sealed.encode(), secret, header.trust_domain, now, CLOSED)


def _held_authority(data_dir: str, now: float) -> Authorities:
    directory = os.path.join(data_dir, "ca")
    crt, key = os.path.join(directory, "ca.crt"), os.path.join(directory, "ca.key")
    try:
        with open(crt, "rb") as file:
            certificate = file.read()
        domain = trust_domain_of(certificate.decode(errors="replace"))
        held = read_directory(directory, domain, now, CLOSED)
        if held is not None:
            return held
        with open(key, "rb") as file:
            secret = file.read()
    except OSError as failure:
        raise CAError(
            f"cannot read the authority of {data_dir}: {failure}; has a hub run there?"
        ) from failure
    return Authorities.alone(CertificateAuthority.load(certificate, secret, domain, now, (crt, key), CLOSED))


@contextlib.asynccontextmanager
async def _pages(place: Place) -> AsyncIterator[tuple[StoreSource, str]]:
    """The fleet as it is now, and its sealed authority, "" where it lies beside the store."""
    if place.etcd:
        store = await EtcdStore.open(place.etcd, root=place.root, tls=place.tls, opening=Opening(source=True))
        try:
            held = await store.get(authority_key(place.root))
            if held is None:
                raise TransferError(f"{place} has no authority: no hub has served it yet")
            yield await StoreSource.of(store, place.root), held.value.decode()
        finally:
            await store.close()
    else:
        reader = await SqliteReader.open(place.data_dir)
        try:
            yield await StoreSource.of(reader, place.root), ""
        finally:
            await reader.close()


@contextlib.asynccontextmanager
async def _target(place: Place, source: Source, now: float) -> AsyncIterator[EtcdStore | SqliteStore]:
    """The store at `place`, open for filling; one that was begun keeps its generation."""
    opening = Opening(fill=raised(source.identity, now))
    store: EtcdStore | SqliteStore
    if place.etcd:
        store = await EtcdStore.open(place.etcd, root=place.root, tls=place.tls, opening=opening)
    else:
        store = await SqliteStore.open(place.data_dir, opening=opening)
    try:
        if store.identity.generation <= source.identity.generation:
            raise TransferError(f"{place} is half filled from an older backup; use an empty one")
        yield store
    finally:
        await store.close()


async def _put_authority(
    target: EtcdStore | SqliteStore,
    place: Place,
    authority: Authorities,
    sealed: bytes,
    secret: bytes | None,
    now: float,
) -> None:
    if not place.etcd:
        directory = os.path.join(place.data_dir, "ca")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        await asyncio.to_thread(_save, authority, directory)
        return
    if secret is None:
        raise KeyFileError("the authority is sealed in etcd: give the replicas' key file with --key-file")
    key = authority_key(place.root)
    await target.txn([Compare(key, 0)], [Put(key, sealed or seal_set(authority, secret))])
    held = await target.get(key)
    if held is None or certificate_of(held.value) != authority.active.root_pem:
        raise TransferError(f"{place} has another authority already; use an empty one")
    unseal_set(held.value, secret, authority.trust_domain, now, CLOSED)


def _save(authorities: Authorities, directory: str) -> None:
    """Into a lone hub's `ca` directory; what is there already has to be the same. Raises CAError, OSError."""
    held = read_directory(directory, authorities.trust_domain, 0.0, CLOSED)
    if held is None and len(authorities.held) == 1:
        authorities.active.save(directory)
    elif held is None and not os.path.exists(os.path.join(directory, "ca.crt")):
        save_directory(directory, authorities)
    elif held is None or held.id != authorities.id:
        raise CAError(f"{directory} holds another authority; use an empty data directory, or move it away")


async def _put_data_keys(
    target: EtcdStore | SqliteStore, place: Place, keys: DataKeys, secret: bytes | None
) -> None:
    """Wrapped under what the hubs at `place` will have: the replicas' key file, or that of the data directory."""
    if place.data_dir:
        secret = read_key_file(ensure_own_key_file(place.data_dir))
    assert secret is not None  # checked with the authority
    await datakeys.put(target, place.root, datakeys.wrapped_by(keys, secret))


async def _put_token_keys(
    target: EtcdStore | SqliteStore, place: Place, keys: SigningKeys | None, secret: bytes | None
) -> None:
    if place.data_dir:
        await keymoves.put_directory(place.data_dir, keys)
        return
    assert secret is not None  # checked with the authority
    await keymoves.put_store(target, place.root, keys, secret)
