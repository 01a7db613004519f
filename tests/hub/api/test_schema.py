from __future__ import annotations

import subprocess
import sys

from hub.api import defaults, schema
from hub.api.schema import RESOURCES


def test_every_resource_and_its_list_has_a_schema() -> None:
    for r in RESOURCES:
        assert {"apiVersion", "kind", "metadata"} <= schema.struct(r.definition).fields.keys()
        assert "items" in schema.struct(r.definition + "List").fields
        assert schema.resource(r.group, r.version, r.plural) is r
        assert schema.resource_of(r.api_version, r.kind) is r


def test_every_reference_leads_to_a_known_definition() -> None:
    published = schema.published()
    for definition in published.values():
        for name in schema.references(definition):
            assert name in published
    for shape in schema.structs().values():
        for node in shape.fields.values():
            inner = node
            while inner.elem is not None:
                inner = inner.elem
            if inner.kind == "struct":
                assert inner.ref in schema.structs()


def test_merge_keys_survive_the_reduction() -> None:
    spec = schema.struct("io.k8s.api.core.v1.PodSpec").fields
    assert (spec["containers"].merge, spec["containers"].merge_key) == (True, "name")
    assert spec["volumes"].retain
    assert not spec["tolerations"].merge


def test_what_stays_resident_is_small() -> None:
    """In a process of its own: RSS before and after, in KiB."""
    program = """
import gc, sys
import msgspec
from hub.api import own_types
def rss():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
before = rss()
from hub.api import schema
schema.structs()
print(rss() - before, "kubernetes_validate" in sys.modules)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    grown, imported = out.stdout.split()
    assert imported == "False"
    assert int(grown) < 5 * 1024


def test_an_image_without_a_tag_or_with_latest_is_always_pulled() -> None:
    for image, policy in {
        "nginx": "Always",
        "nginx:latest": "Always",
        "nginx:1": "IfNotPresent",
        "host:5000/nginx": "Always",
        "host:5000/nginx:1": "IfNotPresent",
        "nginx@sha256:0123": "IfNotPresent",
        "nginx:latest@sha256:0123": "Always",
        "": "Always",
    }.items():
        assert defaults.pull_policy(image) == policy, image
