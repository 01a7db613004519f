"""A hub's API in the test's process, a node with a made-up shell behind it, and stock kubectls that talk to both."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hub.api.server import ApiServer, Config
from hub.objects import PODS
from observability.metrics import Metrics
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, pod
from tests.hub.serving import identified
from tests.sim.fleet import SimNode
from tests.sim.shell import Shell

DEADLINE_S = 60.0


class Kubectl:
    """One binary, against one address. `options`: for every call, as `--token`."""

    def __init__(self, binary: str, server: str, home: Path, *options: str) -> None:
        self.binary = binary
        self._argv = [f"--server={server}", f"--cache-dir={home}/cache", *options]
        self._env = {"HOME": str(home), "PATH": os.environ["PATH"], "KUBECONFIG": "/dev/null"}

    async def start(self, *arguments: str, **pipes: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self.binary, *self._argv, *arguments, env=self._env,
            **{"stdin": asyncio.subprocess.DEVNULL, "stdout": -1, "stderr": -1, **pipes},
        )  # fmt: skip

    async def __call__(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, bytes, str]:
        """Exit code, stdout, stderr."""
        pipes = {"stdin": asyncio.subprocess.PIPE} if stdin is not None else {}
        process = await self.start(*arguments, **pipes)
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), DEADLINE_S)
        finally:
            if process.returncode is None:
                await ended(process)
        return process.returncode or 0, out, err.decode()


async def ended(process: asyncio.subprocess.Process) -> None:
    """Kills it, unless it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


class Served:
    """A hub, the address of its API, and the node that runs the pod `web`."""

    def __init__(self, running: Hub, api: ApiServer, url: str, edge: SimNode, shell: Shell) -> None:
        self.hub, self._api, self.url, self.edge, self.shell = running, api, url, edge, shell

    async def stop(self) -> None:
        await self._api.stop(1.0)


async def node_with_pod(h: Hub, name: str = "edge-1") -> tuple[SimNode, Shell]:
    edge = await h.enrol(name)
    shell = edge.shell = Shell(edge.send)
    await h.connect(edge)
    made = pod("web", name, uid="web-uid")
    made["status"] = {"phase": "Running"}
    await h.create(PODS, made)
    return edge, shell


@contextlib.asynccontextmanager
async def served(pki: Pki) -> AsyncIterator[Served]:
    async with hub(pki) as h:
        config = Config(("127.0.0.1", 0), "test")
        api = ApiServer(h.registry, None, config, Metrics(), gateway=h.gateway, identify=identified)
        host, port = await api.start()
        try:
            edge, shell = await node_with_pod(h)
            yield Served(h, api, f"http://{host}:{port}", edge, shell)
        finally:
            await api.stop(1.0)
