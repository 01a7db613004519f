"""The platforms of the conformance suite: how one agent is started, looked at and cut off on each.

A node says by `lacks` what its platform cannot do, and why: {ability: reason}. Abilities: `heap` (says how much is live in it), `join` (enrols itself), `run` (has an agent
that runs), `pods` (starts workloads), `keeps` (workloads outlive the agent), `renew` (gets a certificate
over the channel), `hurry` (can be told to connect now).
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from edgelite.release import boards, pyz, windows
from tests.e2e.cluster import CACHE, ROOT, Agent, Hub, sleeper
from tests.micropython.test_vm import vm

PYTHONS = ("3.9", "3.11", "3.13")
NEEDED = "3.11"
WAIT_S = 120.0
JOB_S = 1800.0
"""For one whole check of a journal, or all power cuts, on the slowest platform."""
FOREVER = "exec sleep 100000"
BOARD_JOINS = "a board is enrolled on a computer: `edgelite join --no-run`, and its directory is copied"
BOARD_RENEWS = "a board is given new files before its certificate ends"
BOARD_LACKS = {
    "join": BOARD_JOINS,
    "renew": BOARD_RENEWS,
    "keeps": "a function of the firmware ends with it",
    "hurry": "nobody tells a board to connect now",
}
ABSENT = "this machine has none"
LARGE = MappingProxyType({"heap": "what it takes of a large machine's memory is measured by `make metered`"})


class Node:
    """One agent. `name`: of its Node; `pad`: what makes its pods' documents so large that it shows when they are sent."""

    pad = "x" * 4000

    def __init__(self, platform: str, root: Path, lacks: Mapping[str, str] = LARGE) -> None:
        self.platform = platform
        self.lacks = dict(lacks)
        self.name = platform.replace(".", "-").replace(" ", "-").lower()
        self.data_dir = root / self.name

    def provide(self, hub: Hub) -> None:
        """Enrols it in whatever way it can."""
        self.join(hub)

    def join(self, hub: Hub) -> None:
        """Enrols it with a token of its own, by itself."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """As kill -9 does; what it runs goes on where it can."""
        raise NotImplementedError

    def reboot(self) -> None:
        """Everything of the node is gone, but its disk; the agent is left stopped."""
        self.kill()

    def alive(self) -> bool:
        """Does the agent's process run?"""
        raise NotImplementedError

    def hurry(self) -> None:
        """Ends its back-off, where it has not `hurry` among what it lacks."""

    def is_away(self) -> bool:
        """Does it say that it has no connection?"""
        raise NotImplementedError

    def runs(self, pod: str) -> bool:
        """Does it say, with or without the hub, that it runs this pod?"""
        raise NotImplementedError

    def pod(self, name: str) -> Any:
        """A Pod for this node that runs until it is stopped."""
        raise NotImplementedError

    def heap_bytes(self) -> int:
        """What is live in its heap beside its code, now."""
        raise NotImplementedError

    def every_cut(self, stride: int) -> int:
        """How many cuts of its journal its platform could read, at every `stride`-th byte. Raises AssertionError."""
        raise NotImplementedError

    def power_cuts(self, cuts: int, seed: int) -> list[Any]:
        """What `tests.edgelite.powercuts` says of so many cuts on each kind of disk. Raises AssertionError."""
        raise NotImplementedError

    def log(self) -> str:
        raise NotImplementedError

    def close(self) -> None:
        """Ends everything."""
        self.kill()


class CPython(Node):
    """On Linux, with an interpreter of this machine."""

    def __init__(self, platform: str, root: Path, python: str) -> None:
        super().__init__(platform, root)
        self.agent = Agent(self.name, self.data_dir)
        self.agent.python = python

    def join(self, hub: Hub) -> None:
        self.agent.command(
            "join", "--hub", hub.edge, "--token", hub.token("--node", self.name), "--runtime", "process",
            "--boot-id-file", str(self.agent.boot_id_file), "--no-run",
        )  # fmt: skip

    def start(self) -> None:
        self.agent.run()

    def kill(self) -> None:
        self.agent.kill9()

    def reboot(self) -> None:
        self.agent.reboot()

    def alive(self) -> bool:
        return self.agent.process is not None and self.agent.process.poll() is None

    def hurry(self) -> None:
        assert self.agent.process is not None
        self.agent.process.send_signal(signal.SIGHUP)

    def is_away(self) -> bool:
        return bool(self.agent.status()["state"] != "connected")

    def runs(self, pod: str) -> bool:
        return any(one["name"] == pod and one["phase"] == "Running" for one in self.agent.status()["pods"])

    def pod(self, name: str) -> Any:
        return sleeper(name, self.name, FOREVER)

    def every_cut(self, stride: int) -> int:
        argv = [self.agent.python, "-I", str(ROOT / "tests/conformance/everycut.py"), str(ROOT)]
        return checked([*argv, str(self.data_dir / "journal"), str(stride)])

    def power_cuts(self, cuts: int, seed: int) -> list[Any]:
        return objects_of(
            [self.agent.python, "-m", "tests.edgelite.powercuts", str(cuts), str(seed)], cwd=ROOT
        )

    def log(self) -> str:
        return self.agent.log()

    def close(self) -> None:
        self.kill()
        self.agent.kill_workloads()


