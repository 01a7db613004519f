"""An agent's journal that somebody rewrote, checksums and all: found, told, mended from the hub, and no crash loop."""

import json
from typing import Any

from edgelite.desired import decode_document, encode_document, version_of
from edgelite.journal import Journal
from edgelite.port import Files
from tests.e2e.cluster import Agent, Cluster, wait_for

PODS = "/api/v1/namespaces/default/pods"
NONSENSE = (b"[]", b'"\xc3\x28"', b'{"a":1}')
"""More of it in tests/edgelite/test_journalreview.py."""


def journal(agent: Agent) -> Journal:
    return Journal(Files(), str(agent.data_dir / "journal"))


def rewrite(agent: Agent, change: Any) -> None:
    """`change(name, value)` for every entry of a stopped agent's journal: what it returns takes its place."""
    book = journal(agent)
    book.write([(name, change(name, value)) for name, value in book.items()])
    book.close()


def pod(name: str, node: str) -> dict[str, Any]:
    """Its output follows the ConfigMap that it mounts."""
    script = "while :; do cat /etc/settings/greeting; echo; sleep 0.2; done"
    mount = {"name": "settings", "mountPath": "/etc/settings"}
    main = {"name": "main", "image": "none", "command": ["/bin/sh", "-c", script], "volumeMounts": [mount]}
    volume = {"name": "settings", "configMap": {"name": "settings"}}
    return {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [main], "volumes": [volume]}}


def events(cluster: Cluster, reason: str) -> list[dict[str, Any]]:
    return [e for e in cluster.main.api("GET", "/api/v1/events")["items"] if e["reason"] == reason]


def test_a_tampered_journal_is_found_told_and_mended_from_the_hub(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("bent")
    config = {"metadata": {"name": "settings"}, "data": {"greeting": "hello"}}
    hub.api("POST", "/api/v1/namespaces/default/configmaps", config)
    hub.api("POST", PODS, pod("work", "bent"))
    cluster.wait_running("work")
    uid = cluster.pod("work")["metadata"]["uid"]

    def settled() -> bool:
        return (
            cluster.condition("bent", "Ready") == "True"
            and cluster.pod("work")["status"].get("phase") == "Running"
        )

    # A document forged as a whole, version included: right in itself, and not what the hub wants.
    def forge(name: str, value: bytes) -> bytes:
        if not name.startswith("doc/configmap/"):
            return value
        _, body = decode_document(value)
        forged = body.replace(b"hello", b"owned")
        assert forged != body
        return encode_document(version_of(forged), forged)

    agent.stop()
    rewrite(agent, forge)
    agent.run()
    wait_for(lambda: agent.log().count('"connected"') == 2, "it is back", detail=agent.log)

    def mended() -> bool:
        _, body = decode_document(journal_of(agent, "doc/configmap/default/settings"))
        return json.loads(body)["data"] == {"greeting": "hello"}

    wait_for(mended, "the hub's ConfigMap is there again", detail=agent.log)

    # A third of all entries at a time becomes nonsense; the agent starts on it, once.
    told = 0
    for n, nonsense in enumerate(NONSENSE):
        agent.stop()
        rewrite(agent, lambda name, value, n=n, text=nonsense: text if hash_of(name) % 3 == n else value)
        agent.run()
        wait_for(lambda n=n: agent.log().count('"connected"') == 3 + n, "it is back", detail=agent.log)
        assert agent.process is not None and agent.process.poll() is None, agent.log()
        wait_for(
            lambda told=told: len(events(cluster, "JournalDamaged")) > told, "it is told", detail=agent.log
        )
        told = len(events(cluster, "JournalDamaged"))
    wait_for(settled, "the pod runs again", detail=agent.log)
    assert cluster.pod("work")["metadata"]["uid"] == uid
    wait_for(lambda: cluster.kubectl("logs", "work", "--tail=1").strip() == "hello", "its settings are right")
    assert "crashed" not in agent.log() and "Traceback" not in agent.log(), agent.log()


def hash_of(name: str) -> int:
    """The same in every process."""
    return sum(name.encode())


def journal_of(agent: Agent, name: str) -> bytes:
    """An entry of a running agent's journal, read from a copy; b"{}\\n{}" while it is not there."""
    copy = agent.data_dir.parent / "copy-of-journal"
    copy.write_bytes((agent.data_dir / "journal").read_bytes())
    book = Journal(Files(), str(copy))
    found = book.get(name)
    book.close()
    return found if found is not None else b'{"v":""}\n{"data":null}'
