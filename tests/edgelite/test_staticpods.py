"""Static pods on a node: files in a directory become pods, whatever the hub says."""

import json
import os

import pytest

from edgelite.staticpods import FILE_BYTES_MAX, BadManifest, StaticPods, document
from tests.edgelite.test_workloads import Node, Store


class Log:
    def __init__(self):
        self.errors = []

    def error(self, text, **fields):
        self.errors.append(text)


class StaticNode(Node):
    """A node with a directory of manifests. What the agent does with reports is done here."""

    def __init__(self, root):
        self.directory = root / "manifests"
        self.directory.mkdir()
        self.told = Store()
        self.log = Log()
        self.static = None
        Node.__init__(self, root)

    def crash(self, start=True):
        Node.crash(self, start=False)
        self.static = StaticPods(str(self.directory), "e1", self.told, self.workloads, self._tell, self.log)
        self.static.look()
        if start:
            self.workloads.start()

    def _tell(self, kind, key, body):
        self.reports.append((kind, key, json.loads(json.dumps(body))))

    def report(self, kind, key, body):
        if kind == "pod" and key in self.static:
            self.static.status(key, body)
        else:
            self._tell(kind, key, body)

    def write(self, file, doc):
        text = json.dumps(doc) if isinstance(doc, dict) else doc
        (self.directory / file).write_text(text)
        self.static.look()

    def last(self, key="static/default/till-e1"):
        found = [body for kind, k, body in self.reports if kind == "static" and k == key]
        return found[-1] if found else {}

    def runs(self):
        return [launch.container["image"] for launch in self.runtime.launches]


def manifest(image="img:1", **spec):
    containers = [{"name": "app", "image": image, "command": ["run"]}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "till"}, "spec": {"containers": containers, **spec}}  # fmt: skip


@pytest.fixture
def node(tmp_path):
    made = StaticNode(tmp_path)
    made.workloads.start()
    return made


def running(node):
    return node.last().get("status", {}).get("phase") == "Running"


def test_a_manifest_runs_and_is_reported_whole(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    told = node.last()
    assert told["pod"]["metadata"]["name"] == "till-e1"
    assert told["pod"]["metadata"]["annotations"]["kubernetes.io/config.hash"] == told["uid"]
    assert told["pod"]["spec"] == manifest()["spec"]
    assert not [key for kind, key, _ in node.reports if kind == "pod"]


def test_removing_the_file_stops_the_pod_and_tells_the_hub(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    os.unlink(node.directory / "till.json")
    node.static.look()
    node.until(lambda: node.runtime.removed)
    assert node.last() == {"gone": True}
    assert node.told.items() == []


def test_a_changed_file_is_another_pod_in_the_place_of_the_old_one(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    old = node.last()["uid"]
    node.write("till.json", manifest("img:2"))
    node.until(lambda: node.runs() == ["img:1", "img:2"] and running(node) and node.last()["uid"] != old)
    node.until(lambda: old in node.runtime.removed)
    assert not [body for kind, _, body in node.reports if kind == "static" and "gone" in body]


def test_a_restarted_agent_adopts_its_static_pods(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    node.crash()
    node.until(lambda: node.workloads._recovered)
    node.settle()
    assert node.runs() == ["img:1"] and node.runtime.stopped == []


def test_a_file_removed_while_no_agent_ran_is_told_too(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    os.unlink(node.directory / "till.json")
    node.crash()
    node.until(lambda: node.runtime.removed)
    assert node.last() == {"gone": True}


def test_a_file_that_is_half_written_stops_nothing(node):
    node.write("till.json", manifest())
    node.until(lambda: running(node))
    node.write("till.json", json.dumps(manifest())[:40])
    node.settle()
    assert node.runtime.stopped == []
    for _ in range(3):
        node.static.look()
    assert len(node.log.errors) == 1


def test_two_files_of_one_name_are_not_both_run(node):
    node.write("a.json", manifest())
    node.write("b.json", manifest("img:2"))
    node.until(lambda: running(node))
    node.settle()
    assert node.runs() == ["img:1"]
    assert "another manifest" in node.log.errors[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "not a Pod"),
        (b"[]", "not a Pod"),
        (json.dumps({**manifest(), "kind": "Deployment"}).encode(), "kind has to be Pod"),
        (json.dumps({**manifest(), "metadata": {"name": "../x"}}).encode(), "plain names"),
        (json.dumps(manifest(containers=[])).encode(), "at least one"),
        (json.dumps(manifest(volumes=[{"name": "v", "secret": {"secretName": "s"}}])).encode(), "secret"),
        (json.dumps(manifest(imagePullSecrets=[{"name": "s"}])).encode(), "secret"),
        (
            json.dumps(
                manifest(
                    volumes=[
                        {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
                    ]
                )
            ).encode(),
            "token",
        ),
    ],
)
def test_what_is_no_static_pod_is_refused_with_a_reason(text, why):
    with pytest.raises(BadManifest, match=why):
        document(text, "f.json", "e1", "2026-01-01T00:00:00Z")


def test_a_file_that_is_too_large_is_refused(node):
    node.write("till.json", json.dumps(manifest()) + " " * FILE_BYTES_MAX)
    assert "more than" in node.log.errors[0]
