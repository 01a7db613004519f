"""What an idle node costs: bytes on the wire with five pods, and memory and processor time with twenty.

    python -m tests.soak.idle --minutes 60

A real hub at its default heartbeat; the first agent lives in a network namespace of its own, whose veth pair counts every packet,
TCP and IP included (Ethernet's 14 bytes a packet are taken off: what a packet is wrapped in is the link's business). Prints one
JSON object; exit code 1 when a bound is broken. Needs root and `ip`. `make test` has ten minutes of it beside all other tests
(`tests/e2e/test_idle.py`): it sleeps nearly all of the time.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.cluster import Agent, Cluster, Hub, sleeper, wait_for

PODS = "/api/v1/namespaces/default/pods"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
DAY_S = 86400.0
METERED_PODS = 5
PROCESS_PODS = 20
DAY_BYTES_MAX = 1_000_000
CHANGE_BYTES_MAX = 1000
RSS_BYTES_MAX = 20 << 20
CORE_SHARE_MAX = 0.002
SYNCHRONISED_S_MAX = 0.25
STARTS = 10
"""The fastest counts: what else runs on the machine only ever makes them slower, and by the clock much slower."""
ALONE_MINUTES = 60.0
"""Who measures for so long has the machine to itself, and the clock counts too."""
ETHERNET_BYTES = 14
QUIET_S = 3.0
WAIT_S = 120.0
FOREVER = "exec sleep 100000"


@dataclass(frozen=True)
class Bound:
    """One figure, and what it may be at most."""

    name: str
    value: float
    most: float

    @property
    def is_kept(self) -> bool:
        return self.value <= self.most


class Link:
    """A veth pair between this network namespace and one of its own. `inside`: a command's prefix; `outside`: our address."""

    def __init__(self) -> None:
        mark = os.getpid() % 65536
        self.namespace = f"cloudhub-{mark}"
        self._near, self._far = f"chn{mark}", f"chf{mark}"
        block = f"198.18.{mark >> 8}"  # for measurements between devices of one's own (RFC 2544)
        low = (mark & 63) * 4
        self.outside, self._within = f"{block}.{low + 1}", f"{block}.{low + 2}"
        self.inside = ["ip", "netns", "exec", self.namespace]

    def __enter__(self) -> "Link":
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.namespace)
        _quiet(Path(f"/proc/sys/net/ipv6/conf/{self._near}/disable_ipv6"))
        subprocess.run(
            [*self.inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"], check=False, timeout=30
        )  # fmt: skip
        _ip("address", "add", f"{self.outside}/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self.namespace, "address", "add", f"{self._within}/30", "dev", self._far)
        _ip("-n", self.namespace, "link", "set", self._far, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "delete", self.namespace)
        with contextlib.suppress(subprocess.CalledProcessError):  # it goes with its peer, a little later
            _ip("link", "delete", self._near)

    def bytes(self) -> tuple[int, int]:
        """(bytes, packets) that have passed, both ways."""
        folder = Path(f"/sys/class/net/{self._near}/statistics")
        read = lambda name: int((folder / name).read_text())  # noqa: E731
        packets = read("rx_packets") + read("tx_packets")
        return read("rx_bytes") + read("tx_bytes") - ETHERNET_BYTES * packets, packets


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def _quiet(switch: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        switch.write_text("1")


class MeteredHub(Hub):
    """Its edge port is at the link's address."""

    address = "127.0.0.1"

    @property
    def edge(self) -> str:
        return f"{self.address}:{self.edge_port}"


def processor_s(agent: Agent) -> float:
    """How long the agent has run on a processor so far: the kernel counts nanoseconds."""
    assert agent.process is not None
    return int(Path(f"/proc/{agent.process.pid}/schedstat").read_text().split()[0]) / 1e9


def rss_bytes(agent: Agent) -> int:
    assert agent.process is not None
    return int(psutil.Process(agent.process.pid).memory_info().rss)


def quiet(link: Link) -> tuple[int, int]:
    """What has passed once nothing has for QUIET_S."""
    seen, since = link.bytes(), time.monotonic()
    deadline = since + WAIT_S
    while time.monotonic() - since < QUIET_S:
        assert time.monotonic() < deadline, "the link does not come to rest"
        time.sleep(0.1)
        now = link.bytes()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


def configured(name: str, node: str) -> Any:
    """A pod with a volume of the ConfigMap `settings`."""
    pod = sleeper(name, node, FOREVER)
    pod["spec"]["volumes"] = [{"name": "settings", "configMap": {"name": "settings"}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "settings", "mountPath": "/settings"}]
    return pod


def settings(interval: str) -> Any:
    text = f"server = controller.example\ninterval = {interval}\nlog = warning\nunit = celsius\n"
    return {"metadata": {"name": "settings"}, "data": {"app.conf": text}}


def change_bytes(hub: Hub, agent: Agent, link: Link) -> int:
    """What a changed line of a ConfigMap costs, to the file that the pod reads; a heartbeat's bytes may be among them."""
    before, _ = quiet(link)
    hub.api("PUT", f"{CONFIG_MAPS}/settings", settings("45s"))

    def changed() -> bool:
        files = agent.data_dir.rglob("app.conf")
        return any("45s" in file.read_text() for file in files if file.is_file())

    wait_for(changed, "the pod has the new file", WAIT_S)
    after, _ = quiet(link)
    return after - before


def start_s(agent: Agent) -> tuple[float, float]:
    """From the start of the agent to when it is in step with the hub: seconds on a processor, and by the clock."""
    status = agent.data_dir / "status.json"
    agent.kill9()
    status.unlink(missing_ok=True)
    began = time.monotonic()
    agent.run()
    while True:
        with contextlib.suppress(OSError, ValueError):
            shown = json.loads(status.read_text())
            if shown["state"] == "connected" and shown["synced"]:
                return processor_s(agent), time.monotonic() - began
        assert time.monotonic() - began < WAIT_S, agent.log()[-2000:]
        time.sleep(0.001)


@contextlib.contextmanager
def nodes(root: Path) -> Iterator[tuple[MeteredHub, Agent, Agent, Agent, Link]]:
    """(hub, the agent with five pods behind a link, the agent with twenty, another one with five, the link), all at rest."""
    cluster = Cluster(root)
    with Link() as link:
        hub = MeteredHub(root / "hub", heartbeat="30s")
        hub.address = link.outside
        cluster.hubs.append(hub)
        try:
            hub.start()
            metered = Agent("metered", root / "agent-metered")
            metered.prefix = link.inside
            cluster.agents["metered"] = metered
            metered.join(hub.edge, hub.token("--node", "metered"))
            cluster.wait_ready("metered", timeout_s=WAIT_S)
            busy, third = cluster.agent("twenty"), cluster.agent("third")
            hub.api("POST", CONFIG_MAPS, settings("30s"))
            hub.api("POST", PODS, configured("m0", "metered"))
            for number in range(1, METERED_PODS):
                hub.api("POST", PODS, sleeper(f"m{number}", "metered", FOREVER))
                hub.api("POST", PODS, sleeper(f"r{number}", "third", FOREVER))
            for number in range(PROCESS_PODS):
                hub.api("POST", PODS, sleeper(f"t{number}", "twenty", FOREVER))
            for number in range(METERED_PODS):
                cluster.wait_running(f"m{number}", WAIT_S)
            for number in range(1, METERED_PODS):
                cluster.wait_running(f"r{number}", WAIT_S)
            for number in range(PROCESS_PODS):
                cluster.wait_running(f"t{number}", WAIT_S)
            yield hub, metered, busy, third, link
        finally:
            cluster.close()


def measure(minutes: float) -> dict[str, Any]:
    """All figures; `bounds` has those that must hold."""
    with tempfile.TemporaryDirectory(prefix="idle-") as directory:
        root = Path(directory)
        root.chmod(0o755)  # workloads run as nobody
        with nodes(root) as (hub, metered, busy, third, link):
            starts = [start_s(third) for _ in range(STARTS)]
            change = change_bytes(hub, metered, link)
            quiet(link)
            (bytes_0, packets_0), processor_0, began = link.bytes(), processor_s(busy), time.monotonic()
            time.sleep(60 * minutes)
            (bytes_1, packets_1), processor_1, took_s = (
                link.bytes(),
                processor_s(busy),
                time.monotonic() - began,
            )
            day = (bytes_1 - bytes_0) * DAY_S / took_s
            share = (processor_1 - processor_0) / took_s
            bounds = [
                Bound("bytes a day with five pods", day, DAY_BYTES_MAX),
                Bound("bytes of a changed line", change, CHANGE_BYTES_MAX),
                Bound("RSS bytes with twenty pods", rss_bytes(busy), RSS_BYTES_MAX),
                Bound("share of a core with twenty pods", share, CORE_SHARE_MAX),
                Bound("processor s from start to synchronised", min(starts)[0], SYNCHRONISED_S_MAX),
            ]
            by_the_clock = min(clock for _, clock in starts)
            if minutes >= ALONE_MINUTES:
                bounds.append(Bound("s from start to synchronised", by_the_clock, SYNCHRONISED_S_MAX))
            return {
                "minutes": minutes,
                "bytes": bytes_1 - bytes_0,
                "packets": packets_1 - packets_0,
                "fastest s from start to synchronised": round(by_the_clock, 3),
                "bounds": {b.name: {"value": round(b.value, 5), "most": b.most} for b in bounds},
                "broken": [b.name for b in bounds if not b.is_kept],
            }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.idle", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of rest that are measured (default: 60)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="gets what is printed, whole or not at all"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it ends what it has started
    found = measure(options.minutes)
    text = json.dumps(found, indent=1)
    if options.report is not None:
        part = options.report.with_suffix(".part")
        part.write_text(text)
        part.replace(options.report)
    print(text)
    return int(bool(found["broken"]))


if __name__ == "__main__":
    sys.exit(main())
