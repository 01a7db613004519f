"""A fleet with a well-behaved agent, beside which hostile peers appear.

The fixture `fleet` shows that nobody else notices: afterwards the agent's heartbeats go on, its Node
was Ready all the time, nothing of it was restarted, and the hub has not grown.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.e2e.cluster import Cluster, Hub, sleeper, wait_for
from tests.e2e.hostile import Identity, enrolled, figures, wait_heartbeats

PODS = "/api/v1/namespaces/default/pods"
STEADY = "exec sleep 100000"
"""A workload whose processes stay the same."""
GROWTH_BYTES_MAX = 64 << 20
"""What the hub may have grown by: far less than one of these attacks would cost if something were not bounded."""


class Fleet:
    """The hub, the agent `good` with its pod `work`, and the enrolled node `mallory`, which has no agent."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.hub: Hub = cluster.hub(heartbeat="2s")
        self.agent = cluster.agent("good")
        self.mallory: Identity = enrolled(self.hub, "mallory", cluster.root / "mallory")
        self.hub.api("POST", PODS, sleeper("work", "good", STEADY))
        cluster.wait_running("work")

    def key(self) -> str:
        meta = self.cluster.pod("work")["metadata"]
        return f"pod/default/work/{meta['uid']}"

    def ready_since(self) -> str:
        conditions = self.hub.api("GET", "/api/v1/nodes/good")["status"]["conditions"]
        ready = next(c for c in conditions if c["type"] == "Ready")
        assert ready["status"] == "True", ready
        return str(ready["lastTransitionTime"])

    def state(self) -> Any:
        """What no stranger may change."""
        pod = self.cluster.pod("work")
        pids = sorted(p.pid for p in self.agent.workloads())
        return self.ready_since(), pod["metadata"]["resourceVersion"], pod["status"], pids


@contextlib.contextmanager
def undisturbed(fleet: Fleet) -> Iterator[Fleet]:
    """Shows that what happens within leaves the agent and the hub as they were; see the module."""
    hub = fleet.hub
    wait_for(lambda: figures(hub)["nodes"] == 1, "only the agent is connected")
    before, rss = fleet.state(), hub.rss_bytes()
    yield fleet
    wait_heartbeats(hub, 1)
    assert fleet.state() == before
    grown = hub.rss_bytes() - rss
    assert grown < GROWTH_BYTES_MAX, f"the hub has grown by {grown >> 20} MB"
    assert "Traceback" not in hub.log()
    assert "could not be handled" not in hub.log()
