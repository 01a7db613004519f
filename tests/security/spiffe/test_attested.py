"""The socket that knows its callers: who they are, how many, and who may connect at all."""

import asyncio
import contextlib
import ctypes
import grp
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from security.spiffe.attested import CONNECTIONS_OF_ONE_MAX, AttestedSocket
from security.spiffe.material import SpiffeError

SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}[os.uname().machine]
OTHER = 65534


@contextlib.asynccontextmanager
async def telling(path: Path, group: str = "") -> AsyncIterator[AttestedSocket]:
    """One in front of a server that tells each caller its user, and then echoes."""
    made = AttestedSocket(str(path), group)
    made.prepare()

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{made.uid_of('unix:' + writer.get_extra_info('peername'))}\n".encode())
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(tell, made.inner)
    try:
        async with server:
            await made.start()
            yield made
            await made.stop()
    finally:
        await made.stop()


async def asked(path: Path, sock: socket.socket | None = None) -> tuple[asyncio.StreamWriter, str]:
    """(connection, the first line; "" when it was closed at once)."""
    where = {"sock": sock} if sock else {"path": str(path)}
    reader, writer = await asyncio.open_unix_connection(**where)  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        try:
            line = await reader.readline()
        except OSError:
            line = b""
    return writer, line.decode().strip()


def connected_as(path: Path, uid: int) -> socket.socket:
    """A connection of this process's that the kernel remembers as `uid`'s: only the calling thread changes its user."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep = ctypes.c_uint(0xFFFFFFFF)
    made = socket.socket(socket.AF_UNIX)
    assert libc.syscall(SYS_SETRESUID, keep, ctypes.c_uint(uid), keep) == 0, os.strerror(ctypes.get_errno())
    try:
        made.connect(str(path))
    finally:
        assert libc.syscall(SYS_SETRESUID, keep, ctypes.c_uint(0), keep) == 0
    made.setblocking(False)
    return made


async def test_each_connection_is_its_users() -> None:
    # Not in pytest's directory, which other users cannot enter.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        await each_connection_is_its_users(Path(directory) / "s")


async def each_connection_is_its_users(path: Path) -> None:
    async with telling(path):
        own, said = await asked(path)
        assert said == str(os.geteuid())
        own.close()
        if os.geteuid() == 0:
            os.chmod(path, 0o666)
            other, said = await asked(path, await asyncio.to_thread(connected_as, path, OTHER))
            assert said == str(OTHER)
            other.close()


async def test_one_user_has_a_bounded_number_of_connections(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with telling(path):
        held = [await asked(path) for _ in range(CONNECTIONS_OF_ONE_MAX)]
        assert {said for _, said in held} == {str(os.geteuid())}
        extra, said = await asked(path)
        assert said == ""
        extra.close()
        held[0][0].close()
        async with asyncio.timeout(30):
            while True:  # the end of the closed one is noticed a moment later
                again, said = await asked(path)
                again.close()
                if said:
                    break
        for writer, _ in held:
            writer.close()


async def test_only_its_user_may_connect_or_the_group_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with telling(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    group = grp.getgrgid(os.getegid())
    async with telling(path, group.gr_name):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == group.gr_gid
    with pytest.raises(SpiffeError, match="no group 'nobody-has-this'"):
        async with telling(path, "nobody-has-this"):
            pass


async def test_the_server_behind_cannot_be_reached_past_it(tmp_path: Path) -> None:
    async with telling(tmp_path / "s") as made:
        directory = Path(made.inner).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()


async def test_what_a_dead_process_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with telling(path):
        writer, said = await asked(path)
        assert said
        writer.close()
    path.write_text("somebody's file")
    with pytest.raises(SpiffeError, match="is no socket"):
        async with telling(path):
            pass
    assert path.read_text() == "somebody's file"


async def test_a_path_that_no_socket_can_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpiffeError, match="more than 99 bytes"):
        async with telling(tmp_path / ("x" * 110)):
            pass
