"""Ports of loopback for servers that tests start: below those that the kernel gives to whoever connects or binds port 0.
One that was free when it was found is then still free when its server binds it, a second later or after a restart, however
much the tests beside it connect; a process has a block of ports that no other has."""

import fcntl
import os
import socket
import tempfile
import threading
from pathlib import Path

FIRST, BLOCK = 12_000, 256
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoPorts(RuntimeError):
    """Every block is held, or every port of ours has a server."""


class _Block:
    """Ports that are this process's for as long as it lives, given out in turn."""

    def __init__(self) -> None:
        directory = Path(tempfile.gettempdir()) / f"cloudhub-test-ports-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
        end = int(_RANGE.read_text().split()[0])
        for first in range(FIRST, end - BLOCK + 1, BLOCK):
            held = os.open(directory / str(first), os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                continue
            self._first, self._turn = first, 0
            return
        raise NoPorts(f"no block of {BLOCK} ports between {FIRST} and {end} is free ({directory})")

    def take(self) -> int:
        for _ in range(BLOCK):
            port = self._first + self._turn % BLOCK
            self._turn += 1
            if _is_free(port):
                return port
        raise NoPorts(f"all {BLOCK} ports from {self._first} have servers")


_lock = threading.Lock()
_blocks: dict[int, _Block] = {}  # by process: a forked one takes its own


def free_port() -> int:
    """A port that nobody listens at, and that comes again only after all others of the block. Raises NoPorts."""
    with _lock:
        block = _blocks.get(os.getpid())
        if block is None:
            block = _blocks[os.getpid()] = _Block()
        return block.take()


def free_ports(count: int) -> list[int]:
    """Different ports. Raises NoPorts."""
    return [free_port() for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what is left of closed connections is in no one's way
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
