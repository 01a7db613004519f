"""Windows' CPython under wine: a prefix of its own for each test that asks, copied from one that is made once.

`python -m tests.wine` makes that one, and unpacks the Python (`make deps-ci` does so); a test does it where nobody has.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from edgelite.release import windows

CACHE = (
    Path(
        os.environ.get("CLOUDHUB_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudhub"
    )
    / "wine"
)
CALL_S = 240.0


class Wine:
    """One prefix: a Windows with its registry, its disk C: and its processes, which end with it."""

    def __init__(self, prefix: Path) -> None:
        program = shutil.which("wine")
        assert program, "wine is missing: run `make deps-ci`"
        self.python = [program, str(python() / "python.exe"), "-X", f"pycache_prefix=Z:{CACHE / 'pycache'}"]
        self._copiers: list[threading.Thread] = []
        self.env = {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all", "DISPLAY": ""}

    def call(self, *words: str, code: int = 0, timeout_s: float = CALL_S) -> str:
        """What Windows' Python printed. Its output goes through a pipe: redirected to a file it would lack its line ends."""
        text, ended = self._run(words, timeout_s)
        assert ended == code, f"{words}: {ended}: {text[-4000:]}"
        return text

    def ask(self, *words: str, timeout_s: float = CALL_S) -> str:
        """The same, however it ends."""
        return self._run(words, timeout_s)[0]

    def _run(self, words: tuple[str, ...], timeout_s: float) -> tuple[str, int]:
        done = subprocess.run(
            [*self.python, *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s
        )  # fmt: skip
        return done.stdout.decode(errors="replace").replace("\r\n", "\n"), done.returncode

    def start(self, log: Path, *words: str) -> "subprocess.Popen[bytes]":
        """A process whose output goes to `log`."""
        process = subprocess.Popen(
            [*self.python, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )  # fmt: skip

        def copy() -> None:
            assert process.stdout is not None
            with open(log, "ab", 0) as file, process.stdout as output:
                for line in output:
                    file.write(line)

        self._copiers.append(threading.Thread(target=copy, daemon=True))
        self._copiers[-1].start()
        return process

    def end(self) -> None:
        """Ends everything that runs in it."""
        for word in ("-k", "-w"):
            subprocess.run([shutil.which("wineserver") or "wineserver", word], env=self.env, timeout=60)
        for copier in self._copiers:
            copier.join(60)


def python() -> Path:
    """The folder of Windows' Python."""
    home = CACHE / windows.PYPI[0].replace("==", "-")
    if not home.exists():
        with _made(home) as fresh, zipfile.ZipFile(BytesIO(windows.embedded())) as archive:
            archive.extractall(fresh)
    (found,) = home.rglob("python.exe")
    return found.parent


def _prefix() -> Path:
    """The prefix that others are copied from."""
    home = CACHE / "prefix"
    if not home.exists():
        with _made(home) as fresh:
            env = {**os.environ, "WINEPREFIX": str(fresh), "WINEDEBUG": "-all", "DISPLAY": ""}
            wine = shutil.which("wine")
            assert wine, "wine is missing: run `make deps-ci`"
            # Neither menus nor browsers: a part of what makes a prefix slow.
            env["WINEDLLOVERRIDES"] = "mscoree,mshtml=;winemenubuilder.exe=d"
            for command in (
                [wine, "wineboot", "--init"],
                [wine, "winecfg", "-v", "win10"],
                ["wineserver", "-w"],
            ):
                subprocess.run(
                    command, env=env, check=True, timeout=CALL_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )  # fmt: skip
    return home


@contextlib.contextmanager
def _made(home: Path) -> Iterator[Path]:
    """A folder that becomes `home` when it is whole; whoever is second throws his away."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch) / "made"
        fresh.mkdir(mode=0o700)
        yield fresh
        with contextlib.suppress(OSError):
            fresh.rename(home)


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    """A Windows of the module's own."""
    prefix = tmp_path_factory.mktemp("wine") / "prefix"
    # 0.7 GB of programs and libraries are shared: nobody writes there.
    shutil.copytree(
        _prefix(), prefix, symlinks=True, ignore=lambda at, _: ["windows"] if at.endswith("drive_c") else []
    )
    (prefix / "drive_c/windows").symlink_to(_prefix() / "drive_c/windows")
    made = Wine(prefix)
    try:
        yield made
    finally:
        made.end()


if __name__ == "__main__":
    print(f"wine's prefix and Python: {_prefix()}, {python()}")
    sys.exit(0)
