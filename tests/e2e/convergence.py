"""Does every node hold what the store says? Compares agents' documents with the API's objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from edgelite.desired import digest_of, version_of
from hub import documents
from hub.kubernetes.services import kept
from hub.objects import CONFIGMAPS, SECRETS, SERVICES, Resource

Spaced = Sequence[tuple[Resource, Any]]


def wanted(
    pods: Sequence[Any], configs: Sequence[Any], secrets: Sequence[Any] = (), spaced: Spaced = ()
) -> dict[str, dict[str, str]]:
    """By node: document key -> version, as the objects in the store have it. `spaced`: Services and EndpointSlices."""
    shared: dict[str, str] = {}
    for res, objects in ((CONFIGMAPS, configs), (SECRETS, secrets)):
        for obj in objects:
            key = documents.config_key(res, obj["metadata"]["namespace"], obj["metadata"]["name"])
            shared[key] = version_of(documents.render_config(res, obj))
    nodes: dict[str, dict[str, str]] = {}
    for pod in pods:
        meta, spec = pod["metadata"], pod["spec"]
        if not spec.get("nodeName"):
            continue
        held = nodes.setdefault(spec["nodeName"], {})
        held[documents.pod_key(meta["namespace"], meta["name"], meta["uid"])] = version_of(
            documents.render_pod(pod)
        )
        held.update(
            (key, shared[key]) for key in documents.references(meta["namespace"], spec) if key in shared
        )
        for res, obj in spaced:
            space, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
            if space == meta["namespace"] or (res, space, name) == (SERVICES, "default", "kubernetes"):
                small = orjson.loads(kept(res, orjson.dumps(obj)))
                held[documents.config_key(res, space, name)] = version_of(documents.render_space(res, small))
    return nodes


def unlike(held: Mapping[str, str], want: Mapping[str, str], node: str) -> list[str]:
    """How a node's documents differ from those that it should hold: sentences."""
    found = [f"{node} lacks {key}" for key in want.keys() - held.keys()]
    found += [f"{node} holds {key}, which the store does not want there" for key in held.keys() - want.keys()]
    found += [f"{node} holds another version of {k}" for k in want.keys() & held.keys() if want[k] != held[k]]
    return sorted(found)


def unsettled(
    brief: Mapping[str, Any],
    pods: Sequence[Any],
    configs: Sequence[Any],
    secrets: Sequence[Any] = (),
    spaced: Spaced = (),
) -> list[str]:
    """What is still on its way between the store and simulated nodes (`SimFleet.brief`): sentences."""
    want = wanted(pods, configs, secrets, spaced)
    found = []
    for name, node in brief.items():
        if node["state"] != "connected":
            found.append(f"{name} is {node['state']}: {node['detail']}")
        elif node["waiting"]:
            found.append(f"{name} has {node['waiting']} reports that are not stored")
        elif node["digest"] != digest_of(want.get(name, {})):
            found.append(f"{name} does not hold its documents")
    found += [
        f"pod {pod['metadata']['name']} is being deleted"
        for pod in pods
        if pod["metadata"].get("deletionTimestamp")
    ]
    return found
