"""A Unix socket that knows its callers: the user of each connection, as the kernel says (SO_PEERCRED).

gRPC's servers do not tell it. So callers connect here; each connection is carried on to a socket in a directory of
mode 0700, from an end with a name of its own, by which the server behind knows the connection again.
"""

import asyncio
import contextlib
import grp
import logging
import os
import shutil
import socket
import stat
import struct
from typing import Final

from security.spiffe.material import SpiffeError
from security.spiffe.relay import close, pump

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 128
CONNECTIONS_OF_ONE_MAX: Final = 16
PATH_BYTES_MAX: Final = 107  # sun_path of Linux, less its NUL
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class AttestedSocket:
    """See the module. `inner` is where the server behind listens."""

    def __init__(self, path: str, group: str = "") -> None:
        """`path`: where callers connect; mode 0600, or 0660 with `group`."""
        self.path = path
        self._group = group
        self._directory = ""
        self._server: asyncio.Server | None = None
        self._uids: dict[str, int] = {}
        self._counts: dict[int, int] = {}
        self._made = 0
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def inner(self) -> str:
        """The path for the server behind; there after `prepare`."""
        return os.path.join(self._directory, "inner")

    def prepare(self) -> None:
        """Makes the directory of `inner`, beside the socket, in place of what a killed process left. Raises SpiffeError for
        a path that is too long, OSError."""
        directory = self.path + ".d"
        if len(os.fsencode(directory + "/inner")) > PATH_BYTES_MAX:
            raise SpiffeError(
                f"the socket {self.path} has a path of more than {PATH_BYTES_MAX - len('.d/inner')} bytes; choose a shorter one"
            )
        if os.path.lexists(directory):
            shutil.rmtree(directory)  # refuses a symbolic link
        os.mkdir(directory, 0o700)
        self._directory = directory

    async def start(self) -> None:
        """Listens; the server behind serves already. Raises SpiffeError for a path or group that cannot be, OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(self.path)
            listener.bind(self.path)
            # Nobody can connect before it listens, so its mode is right from the first connection on.
            os.chmod(self.path, 0o600)
            if self._group:
                os.chown(self.path, -1, _group_id(self._group))
                os.chmod(self.path, 0o660)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._accepted, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Closes every connection and takes the socket away."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._directory:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def uid_of(self, peer: str) -> int | None:
        """The user behind a connection that the server behind calls `peer` (gRPC's `unix:<path>`)."""
        return self._uids.get(peer.removeprefix("unix:"))

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # it was on its way already
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="workload API caller")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also where it was ended before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._carry(reader, writer)
        except OSError as failure:
            log.warning("a caller of %s could not be served: %s", self.path, failure)
        finally:
            await close(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid = _UCRED.unpack(raw)[1]
        count = self._counts.get(uid, 0)
        if count >= CONNECTIONS_OF_ONE_MAX or len(self._uids) >= CONNECTIONS_MAX:
            log.warning("uid %d has %d connections to %s; one more is refused", uid, count, self.path)
            return
        self._made += 1
        name = os.path.join(self._directory, f"c{self._made}")
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._counts[uid] = count + 1
        self._uids[name] = uid
        try:
            end.setblocking(False)
            end.bind(name)
            await asyncio.get_running_loop().sock_connect(end, self.inner)
            await pump((reader, writer), await asyncio.open_unix_connection(sock=end))
        finally:
            end.close()
            del self._uids[name]
            self._counts[uid] -= 1
            if not self._counts[uid]:
                del self._counts[uid]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _remove_stale(path: str) -> None:
    """A socket that an ended process left; anything else is not ours to remove."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SpiffeError(f"{path} is there and is no socket; move it away or choose another path")
    os.unlink(path)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SpiffeError(f"there is no group {name!r} on this machine") from None
