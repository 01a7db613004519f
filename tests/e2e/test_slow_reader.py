"""A relayed log with a reader that does not read: what waits on its way is bounded, and nobody else waits for it.

The node is a real agent whose slot belongs to a replica that edges cannot reach: another replica relays its connection
there. A third one serves the log, so that its bytes pass the bus twice.
"""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.logstreams import CREDIT_BYTES
from shards.relay import LOG_WINDOW_BYTES
from shards.ring import SLOTS_DEFAULT, slot_of
from tests.e2e.cluster import Agent, sleeper, wait_for
from tests.e2e.ha import HaCluster, Replica
from tests.e2e.ha_load import CONFIGMAPS, PODS
from tests.e2e.observe import figures, wait_heartbeats
from tests.e2e.owners import owners

LINES = 8000
LINE = "{:06d} " + "x" * 992
"""With its end of line 1,000 bytes."""
LOG_BYTES = LINES * 1000
BUFFERS_BYTES = 3 << 19
"""What waits beside that in the answering replica's connection and in the reader's socket, and the node's other frames,
at most; the kernel alone would hold 4 MB if the replica let it."""
SOCKET_BYTES = 16 << 10
PATIENCE_S = 60.0
WRITES = (
    f"i=0; while [ $i -lt {LINES} ]; do printf '%06d {'x' * 992}\\n' $i; i=$((i+1)); done; exec sleep 100000"
)


@pytest.fixture
def ha(tmp_path: Path) -> Iterator[HaCluster]:
    with HaCluster(tmp_path, etcd=1, nats=1, relayed=(2,)) as made:
        yield made


class LogReader:
    """`GET log?follow=true`, read only when told to, over a connection that takes little by itself."""

    def __init__(self, ha: HaCluster, replica: Replica, pod: str) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        raw.settimeout(PATIENCE_S)
        raw.connect(("127.0.0.1", replica.api_port))
        self._connection = http.client.HTTPConnection("127.0.0.1")
        self._connection.sock = ha.context().wrap_socket(raw, server_hostname="127.0.0.1")
        self._connection.request("GET", f"{PODS}/{pod}/log?follow=true")
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()

    def line(self) -> str:
        return self._response.readline().decode().rstrip("\n")

    def close(self) -> None:
        # The response keeps the socket open as long as it lives.
        with contextlib.suppress(OSError, ssl.SSLError):
            self._response.close()
        self._connection.close()


def relayed_agent(ha: HaCluster) -> tuple[Agent, Replica, Replica]:
    """A real agent whose slot a replica owns that no edge can reach, the replica that relays it there, and the third."""
    owner, others = ha.replicas[2], ha.replicas[:2]

    def name_of_theirs() -> str | None:
        owned = owners(ha.etcd.endpoints[0])
        if sum(member == owner.name for member in owned.values()) < SLOTS_DEFAULT // 5:
            return None
        names = (f"till-{n}" for n in range(1000))
        return next(n for n in names if owned.get(f"{slot_of(n):04d}") == owner.name)

    name = wait_for(name_of_theirs, f"{owner.name} owns its share", PATIENCE_S, ha.logs)
    agent = ha.agents[name] = Agent(name, ha.root / f"agent-{name}")
    agent.join(",".join(r.edge for r in others), others[0].token("--node", name))
    wait_for(
        lambda: ha.ready(name) == "True", f"{name} is ready", PATIENCE_S, lambda: (agent.log(), ha.logs())
    )

    def relays() -> list[str]:
        return [m["name"] for m in ha.get("/cloudhub/status")["members"] if m["relayedAway"] == 1]

    # Asked once: a member that is slow to answer is left out of a status, which would name the wrong one.
    relaying = wait_for(
        relays, f"{name} is relayed", PATIENCE_S, lambda: ha.get("/cloudhub/status")["members"]
    )
    near, third = sorted(others, key=lambda r: r.name not in relaying)
    return agent, near, third


def wait_running(ha: HaCluster, name: str) -> None:
    wait_for(
        lambda: ha.get(f"{PODS}/{name}")["status"].get("phase") == "Running", f"{name} runs", PATIENCE_S, ha.logs
    )  # fmt: skip


def came_to_rest(near: Replica) -> float:
    """Waits until the node sends next to nothing any more; the bytes that have come from edges since the start."""
    last = figures(near)["bytes_in"]

    def rests() -> bool:
        nonlocal last
        time.sleep(0.5)
        before, last = last, figures(near)["bytes_in"]
        return last - before < 4096

    wait_for(rests, "the node has stopped sending its log", PATIENCE_S)
    return last


def test_a_relayed_log_whose_reader_is_slow_stays_within_its_credit_and_delays_nobody(ha: HaCluster) -> None:
    agent, near, reading = relayed_agent(ha)
    ha.send("POST", PODS, sleeper("loud", agent.name, script=WRITES))
    ha.send("POST", PODS, sleeper("calm", agent.name, script="echo calm; exec sleep 100000"))
    wait_running(ha, "loud")
    wait_running(ha, "calm")

    def written() -> bool:
        return any(log.stat().st_size == LOG_BYTES for log in agent.data_dir.glob("**/log"))

    wait_for(written, "the log is written", PATIENCE_S)
    connected, before, memory = figures(near)["handshakes"], figures(near)["bytes_in"], ha.rss_bytes()

    slow = LogReader(ha, reading, "loud")
    assert slow.line() == LINE.format(0)
    sent = came_to_rest(near) - before
    grown = {name: (rss - memory[name]) >> 10 for name, rss in ha.rss_bytes().items()}
    print(
        f"\nof {LOG_BYTES >> 10} KiB of log {int(sent) >> 10} KiB left the node; memory grew by (KiB) {grown}"
    )
    assert sent >= CREDIT_BYTES, "the reader was not slow, or there was nothing to read"
    assert sent <= CREDIT_BYTES + LOG_WINDOW_BYTES + BUFFERS_BYTES

    # Meanwhile, over the same connection of the node and the same replicas:
    began = time.monotonic()
    quick = LogReader(ha, reading, "calm")
    assert quick.line() == "calm"
    log_s, began = time.monotonic() - began, time.monotonic()
    quick.close()
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1"}}
    ha.send("POST", CONFIGMAPS, config)
    more = sleeper("more", agent.name)
    more["spec"]["volumes"] = [{"name": "settings", "configMap": {"name": "settings"}}]
    ha.send("POST", PODS, more)
    wait_running(ha, "more")
    print(
        f"another log began after {log_s:.2f} s, a pod ran and was reported after {time.monotonic() - began:.2f} s"
    )
    wait_heartbeats(near)
    assert ha.ready(agent.name) == "True"
    assert figures(near)["handshakes"] == connected, "the node's connection was given up"

    for number in range(1, LINES):
        assert slow.line() == LINE.format(number)
    slow.close()
    quick = LogReader(ha, reading, "loud")
    assert quick.line() == LINE.format(0), "the log can be read again: the stream before was ended"
    quick.close()
