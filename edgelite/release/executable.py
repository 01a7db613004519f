"""The one-file Linux executable: the agent with the interpreter that builds it, by PyInstaller.

It runs where the C library is at least as old as here, so a release is built on the oldest Linux that is served.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from edgelite.release.sources import BOARDS_ONLY, OTHER_SYSTEMS, ROOT, BuildError, agent

BUILD_S = 900
LAUNCHER = "edgelite/runtimes/process_launcher.py"
"""Its source is written out and run by itself, so it is needed as a file."""
FOR_ARCHIVES = ("bz2", "importlib.util", "json", "runpy", "zipimport")
"""What `edgelite.pyz` is unpacked with: that of a later release runs in this interpreter, as an update."""
NOT_NEEDED = (
    "asyncio", "bdb", "concurrent", "curses", "doctest", "email", "html", "http", "lib2to3", "multiprocessing", "pdb", "pip",
    "pydoc", "setuptools", "sqlite3", "tkinter", "unittest", "urllib.request", "xml", "xmlrpc",
)  # fmt: skip


def name() -> str:
    return f"edgelite-linux-{platform.machine()}"


def modules() -> list[str]:
    """All modules of the agent on Linux: most are imported by name, late."""
    paths = [path for path in agent() if path not in BOARDS_ONLY and not path.startswith(OTHER_SYSTEMS)]
    return [
        path[:-3].replace("/", ".") for path in paths if not path.endswith(("__init__.py", "__main__.py"))
    ]


def build(at: int) -> bytes:
    """The file; at: unix seconds. Raises BuildError."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "PyInstaller", "--onefile", "--clean", "--noconfirm", "--log-level", "WARN", "--strip",
            "--name", name(), "--paths", str(ROOT), "--distpath", scratch, "--workpath", scratch + "/work", "--specpath", scratch,
            "--add-data", f"{ROOT / LAUNCHER}:{Path(LAUNCHER).parent}",
        ]  # fmt: skip
        for module in [*modules(), *FOR_ARCHIVES]:
            command += ["--hidden-import", module]
        for module in NOT_NEEDED:
            command += ["--exclude-module", module]
        # PyInstaller is reproducible where the time and the order of sets are fixed.
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(at), "PYTHONHASHSEED": "1"}
        entry = str(Path(__file__).parent / "executable_entry.py")
        done = subprocess.run([*command, entry], capture_output=True, text=True, timeout=BUILD_S, env=env)
        if done.returncode:
            raise BuildError(f"PyInstaller failed: {done.stderr[-3000:]}")
        return (Path(scratch) / name()).read_bytes()
