"""What of a release of the agent is told to which node."""

import argparse
import base64
from collections.abc import Mapping
from typing import Any, cast

import orjson
import pytest

from edgelite.updateplan import UpdateError, identity
from hub import releasecommands
from hub.agentdocs import AgentDocuments
from hub.documents import Document
from hub.mirror import Mirror
from hub.objects import NODES, NodeView
from hub.releasecommands import state
from hub.releases import (
    ANNOTATION,
    CHUNK_BYTES,
    KEY,
    LABEL,
    annotation,
    chunk_name,
    chunk_of,
    configmaps,
    release,
    wanted,
)

SAID = release(b"bytes", "0.2.0", 7)


def text(**settings: Any) -> str:
    return annotation("default", "edgelite-0.2.0", SAID, **settings)


class Docs:
    """AgentDocuments over a mirror of Nodes that a test fills; what each node holds, in `of`."""

    def __init__(self) -> None:
        self.nodes: Mirror[NodeView] = Mirror(NODES, {})
        self.of: dict[str, Document] = {}
        self.told: list[str] = []
        self.advanced: list[int] = []
        self.docs = AgentDocuments(self.nodes, self.place, self.remove, self.advanced.append)
        self.revision = 0

    def place(self, nodes: tuple[str], document: Document) -> None:
        self.of[nodes[0]] = document

    def remove(self, node: str, key: str, tell: bool) -> None:
        assert key == KEY
        self.of.pop(node, None)
        if tell:
            self.told.append(node)

    def put(self, name: str, annotations: Mapping[str, str], **status: Any) -> None:
        self.revision += 1
        node = {"metadata": {"name": name, "uid": name, "annotations": annotations}, "status": status}
        entry = self.nodes.cache.entry(("", name), "00001", self.revision, orjson.dumps(node))
        self.nodes.advance(self.nodes.set_state(entry.key, entry, self.revision), self.revision)


def test_nodes_that_want_the_same_share_one_document_and_others_have_none() -> None:
    made = Docs()
    made.put("n0", {ANNOTATION: text()})
    made.docs.start()
    made.put("n1", {ANNOTATION: text()})
    made.put("n2", {})
    assert made.of["n0"] is made.of["n1"]
    assert "n2" not in made.of
    body = made.docs.body(made.of["n0"].version)
    assert body is not None
    assert orjson.loads(body)["version"] == "0.2.0"


def test_a_status_that_changes_makes_no_work_and_another_annotation_does() -> None:
    made = Docs()
    made.docs.start()
    made.put("n1", {ANNOTATION: text()})
    first, advanced = made.of["n1"], len(made.advanced)
    made.put("n1", {ANNOTATION: text()}, phase="other")
    assert (made.of["n1"], len(made.advanced)) == (first, advanced)
    made.put("n1", {ANNOTATION: text(attempt=2)})
    assert made.of["n1"].version != first.version
    assert made.docs.body(first.version) is None, "nobody wants it any more"
    made.put("n1", {})
    assert made.of == {}
    assert made.told == ["n1"]


def test_what_says_nothing_takes_the_document_away_and_is_complained_of_once(caplog: Any) -> None:
    made = Docs()
    made.docs.start()
    made.put("n1", {ANNOTATION: text()})
    for phase in ("a", "b"):
        made.put("n1", {ANNOTATION: '{"version": 1}'}, phase=phase)
    assert made.of == {}
    assert len([r for r in caplog.records if "agent/update" in r.message]) == 1


def test_a_slot_that_is_anothers_takes_nothing_from_its_nodes() -> None:
    made = Docs()
    made.docs.start()
    made.put("n1", {ANNOTATION: text()})
    made.nodes.forget(frozenset({"00001"}))
    assert made.of == {}
    assert made.told == []


@pytest.mark.parametrize(
    "value",
    ["[]", "{", annotation("", "x", SAID), annotation("a", "", SAID), text(pad="x" * 3000), text(size=0)],
)
def test_annotations_out_of_form_are_refused(value: str) -> None:
    with pytest.raises(UpdateError):
        wanted({ANNOTATION: value})


