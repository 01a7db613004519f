"""A small disk that can be filled: a tmpfs in a mount namespace of its own, which ends with the test.

Hub and agent are started inside of the namespace (`enter`); the test sees the same files at `outside`.
"""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, Agent, Hub, wait_for

BLOCK = 4096


class SmallDisk:
    """`mount` is the directory as seen inside."""

    def __init__(self, mount: Path, size_bytes: int) -> None:
        for program in ("unshare", "nsenter"):
            if shutil.which(program) is None:
                pytest.fail(f"{program} is missing (package util-linux): `make deps-ci` installs it")
        self.mount = mount
        mount.mkdir()
        user = [] if os.geteuid() == 0 else ["-r"]
        script = (
            f'mount -t tmpfs -o size={size_bytes},mode=0700 tmpfs "$0" && echo ready && exec sleep 100000'
        )
        self._keeper = subprocess.Popen(
            ["unshare", *user, "-m", "--propagation", "private", "/bin/sh", "-c", script, str(mount)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "ready\n":
            why = self._keeper.stderr.read().strip()
            self.close()
            pytest.fail(
                f"this machine allows no tmpfs in a mount namespace ({why}): run as root, or allow unprivileged user "
                "namespaces (sysctl kernel.unprivileged_userns_clone=1)"
            )
        self.outside = Path(f"/proc/{self._keeper.pid}/root{mount}")
        self._ballast = self.outside / "ballast"

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs `argv` where the disk is."""
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]
        return ["nsenter", "-t", str(self._keeper.pid), *user, "-m", *inside, *argv]

    def fill(self) -> None:
        """Takes what room is left."""
        fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                os.write(fd, bytes(BLOCK))
        except OSError as failure:
            assert failure.errno == errno.ENOSPC
        finally:
            os.close(fd)

    def free(self) -> None:
        """Gives it back."""
        self._ballast.unlink()

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        for pipe in (self._keeper.stdout, self._keeper.stderr):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def small_disk(mount: Path, size_bytes: int) -> Iterator[SmallDisk]:
    disk = SmallDisk(mount, size_bytes)
    try:
        yield disk
    finally:
        disk.close()


class HubOnDisk(Hub):
    """A hub whose data directory is on a small disk."""

    def __init__(self, disk: SmallDisk, root: Path) -> None:
        super().__init__(disk.outside / "hub")
        self._disk = disk
        self.log_path = root / "hub.log"

    def argv(self) -> list[str]:
        inside = str(self._disk.mount / "hub")
        return self._disk.enter(*[inside if a == str(self.data_dir) else a for a in super().argv()])

    def ends(self) -> int:
        """Waits until the process that was spawned has ended by itself; the exit code."""
        process, self.process = self.process, None
        assert process is not None
        wait_for(lambda: process.poll() is not None, "the hub gives up", detail=self.log)
        return int(process.returncode)


class AgentOnDisk(Agent):
    """An agent whose data directory is on a small disk."""

    def __init__(self, name: str, disk: SmallDisk) -> None:
        super().__init__(name, disk.mount / "agent")
        root = disk.mount.parent
        self.prefix = disk.enter()
        self.log_path, self.boot_id_file = root / f"{name}.log", root / f"{name}.boot"
        self.boot_id_file.write_text("11111111-0000-0000-0000-000000000000\n")
