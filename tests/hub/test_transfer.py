"""Moving a fleet between stores, and through a backup."""

import os
import random
import stat
from pathlib import Path

import pytest

from hub.backup import Authority, BackupError, BackupSource, Header, write
from hub.store.memory import MemoryStore
from hub.transfer import StoreSource, TransferError, digest, fill
from shards.kv import Put, TxnResult, Unavailable

ROOT = "/cloudhub/default/"


async def fleet(keys: int = 700) -> MemoryStore:
    store = MemoryStore()
    rng = random.Random(7)
    for i in range(keys):
        key = f"{ROOT}obj/core/pods/{i % 64:04d}/default/p{i}"
        await store.txn([], [Put(key, rng.randbytes(rng.randrange(1, 4000)))])
    await store.txn([], [Put(f"{ROOT}slot/0001/owner", b"{}"), Put(f"{ROOT}slot/0001/epoch", b"{}")])
    await store.txn([], [Put(f"{ROOT}member/hub-1", b"{}"), Put(f"{ROOT}ca", b"sealed")])
    await store.txn([], [Put("/other/cell", b"not ours")])
    return store


async def test_a_copy_holds_the_fleet_and_nothing_of_running_replicas() -> None:
    store, target = await fleet(), MemoryStore()
    source = await StoreSource.of(store, ROOT)
    assert await fill(target, ROOT, source, 2) == 701
    copied = await StoreSource.of(target, ROOT)
    assert await digest(copied) == await digest(source)
    page = await target.page("/", "0", limit=10_000)
    keys = [kv.key for kv in page.items]
    assert len(keys) == 701
    assert not [k for k in keys if "owner" in k or "member" in k or k.endswith(("ca", "transfer", "cell"))]


class Breaking(MemoryStore):
    """Fails for good after some transactions, until `left` is set again."""

    left = 10**9

    async def txn(self, compares, ops) -> TxnResult:
        if self.left <= 0:
            raise Unavailable("gone")
        self.left -= 1
        return await super().txn(compares, ops)


async def test_a_copy_that_was_cut_off_goes_on_where_it_stopped() -> None:
    store, target = await fleet(), Breaking()
    source = await StoreSource.of(store, ROOT)
    target.left = 4
    with pytest.raises(Unavailable):
        await fill(target, ROOT, source, 2)
    target.left = 10**9
    seen: list[int] = []
    assert await fill(target, ROOT, source, 2, seen.append) == 701
    assert seen[0] > 300, "it began anew"
    assert await digest(await StoreSource.of(target, ROOT)) == await digest(source)


async def test_half_of_another_copy_is_not_continued() -> None:
    target = Breaking()
    target.left = 3
    with pytest.raises(Unavailable):
        await fill(target, ROOT, await StoreSource.of(await fleet(), ROOT), 2)
    target.left = 10**9
    with pytest.raises(TransferError, match="half of another transfer"):
        await fill(target, ROOT, await StoreSource.of(await fleet(), ROOT), 2)


async def test_a_target_that_holds_something_is_refused() -> None:
    target = MemoryStore()
    await target.txn([], [Put(ROOT + "obj/x", b"1")])
    with pytest.raises(TransferError, match="differs"):
        await fill(target, ROOT, await StoreSource.of(await fleet(3), ROOT), 2)


async def test_a_target_that_somebody_changed_meanwhile_is_not_called_done() -> None:
    class Meddled(MemoryStore):
        async def txn(self, compares, ops) -> TxnResult:
            result = await super().txn(compares, ops)
            if any(getattr(op, "key", "").endswith("p5") for op in ops):
                await super().txn([], [Put(ROOT + "obj/core/pods/0005/default/p5", b"other")])
            return result

    with pytest.raises(TransferError, match="differs"):
        await fill(Meddled(), ROOT, await StoreSource.of(await fleet(30), ROOT), 2)


def header(source: StoreSource) -> Header:
    i = source.identity
    return Header(1, i.uuid, i.generation, i.format, i.slots, source.label, 1.0, "a.example", Authority("s"))


async def test_a_backup_restores_the_same_fleet(tmp_path: Path) -> None:
    source = await StoreSource.of(await fleet(), ROOT)
    path = str(tmp_path / "fleet.backup")
    assert await write(path, source, header(source)) == 701
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(tmp_path) == ["fleet.backup"]
    backup = BackupSource.open(path)
    assert backup.identity == source.identity
    target = MemoryStore()
    assert await fill(target, ROOT, backup, 2) == 701
    assert await digest(await StoreSource.of(target, ROOT)) == await digest(source)


async def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    source = await StoreSource.of(await fleet(3), ROOT)
    path = tmp_path / "fleet.backup"
    path.write_bytes(b"precious")
    with pytest.raises(BackupError, match="exists"):
        await write(str(path), source, header(source))
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
async def test_a_backup_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    source = await StoreSource.of(await fleet(200), ROOT)
    path = tmp_path / "fleet.backup"
    await write(str(path), source, header(source))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BackupError):
        BackupSource.open(str(path))


async def test_a_backup_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    source = await StoreSource.of(await fleet(50), ROOT)
    path = tmp_path / "fleet.backup"
    await write(str(path), source, header(source))
    data = bytearray(path.read_bytes())
    for at in random.Random(1).sample(range(len(data)), 40):
        changed = bytearray(data)
        changed[at] ^= 0x55
        path.write_bytes(bytes(changed))
        try:
            opened = BackupSource.open(str(path))
        except BackupError:
            continue
        assert await digest(opened) == await digest(source)
