"""A Podman service of the tests' own: its storage, socket and locks lie in one temporary directory, and it leaves nothing behind.

    from tests.podman import podman  # noqa: F401  (a session fixture)

    def test_x(podman: Podman) -> None: ...  # podman.socket, podman.run("ps", "-a")

IMAGE is there: a static busybox with its links, no registry is needed. Networking is the host's only. When something is missing the
tests fail, they are not skipped: an agent without a tested container runtime is not what this project promises.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IMAGE = "localhost/bb:1"
MISSING = "%s is not installed, and the container runtime is tested with a real engine: run `make deps-ci` (root, Debian)"
START_S = 30.0


class Podman:
    """One service. `stop` removes every container and the directory; it may be called again."""

    def __init__(self) -> None:
        for program in ("podman", "runc", "busybox"):
            if shutil.which(program) is None:
                pytest.fail(MISSING % program, pytrace=False)
        self.root = Path(tempfile.mkdtemp(prefix="podman-"))  # short: a socket's path has 107 bytes
        self.socket = str(self.root / "podman.sock")
        self._service: subprocess.Popen[bytes] | None = None
        conf = self.root / "containers.conf"
        # Locks in files of its own: those in shared memory are shared by all services of the machine.
        conf.write_text('[engine]\nlock_type = "file"\nevents_logger = "file"\n')
        self.env = {**os.environ, "CONTAINERS_CONF": str(conf)}
        self.driver = "overlay"
        if subprocess.run(self._argv("info"), env=self.env, capture_output=True).returncode:
            self.driver = "vfs"
        self._make_image()
        self.serve()

    def _argv(self, *args: str) -> list[str]:
        places = ["--root", self.root / "root", "--runroot", self.root / "run", "--tmpdir", self.root / "tmp"]
        options = ["--storage-driver", self.driver, "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        return ["podman", *map(str, places), *options, *args]

    def run(self, *args: str, check: bool = True) -> str:
        """The output of a podman command on this service's storage."""
        done = subprocess.run(self._argv(*args), env=self.env, cwd=self.root, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(args)}: {done.stderr}")
        return done.stdout

    def _make_image(self) -> None:
        tree = self.root / "image"
        for name in ("bin", "tmp", "etc"):
            (tree / name).mkdir(parents=True)
        (tree / "tmp").chmod(0o1777)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin" / "busybox")
        for applet in subprocess.run(
            [busybox, "--list"], capture_output=True, text=True, check=True
        ).stdout.split():
            if applet != "busybox":
                (tree / "bin" / applet).symlink_to("busybox")
        (tree / "etc" / "passwd").write_text(
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        )
        (tree / "etc" / "group").write_text("root:x:0:\nnobody:x:65534:\n")
        archive = self.root / "image.tar"
        subprocess.run(["tar", "-c", "-C", str(tree), "-f", str(archive), "."], check=True)
        self.run("import", str(archive), IMAGE)

    def serve(self) -> None:
        """Starts the service, and returns when it takes connections."""
        log = (self.root / "service.log").open("ab")
        argv = self._argv("system", "service", "--time", "0", "unix://" + self.socket)
        with log:
            # A monitor that sees its container run out of memory leaves a file where the service was started.
            self._service = subprocess.Popen(
                argv, env=self.env, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        limit = time.monotonic() + START_S
        while not os.path.exists(self.socket):
            if self._service.poll() is not None or time.monotonic() > limit:
                raise AssertionError(
                    "podman does not serve: " + (self.root / "service.log").read_text()[-2000:]
                )
            time.sleep(0.01)  # a step of waiting for the condition above

    def halt(self) -> None:
        """Kills the service; containers go on running."""
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None
        Path(self.socket).unlink(missing_ok=True)

    def stop(self) -> None:
        if not self.root.exists():
            return
        self.halt()
        self.run("rm", "--all", "--force", "--time", "0", "--volumes", check=False)
        self.run("umount", "--all", "--force", check=False)
        self._end_monitors()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            path = line.split(" ")[1]
            if path.startswith(str(self.root) + "/"):
                subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self.root)

    def _end_monitors(self) -> None:
        """Podman keeps a conmon of every exec for five minutes, and then cleans up in a directory that has gone by then."""
        mark = str(self.root / "root").encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                if mark in argv:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended


_shared: list[Podman] = []


def shared() -> Podman:
    """The one service of this test process."""
    if not _shared:
        _shared.append(Podman())
    return _shared[0]


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    yield shared()
    shared().stop()
