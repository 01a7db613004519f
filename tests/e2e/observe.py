"""What tests look at from outside: a hub's figures, an agent's journal, the processes of its pods."""

import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from edgelite.desired import DOCUMENT, decode_document
from edgelite.journal import Journal
from edgelite.port import Files
from tests.e2e.cluster import Agent, Cluster, Hub, wait_for
from tests.observability import scraped

_CLOSED = re.compile(r'^cloudhub_edge_closed_total\{reason="([^"]*)"\} (\S+)$', re.MULTILINE)


def figures(hub: Hub) -> dict[str, float]:
    """The edge port's figures (`hub.gateway.Gateway.stats`); how connections ended as `closed <reason>`."""
    found: dict[str, float] = {}
    text = hub.api("GET", "/metrics")
    for label, value in _CLOSED.findall(text):
        found[f"closed {label}"] = float(value)
    return found | scraped.figures(text, "cloudhub.edge")


def wait_heartbeats(hub: Hub, nodes: int = 1, each: int = 3) -> None:
    """Waits until so many bytes have come that each node has sent `each` heartbeats more."""
    before = figures(hub)["bytes_in"]
    wait_for(lambda: figures(hub)["bytes_in"] >= before + 8 * nodes * each, f"{each} heartbeats")


def journal_of(agent: Agent) -> dict[str, bytes]:
    """What the agent's journal holds, read from a copy: the agent may be running."""
    with tempfile.TemporaryDirectory() as directory:
        for file in agent.data_dir.glob("journal*"):
            shutil.copy(file, directory)
        journal = Journal(Files(), str(Path(directory, "journal")))
        try:
            return dict(journal.items())
        finally:
            journal.close()


def documents_of(agent: Agent) -> dict[str, bytes]:
    """The documents that the agent holds, by key."""
    return {
        key.removeprefix(DOCUMENT): decode_document(value)[1]
        for key, value in journal_of(agent).items()
        if key.startswith(DOCUMENT)
    }


def processes(agent: Agent) -> dict[int, float]:
    """Everything that the agent's pods run: process id and when it started."""
    return {p.pid: p.create_time() for p in agent.workloads()}


def still_run(agent: Agent, before: dict[int, float]) -> bool:
    """Are all of these processes there, and none of them another one?"""
    for pid, started in before.items():
        try:
            if psutil.Process(pid).create_time() != started:
                return False
        except psutil.NoSuchProcess:
            return False
    return True


def connect_now(agent: Agent) -> None:
    """Ends the agent's back-off."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)


def node_of(cluster: Cluster, name: str, hub: Hub | None = None) -> Any:
    return (hub or cluster.main).api("GET", f"/api/v1/nodes/{name}")


def condition_of(node: Any, kind: str) -> dict[str, str] | None:
    """A condition of an object, whole."""
    found: list[dict[str, str]] = node["status"].get("conditions") or []
    return next((c for c in found if c["type"] == kind), None)


def when(condition: Callable[[], Any], what: str, agent: Agent, hub: Hub, timeout_s: float = 60.0) -> Any:
    """`wait_for` that shows both logs when it fails."""
    return wait_for(condition, what, timeout_s, lambda: (agent.log()[-2000:], hub.log()[-2000:]))
