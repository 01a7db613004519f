"""A week without the hub in simulated time: the real agent core (journal, reports, devices, session, link, loop), a clock that jumps
to whatever is due next, and a real hub before and afterwards."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgelite import loop as agent_loop
from edgelite.agent import Agent
from edgelite.channel import Channel
from edgelite.config import Config, load_membership
from edgelite.console import Log
from edgelite.journal import COMPACT_SLACK, RECORD_BYTES_MAX, Journal
from edgelite.link import Link
from edgelite.port import Files, Host
from edgelite.upstream import EVENTS_MAX
from tests.e2e.cluster import Cluster, sleeper, wait_for
from tests.edgelite.test_agent import FakeParts, Lines

WEEK_S = 7 * 86400.0
CHANGES = 10_000
"""Of the status of pods, and as many reports of a device."""
PODS = 5
EVENT_EVERY = 5
KEEP = 5
CONVERGED_S = 10.0
REBOOTS = (CHANGES // 3, CHANGES // 2)
API = "/api/v1/namespaces/default/pods"
DEVICES = "/apis/cloudhub.dev/v1alpha1/namespaces/default/devices"


class QuickFiles(Files):
    """What reaches the disk is tested elsewhere; here 20,000 syncs would only take time."""

    def sync(self, file: Any) -> None:
        file.flush()


class Time:
    """Both clocks of the machine: `jump` is a moment later, as far as anybody can tell."""

    def __init__(self) -> None:
        self.real = agent_loop.now
        self.jumped_s = 0.0
        self.behind_s = 0.0

    def now(self) -> float:
        return self.real() + self.jumped_s

    def wall(self) -> float:
        return time.time() - self.behind_s

    def jump(self, seconds: float) -> None:
        self.jumped_s += seconds
        self.behind_s -= seconds


class Machine(Host):
    def __init__(self, clock: Time, boot_id_file: str) -> None:
        super().__init__(boot_id_file)
        self.now = clock.now  # type: ignore[method-assign]
        self.wall = clock.wall  # type: ignore[method-assign]


class Story:
    """What happens to the node, told from within its loop."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock
        self.agent: Any = None
        self.offline = False
        self.done = 0
        self.reboots = list(REBOOTS)
        self.journal_bytes = 0
        self.began = 0.0

    def due(self) -> float:
        """When the next change comes; they are spread over the week."""
        return self.began + WEEK_S * (self.done + 1) / (CHANGES + 1)

    def change(self) -> None:
        """One status change and one reading. Some changes are worth an event."""
        number, agent = self.done, self.agent
        self.done += 1
        keys = sorted(key for key in agent.workloads.running if key.startswith("pod/"))
        key = keys[number % len(keys)]
        agent.report("pod", key, status(number))
        if number % EVENT_EVERY == 0:
            agent.report("event", key, agent._event("Warning", "BackOff", f"change {number}"))
        agent.twins.report(agent.twins.twins.get("default", "boiler"), {"temperature": number})
        journal = agent.journal
        self.journal_bytes = max(self.journal_bytes, journal.file_bytes)
        assert journal.file_bytes <= 2 * journal.live_bytes + COMPACT_SLACK + RECORD_BYTES_MAX


def status(number: int) -> dict[str, Any]:
    container = {"name": "main", "restartCount": number, "ready": True, "state": {"running": {}}}
    ready = {"type": "Ready", "status": "True"}
    return {"phase": "Running", "conditions": [ready], "containerStatuses": [container]}


class CountedLink(Link):
    """`tries`: how often an agent has tried to connect."""

    tries = 0

    def _open(self, address: str) -> Channel:
        CountedLink.tries += 1
        return super()._open(address)


class SteppedLoop(agent_loop.Loop):
    """While the story is offline, time passes by jumps to what is due next."""

    story: Story

    def _poll(self, timeout_s: float | None) -> None:
        story = self.story
        if not story.offline:
            super()._poll(0.05 if timeout_s is None else min(timeout_s, 0.05))
            return
        super()._poll(0)
        waits = [task.wait for task in self._tasks if task.wait is not None and not task.done]
        if self._woken or any(task.wait is None for task in self._tasks):
            return
        if any(wait.fd >= 0 for wait in waits):
            super()._poll(0.001)  # a connection attempt is refused in real time
        nearest = min([story.due(), *(wait.deadline for wait in waits if wait.deadline is not None)])
        story.clock.jump(max(0.0, nearest - story.clock.now()))
        if story.clock.now() >= story.due():
            if story.reboots and story.done == story.reboots[0]:
                story.reboots.pop(0)
                self.stop()
            elif story.done < CHANGES:
                story.change()
            else:
                self.stop()


def boiler(node: str) -> Any:
    temperature = {"name": "temperature", "type": "integer", "minIntervalSeconds": 1, "keep": KEEP}
    return {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "Device",
        "metadata": {"name": "boiler"},
        "spec": {"nodeName": node, "properties": [temperature]},
    }


