"""Specs that were looked at before come out as if they had not been, and are refused where they must be."""

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hub.api.podspecs import SPEC_BYTES_MAX, SPECS_MAX, PodSpecs
from tests.hub import serving
from tests.hub.serving import PODS, Hub, Object, pod

MERGE = "application/merge-patch+json"
SPEC: Object = {
    "containers": [
        {
            "name": "main",
            "image": "till:2",
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}},
            "livenessProbe": {"httpGet": {"port": 80}},
        }
    ],
    "volumes": [{"name": "scratch"}],
}


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with serving.hub() as running:
        yield running


async def patch(hub: Hub, path: str, body: Object) -> serving.Reply:
    return await hub.call("PATCH", path, body, content_type=MERGE)


def named(name: str, spec: Object, **labels: str) -> Object:
    return {**pod(name), "metadata": {"name": name, "labels": labels}, "spec": copy.deepcopy(spec)}


async def test_the_second_pod_of_a_sort_is_what_the_first_is_but_for_its_node(hub: Hub) -> None:
    made = [
        await hub.created(PODS, named(f"p-{n}", {**SPEC, **({"nodeName": f"node-{n}"} if n else {})}))
        for n in range(3)
    ]
    nodes = [one["spec"].pop("nodeName", None) for one in made]
    assert nodes == [None, "node-1", "node-2"]
    assert made[0]["spec"] == made[1]["spec"] == made[2]["spec"]
    assert made[0]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert made[0]["status"] == made[2]["status"]
    found = (await hub.get(f"{PODS}/p-2")).json
    assert found["spec"] == {**made[2]["spec"], "nodeName": "node-2"}


async def test_a_node_name_that_is_none_is_refused_also_of_a_known_spec(hub: Hub) -> None:
    await hub.created(PODS, named("good", SPEC))
    for node in ("No Node", "a" * 300):
        bad = await hub.post(PODS, named("bad", {**SPEC, "nodeName": node}))
        assert bad.status == 422 and "spec.nodeName" in bad.message
    bad = await hub.post(PODS, named("bad", {**SPEC, "nodeName": 7}))
    assert bad.status == 400 and "nodeName" in bad.message


async def test_an_image_is_asked_for_again_where_the_pod_does_not_run_as_a_process(hub: Hub) -> None:
    spec = {"containers": [{"name": "main", "command": ["true"]}]}
    await hub.created(PODS, named("process", spec, **{"cloudhub.dev/runtime": "process"}))
    bad = await hub.post(PODS, named("contained", spec))
    assert bad.status == 422 and "image" in bad.message


async def test_a_label_without_which_an_image_is_needed_cannot_be_taken_away(hub: Hub) -> None:
    spec = {"containers": [{"name": "main", "command": ["true"]}]}
    await hub.created(PODS, named("process", spec, **{"cloudhub.dev/runtime": "process", "a": "b"}))
    path = f"{PODS}/process"
    other = await patch(hub, path, {"metadata": {"labels": {"a": "c"}}})
    assert other.status == 200
    bad = await patch(hub, path, {"metadata": {"labels": {"cloudhub.dev/runtime": None}}})
    assert bad.status == 422 and "image" in bad.message


async def test_a_patch_of_annotations_leaves_spec_and_status_as_they_are_and_one_of_the_spec_is_judged(
    hub: Hub,
) -> None:
    before = await hub.created(PODS, named("p", SPEC))
    patched = (await patch(hub, f"{PODS}/p", {"metadata": {"annotations": {"a": "1"}}})).json
    assert patched["metadata"]["annotations"] == {"a": "1"}
    assert (patched["spec"], patched["status"]) == (before["spec"], before["status"])
    assert patched["metadata"]["generation"] == 1
    assert list(patched)[:3] == ["apiVersion", "kind", "metadata"]
    bad = await patch(hub, f"{PODS}/p", {"spec": {"restartPolicy": "Never"}})
    assert bad.status == 422 and "pod updates may not change fields" in bad.message
    odd = await patch(hub, f"{PODS}/p", {"spec": {"hostNetwork": "yes"}})
    assert odd.status == 400 and "hostNetwork" in odd.message


async def test_pods_made_at_once_in_a_namespace_that_goes_are_refused(hub: Hub) -> None:
    await hub.created("/api/v1/namespaces", {"metadata": {"name": "old"}})
    path = "/api/v1/namespaces/old/pods"
    assert (await hub.post(path, named("a", SPEC))).status == 201  # the namespace is remembered now
    await hub.call("DELETE", "/api/v1/namespaces/old")
    late = await asyncio.gather(*(hub.post(path, named(f"b-{n}", SPEC)) for n in range(4)))
    assert {answer.status for answer in late} == {403}
    taken = await hub.post(path, named("a", SPEC))
    assert taken.status == 403 and "it is being terminated" in taken.message


def known(value: Any, specs: PodSpecs) -> Any:
    return specs.get(specs.key(value), value)


def test_what_its_client_is_to_be_told_of_is_not_remembered() -> None:
    class Twice(dict[str, Any]):
        pass

    specs = PodSpecs()
    specs_of_clients: tuple[Any, ...] = (
        Twice(SPEC),
        {"containers": [Twice(name="main")]},
        {"containers": None},
        {**SPEC, "nodeName": None},
        {"big": "x" * SPEC_BYTES_MAX},
        [],
    )
    for spec in specs_of_clients:
        assert specs.key({"spec": spec}) is None
    assert specs.key(Twice(spec=SPEC)) is None
    assert specs.key([]) is None and specs.key({}) is None


def test_a_known_spec_is_the_callers_own_and_few_are_kept() -> None:
    specs = PodSpecs()
    first = {"spec": {"hostname": "h"}}
    key = specs.key(first)
    assert key is not None and known(first, specs) is None
    specs.put(key, {"hostname": "h", "restartPolicy": "Always", "nodeName": "n"})
    mine = known(first, specs)
    assert mine == {"hostname": "h", "restartPolicy": "Always"}
    mine["restartPolicy"] = "Never"
    assert known(first, specs)["restartPolicy"] == "Always"
    for n in range(SPECS_MAX):
        other = specs.key({"spec": {"hostname": f"h-{n}"}})
        assert other is not None
        specs.put(other, {})
    assert len(specs) == SPECS_MAX and known(first, specs) is None