class Windows(Node):
    """The folder for Windows, under wine. What it cannot do yet it says itself when it is started."""

    def __init__(self, platform: str, root: Path, folder: Path) -> None:
        super().__init__(platform, root)
        self.folder = folder
        self.env = wine_environment(root)
        self.log_path = root / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self.lacks["hurry"] = "Windows has no SIGHUP"
        refusal = self._call("run", "--data-dir", self._windows(root / "none"), code=None)
        if "has no runtime for it yet" in refusal:
            why = "this release has no agent for Windows that runs"
            self.lacks |= dict.fromkeys(("run", "pods", "keeps", "renew"), why)

    def _windows(self, path: Path) -> str:
        return "Z:" + str(path).replace("/", "\\")

    def _argv(self, *words: str) -> list[str]:
        return ["wine", "python.exe", *words]

    def _call(self, *words: str, code: int | None = 0) -> str:
        # wine writes to a pipe, and badly into files.
        done = subprocess.run(
            self._argv("edgelite.pyz", *words), cwd=self.folder, env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=WAIT_S,
        )  # fmt: skip
        assert code is None or done.returncode == code, f"{words}: {done.returncode}: {done.stdout}"
        return done.stdout

    def join(self, hub: Hub) -> None:
        self._call(
            "join", "--hub", hub.edge, "--token", hub.token("--node", self.name), "--no-run",
            "--runtime", "process", "--data-dir", self._windows(self.data_dir),
        )  # fmt: skip

    def start(self) -> None:
        assert self.process is None
        with open(self.log_path, "ab") as log:
            command = self._argv("edgelite.pyz", "run", "--data-dir", self._windows(self.data_dir))
            writer = self._writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=writer.stdin, stderr=writer.stdin,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        assert writer.stdin is not None
        writer.stdin.close()

    def _processes(self, mark: str) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline"]):
            if any(mark in word for word in process.info["cmdline"] or []):
                yield process

    def kill(self) -> None:
        process, self.process = self.process, None
        for one in self._processes(self._windows(self.data_dir)):
            one.kill()
        if process is not None and self._writer is not None:
            process.kill()
            process.wait()
            self._writer.kill()  # what the agent has left, and wine's server, keep its pipe open
            self._writer.wait()

    def reboot(self) -> None:
        """wine's machine ends with its server."""
        self.kill()
        for word in ("-k", "-w"):
            subprocess.run(["wineserver", word], env=self.env, timeout=WAIT_S, check=False)
        # Whoever is first begins Windows' services, which keep his pipes open.
        quiet = subprocess.DEVNULL
        subprocess.run(
            ["wine", "cmd", "/c", "exit"],
            env=self.env,
            timeout=WAIT_S,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            check=False,
        )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def status(self) -> Any:
        return json.loads(
            self._call("status", "-o", "json", "--data-dir", self._windows(self.data_dir), code=None)
        )

    def is_away(self) -> bool:
        return bool(self.status()["state"] != "connected")

    def runs(self, pod: str) -> bool:
        return any(one["name"] == pod and one["phase"] == "Running" for one in self.status()["pods"])

    def pod(self, name: str) -> Any:
        pod = sleeper(name, self.name)
        pod["spec"]["containers"][0]["command"] = [
            self._windows(self.folder / "python.exe"), "-c", "import time; time.sleep(100000)",
        ]  # fmt: skip
        return pod

    def every_cut(self, stride: int) -> int:
        script = self.folder / "everycut.py"
        shutil.copy(ROOT / "tests/conformance/everycut.py", script)
        journal = self._windows(self.data_dir / "journal")
        argv = self._argv(script.name, self._windows(ROOT), journal, str(stride))
        return checked(argv, cwd=self.folder, env=self.env)

    def power_cuts(self, cuts: int, seed: int) -> list[Any]:
        code = (
            f"import sys; sys.path.insert(0, {self._windows(ROOT)!r}); "
            f"from tests.edgelite import powercuts; powercuts.main({cuts}, {seed})"
        )
        return objects_of(self._argv("-c", code), cwd=self.folder, env=self.env)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def close(self) -> None:
        self.kill()
        subprocess.run(["wineserver", "-k"], env=self.env, timeout=60, check=False)


