"""What a rotation of the root reads of a Kubernetes cluster: the edge's Nodes, page by page."""

from typing import Any

from hub.config import HubConfig
from hub.kubernetes.client import KubeClient
from hub.kubernetes.source import KubeSource
from hub.objects import Keys
from hub.reports import CERTIFICATE, certificate_text
from hub.rotation import NodeFacts
from hub.store.memory import MemoryStore
from observability.metrics import Metrics
from tests.hub.kubernetes.fake_api import FakeApi


def node(name: str, certificate: str = "", **labels: str) -> dict[str, Any]:
    annotations = {CERTIFICATE: certificate} if certificate else {}
    return {
        "metadata": {
            "name": name,
            "labels": {k.replace("_", "/"): v for k, v in labels.items()},
            "annotations": annotations,
        }
    }


async def test_the_edges_nodes_are_read_and_no_others(api: FakeApi, client: KubeClient) -> None:
    edge = {"cloudhub.dev_edge": "true"}
    api.put("nodes", node("shown", certificate_text("ab" * 8, "c0ffee", 10.0, 20.0), **edge))
    api.put("nodes", node("damaged", "{", **edge))
    api.put("nodes", node("new", **edge))
    api.put("nodes", node("of-the-cluster"))
    history: Any = None
    metrics = Metrics()
    source = KubeSource(HubConfig("unused"), client, MemoryStore(), Keys(), history, metrics)
    found = [facts async for facts in source.node_facts()]
    assert sorted(found, key=lambda f: f.name) == [
        NodeFacts("damaged"),
        NodeFacts("new"),
        NodeFacts("shown", "ab" * 8, "c0ffee", 20.0),
    ]
    assert [token async for token in source.token_facts(0.0)] == []