def test_a_large_release_is_cut_and_put_together_again() -> None:
    data = bytes(range(256)) * 5000
    said = release(data, "1.0", 7)
    made = {m["metadata"]["name"]: m for m in configmaps("ops", "big", said, data)}
    assert list(made)[-1] == "big", "who sees the first sees all"
    names = [chunk_name("big", i) for i in range(len(made))]
    parts = [chunk_of(made[name]) or b"" for name in names]
    assert b"".join(parts) == data
    assert max(map(len, parts)) == CHUNK_BYTES


def test_no_other_config_map_is_read_out_to_a_node() -> None:
    secret = {"metadata": {"name": "x"}, "binaryData": {"data": base64.b64encode(b"private").decode()}}
    assert chunk_of(secret) is None
    labelled = {**secret, "metadata": {"labels": {LABEL: "1"}}}
    assert chunk_of(labelled) == b"private"
    assert chunk_of({**labelled, "binaryData": {"data": "?"}}) is None
    assert chunk_of({**labelled, "binaryData": None}) is None


def test_what_has_become_of_a_release_is_read_from_the_node() -> None:
    found = wanted({ANNOTATION: text()})
    assert found is not None

    def node(status: str, named: str) -> Any:
        said = {"type": "AgentUpdate", "status": status, "reason": "Why", "message": f"because ({named})"}
        return {"metadata": {"annotations": {ANNOTATION: text()}}, "status": {"conditions": [said]}}

    assert state({"metadata": {}}, text()) == ("waiting", "")
    assert state(node("True", identity(found.body)), text(attempt=2))[0] == "waiting"
    assert state(node("False", "0123456789abcdef"), text())[0] == "updating", "that is of an earlier one"
    assert state(node("True", identity(found.body)), text()) == ("updated", "")
    assert state(node("False", identity(found.body)), text())[0] == "failed"


class Api:
    """Nodes that become what they want one question later; those in `bad` fail."""

    def __init__(self, names: list[str], bad: tuple[str, ...] = ()) -> None:
        self.nodes: dict[str, Any] = {name: {"metadata": {"name": name}, "status": {}} for name in names}
        self.bad = bad
        self.at_once = 0

    async def get(self, path: str, query: Any = None) -> Any:
        if "configmaps" in path:
            return {"data": {"release": orjson.dumps(SAID).decode()}}
        updating = [n for n in self.nodes.values() if "wants" in n["status"]]
        self.at_once = max(self.at_once, len(updating))
        shown = orjson.loads(orjson.dumps({"items": list(self.nodes.values()), "metadata": {}}))
        for node in updating:
            named = node["status"].pop("wants")
            said = {"type": "AgentUpdate", "reason": "Why", "message": f"because ({named})"}
            good = node["metadata"]["name"] not in self.bad
            node["status"] = {"conditions": [{**said, "status": str(good)}]}
        return shown

    async def patch(self, path: str, body: Any) -> Any:
        node = self.nodes[path.rpartition("/")[2]]
        node["metadata"].update(body["metadata"])
        found = wanted(node["metadata"]["annotations"])
        assert found is not None
        node["status"]["wants"] = identity(found.body)


def options(**changes: Any) -> argparse.Namespace:
    given = {"release": "edgelite-0.2.0", "nodes": [], "selector": None, "max_unavailable": 2, "deadline": 60}
    return argparse.Namespace(**{**given, "hold": 1, "attempt": 1, "timeout": 60, **changes})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasecommands, "POLL_S", 0)


async def test_no_more_nodes_than_may_be_unavailable_are_on_their_way(capsys: Any) -> None:
    api = Api([f"n{i}" for i in range(7)])
    assert await releasecommands.roll(cast(Any, api), options()) == 0
    assert api.at_once == 2
    assert capsys.readouterr().out.endswith("7 nodes run release 0.2.0\n")


async def test_a_rollout_stops_at_the_first_node_that_has_not_become_it(capsys: Any) -> None:
    api = Api([f"n{i}" for i in range(7)], bad=("n2",))
    assert await releasecommands.roll(cast(Any, api), options()) == 1
    told = capsys.readouterr().out
    assert "n2: failed: Why" in told
    assert len([n for n in api.nodes.values() if "annotations" in n["metadata"]]) <= 4
    assert await releasecommands.roll(cast(Any, api), options()) == 1, (
        "and again, as long as nothing is changed"
    )
    api.bad = ()
    assert await releasecommands.roll(cast(Any, api), options(attempt=2)) == 0