class Board(Node):
    """The package for boards in the MicroPython VM, with Node's TLS; see board.mjs."""

    pad = "x"

    def __init__(self, platform: str, root: Path, code: Path) -> None:
        super().__init__(platform, root, BOARD_LACKS)
        self.code = code
        self.log_path = root / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._began = 0

    def provide(self, hub: Hub) -> None:
        """As a person does it: on a computer, and the files are copied."""
        Agent(self.name, self.data_dir).command(
            "join", "--hub", hub.edge, "--token", hub.token("--node", self.name), "--no-run"
        )

    def _argv(self, *job: str) -> list[str]:
        here = ROOT / "tests/conformance"
        return ["node", str(here / "board.mjs"), str(vm()), str(self.code), str(here / "board_vm.py"), str(self.data_dir), *job]  # fmt: skip

    def start(self) -> None:
        assert self.process is None
        self._began = len(self.log())
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self._argv(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def said(self) -> list[dict[str, Any]]:
        """What its console has shown since it was started last."""
        lines = self.log()[self._began :].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def is_away(self) -> bool:
        states = [one["state"] for one in self.said() if "state" in one]
        return bool(states) and states[-1] != "connected"

    def runs(self, pod: str) -> bool:
        return {"started": pod} in self.said()

    def heap_bytes(self) -> int:
        return int([one["heap"] for one in self.said() if "heap" in one][-1])

    def pod(self, name: str) -> Any:
        pod = sleeper(name, self.name)
        del pod["metadata"]["labels"]["cloudhub.dev/runtime"]
        pod["spec"]["containers"] = [{"name": "main", "image": "callable:blink", "args": [name]}]
        return pod

    def every_cut(self, stride: int) -> int:
        return checked(self._argv("check", str(stride)))

    def power_cuts(self, cuts: int, seed: int) -> list[Any]:
        return objects_of(self._argv("cuts", str(cuts), str(seed)))

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def objects_of(argv: list[str], **how: Any) -> list[Any]:
    """The JSON objects that a program prints, one a line. Raises AssertionError where it fails, with what it said."""
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        timeout=JOB_S, **how,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def checked(argv: list[str], **how: Any) -> int:
    """How many cuts of a journal a program has looked at."""
    return int(objects_of(argv, **how)[0]["checked"])


def wine_environment(root: Path) -> dict[str, str]:
    """Of a Windows of this run's own below `root`: a copy of the one that `make deps-ci` made, which takes wine half a minute."""
    made, prefix = CACHE / "wine/prefix", root / "wine"
    if not shutil.which("wine") or not (made / "system.reg").exists():
        pytest.fail(f"wine, or its Windows in {made}, is missing: run `make deps-ci`")
    shutil.copytree(made, prefix, symlinks=True)
    return {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all", "DISPLAY": ""}


def found(version: str) -> str:
    """The CPython of this version that can make a TLS connection: of this system, or one that pyenv or uv has installed; "" for none."""
    if sys.version.startswith(version + "."):
        return sys.executable
    name = f"python{version}"
    folders = [Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]
    others = [str(path) for folder in folders for path in sorted(folder.glob(f"*/bin/{name}"))]
    for python in [*others, shutil.which(name) or ""]:
        if python and not subprocess.run([python, "-c", "import ssl"], capture_output=True).returncode:
            return python
    return ""


def nodes(root: Path, only: tuple[str, ...] = ()) -> tuple[list[Node], dict[str, str]]:
    """(a node for each platform that is here, {platform that is not: why}). only: platforms, all by default."""
    here: list[Node] = []
    absent: dict[str, str] = {}
    for version in PYTHONS:
        platform = f"CPython {version}"
        if only and platform not in only:
            continue
        python = found(version)
        if python:
            here.append(CPython(platform, root, python))
        else:
            assert version != NEEDED, f"CPython {NEEDED} is what the project is built with"
            absent[platform] = ABSENT
    if not only or "Windows" in only:
        folder = root / "windows-folder"
        folder.mkdir()
        with zipfile.ZipFile(io.BytesIO(windows.build(pyz.build(0), 0))) as archive:
            for name in archive.namelist():
                (folder / name.rpartition("/")[2]).write_bytes(archive.read(name))
        here.append(Windows("Windows", root, folder))
    if not only or "Board" in only:
        code = root / "board-code"
        (code / "edgelite").mkdir(parents=True)
        for name, data in boards.build().items():
            (code / name).write_bytes(data)
        here.append(Board("Board", root, code))
    return here, absent
