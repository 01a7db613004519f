"""A program that listens on a loopback port, with a folder of its own. Blocking on purpose."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.ports import free_ports

START_S = 60.0
CACHE = Path(
    os.environ.get("CLOUDHUB_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudhub"
)


def tool(name: str) -> str:
    """A program that `make deps-ci` puts into the cache. Fails the test where it is missing."""
    path = CACHE / "bin" / name
    if not path.exists():
        pytest.fail(f"{path} is missing: `make deps-ci` installs it", pytrace=False)
    return str(path)


class Program:
    """`argv` makes the command line, with files in `root` and `port` for where it is to listen. Serves when this returns."""

    name = ""

    def __init__(self) -> None:
        program = tool(self.name)
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        (self.port,) = free_ports(1)
        argv = self.argv()
        with open(self.root / "log", "wb") as log:
            self._process = subprocess.Popen(
                [program, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def argv(self) -> list[str]:
        raise NotImplementedError

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.name} does not listen: {(self.root / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