def test_a_week_offline_loses_nothing_that_is_kept_and_is_made_up_for_within_seconds(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = cluster.hub()
    enrolled = cluster.agent("n1")
    for number in range(PODS):
        hub.api("POST", API, sleeper(f"p{number}", "n1", "exec sleep 100000"))
    hub.api("POST", DEVICES, boiler("n1"))
    for number in range(PODS):
        cluster.wait_running(f"p{number}")
    wait_for(
        lambda: hub.api("GET", f"{DEVICES}/boiler")["status"]["observedGeneration"] == 1,
        "the device is there",
    )
    enrolled.kill9()
    enrolled.kill_workloads()

    clock = Time()
    story = Story(clock)
    monkeypatch.setattr(agent_loop, "now", clock.now)
    monkeypatch.setattr(SteppedLoop, "story", story, raising=False)
    monkeypatch.setattr("edgelite.agent.Loop", SteppedLoop)
    monkeypatch.setattr("edgelite.agent.Link", CountedLink)
    monkeypatch.setattr(CountedLink, "tries", 0)
    monkeypatch.setattr("edgelite.agent.Files", QuickFiles)
    # Less often than it does, so that the week is made of its changes: 60,000 looks at the node would not be.
    monkeypatch.setattr("edgelite.agent.HOUSEKEEPING_S", 3600.0)
    monkeypatch.setattr("edgelite.backoff.MAX_S", 1800.0)
    data_dir = str(enrolled.data_dir)
    lines: Any = Lines()  # type: ignore[no-untyped-call]

    def started() -> Any:
        membership = load_membership(data_dir)
        assert membership is not None
        config, host = Config(runtime="process"), Machine(clock, str(enrolled.boot_id_file))
        parts = FakeParts(data_dir, config, host, membership.node)
        story.agent = Agent(data_dir, config, membership, host, Log("info", lines), parts)
        return story.agent

    hub.stop()
    story.offline, story.began, clock.behind_s = True, clock.now(), WEEK_S
    for _ in range(len(REBOOTS) + 1):
        assert started().run() == 0, lines.lines[-3:]
    assert story.done == CHANGES and abs(clock.behind_s) < 3600
    assert CountedLink.tries > 200, "it has tried all the time"

    # What the policy keeps: the newest of every state, the newest events, the newest readings of each property.
    journal = Journal(QuickFiles(), data_dir + "/journal")
    print(f"journal: at most {story.journal_bytes} bytes, {journal.live_bytes} of them live at the end")
    assert story.journal_bytes < 2 << 20
    entries = [json.loads(value) for _, value in journal.items("up/")]
    events = [entry["b"]["message"] for entry in entries if entry["t"] == "event"]
    last_events = range(0, CHANGES, EVENT_EVERY)[-EVENTS_MAX:]
    assert [message for message in events if message.startswith("change")] == [
        f"change {n}" for n in last_events
    ]
    journal.close()

    story.offline = False
    hub.start()
    agent = started()
    outcome: dict[str, float] = {}

    def missing() -> dict[str, Any]:
        """What is not with the hub yet."""
        latest = {n % PODS: n for n in range(CHANGES)}
        pods = {pod["metadata"]["name"]: pod["status"] for pod in cluster.pods()}
        counts = sorted(pods[f"p{n}"]["containerStatuses"][0]["restartCount"] for n in range(PODS))
        readings = hub.api("GET", f"{DEVICES}/boiler")["status"]["reported"]["temperature"]
        shown = [reading["value"] for reading in readings["history"]]
        found = hub.api("GET", "/api/v1/namespaces/default/events")["items"]
        told = {event["message"] for event in found}
        found = {
            "counts": counts if counts != sorted(latest.values()) else None,
            "readings": shown if shown != list(range(CHANGES - KEEP, CHANGES)) else None,
            "events": sorted({f"change {n}" for n in last_events} - told)[:5],
        }
        return {what: value for what, value in found.items() if value}

    def watch() -> Any:
        """A task of the agent's loop that ends it once everything has come up."""
        while "s" not in outcome:
            live = agent.link.live
            if live and "live" not in outcome:
                outcome["live"] = time.monotonic()
            try:
                away = missing() if live and not len(agent.upstream) else {"entries": len(agent.upstream)}
            except KeyError as error:
                away = {"field": error}  # nothing was reported yet
            if not away:
                outcome["s"] = time.monotonic() - outcome["live"]
            assert time.monotonic() < deadline, away
            yield agent_loop.Wait(-1, 0, clock.now() + 0.05)
        agent.stop()

    deadline = time.monotonic() + 90
    agent.loop.spawn(watch(), "watch")
    assert agent.run() == 0, lines.lines[-1]
    print(f"converged {outcome['s']:.2f} s after the connection")
    assert outcome["s"] < CONVERGED_S
