from typing import Any

import pytest

from hub import deletion, errors
from hub.deletion import DeleteOptions
from hub.objects import CONFIGMAPS, NAMESPACES, PODS, Keys, Resource
from hub.registry import Registry, Stored
from hub.store.memory import MemoryStore

NOW = 1_800_000_000.0


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryStore(slots=4), Keys())


async def make_pod(registry: Registry, *, node: str = "n", grace: int = 30, **meta: Any) -> Stored:
    return await registry.create(
        PODS,
        {
            "metadata": {"name": "p", "namespace": "d", "generation": 1, **meta},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": grace},
            "status": {"phase": "Running"},
        },
    )


async def make(registry: Registry, res: Resource = CONFIGMAPS, **meta: Any) -> Stored:
    return await registry.create(res, {"metadata": {"name": "c", "namespace": "d", **meta}})


async def test_a_bound_pod_is_marked_with_its_own_grace_and_stays(registry: Registry) -> None:
    left = await deletion.delete(registry, PODS, await make_pod(registry, grace=7), DeleteOptions(), now=NOW)
    assert left is not None
    meta = left.obj()["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 7
    assert meta["deletionTimestamp"] == "2027-01-15T08:00:07Z"
    assert meta["generation"] == 2


async def test_the_grace_of_the_options_comes_before_the_pods(registry: Registry) -> None:
    left = await deletion.delete(registry, PODS, await make_pod(registry), DeleteOptions(grace_s=3), now=NOW)
    assert left is not None and left.obj()["metadata"]["deletionGracePeriodSeconds"] == 3


@pytest.mark.parametrize("why", ["unbound", "finished", "forced"])
async def test_a_pod_that_nothing_runs_is_removed_at_once(registry: Registry, why: str) -> None:
    stored = await make_pod(registry, node="" if why == "unbound" else "n")
    if why == "finished":
        obj = stored.obj()
        obj["status"]["phase"] = "Failed"
        stored = await registry.replace(PODS, stored, obj)
    options = DeleteOptions(grace_s=0) if why == "forced" else DeleteOptions()
    assert await deletion.delete(registry, PODS, stored, options) is None
    assert await registry.find(PODS, "d", "p") is None


async def test_a_repeated_delete_may_shorten_the_grace_and_never_lengthens_it(registry: Registry) -> None:
    first = await deletion.delete(registry, PODS, await make_pod(registry), DeleteOptions(), now=NOW)
    assert first is not None
    same = await deletion.delete(registry, PODS, first, DeleteOptions(), now=NOW + 5)
    assert same == first
    longer = await deletion.delete(registry, PODS, first, DeleteOptions(grace_s=90), now=NOW + 5)
    assert longer == first
    shorter = await deletion.delete(registry, PODS, first, DeleteOptions(grace_s=10), now=NOW + 5)
    assert shorter is not None
    assert shorter.obj()["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:10Z"
    assert await deletion.delete(registry, PODS, shorter, deletion.FORCE) is None


async def test_a_finalizer_holds_an_object_until_release(registry: Registry) -> None:
    left = await deletion.delete(
        registry, CONFIGMAPS, await make(registry, finalizers=["x/y"]), DeleteOptions()
    )
    assert left is not None and left.obj()["metadata"]["deletionTimestamp"]
    assert await deletion.release(registry, CONFIGMAPS, left) == left
    obj = left.obj()
    del obj["metadata"]["finalizers"]
    free = await registry.replace(CONFIGMAPS, left, obj)
    assert await deletion.release(registry, CONFIGMAPS, free) is None
    assert await registry.find(CONFIGMAPS, "d", "c") is None


async def test_a_forced_pod_with_a_finalizer_leaves_once_the_finalizer_does(registry: Registry) -> None:
    left = await deletion.delete(registry, PODS, await make_pod(registry, finalizers=["x/y"]), deletion.FORCE)
    assert left is not None
    obj = left.obj()
    assert obj["metadata"]["deletionGracePeriodSeconds"] == 0
    del obj["metadata"]["finalizers"]
    assert await deletion.release(registry, PODS, await registry.replace(PODS, left, obj)) is None


async def test_a_pod_without_finalizers_is_not_released_while_its_node_has_it(registry: Registry) -> None:
    left = await deletion.delete(registry, PODS, await make_pod(registry), DeleteOptions())
    assert left is not None
    assert await deletion.release(registry, PODS, left) == left


@pytest.mark.parametrize(
    ("policy", "finalizers"), [("Foreground", ["x/y", "foregroundDeletion"]), ("Orphan", ["x/y", "orphan"])]
)
async def test_a_policy_becomes_a_finalizer_for_the_garbage_collector(
    registry: Registry, policy: str, finalizers: list[str]
) -> None:
    stored = await make(registry, finalizers=["x/y", "orphan"])
    left = await deletion.delete(registry, CONFIGMAPS, stored, DeleteOptions(propagation=policy))
    assert left is not None and left.obj()["metadata"]["finalizers"] == finalizers


async def test_background_takes_the_policies_finalizers_away(registry: Registry) -> None:
    stored = await make(registry, finalizers=["orphan"])
    assert (
        await deletion.delete(registry, CONFIGMAPS, stored, DeleteOptions(propagation="Background")) is None
    )


async def test_a_namespace_terminates_until_its_spec_finalizers_are_gone(registry: Registry) -> None:
    stored = await registry.create(
        NAMESPACES, {"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}}
    )
    left = await deletion.delete(registry, NAMESPACES, stored, DeleteOptions())
    assert left is not None
    obj = left.obj()
    assert obj["status"]["phase"] == "Terminating"
    obj["spec"]["finalizers"] = []
    assert await deletion.release(registry, NAMESPACES, await registry.replace(NAMESPACES, left, obj)) is None


async def test_preconditions_are_checked_also_after_a_conflict(registry: Registry) -> None:
    stored = await make(registry)
    with pytest.raises(errors.Conflict, match="Precondition failed: UID in precondition: other"):
        await deletion.delete(registry, CONFIGMAPS, stored, DeleteOptions(uid="other"))
    changed = stored.obj()
    changed["data"] = {"a": "b"}
    await registry.replace(CONFIGMAPS, stored, changed)
    asked = DeleteOptions(resource_version=str(stored.revision))
    with pytest.raises(errors.Conflict, match="ResourceVersion in precondition"):
        await deletion.delete(registry, CONFIGMAPS, stored, asked)


async def test_a_delete_of_a_stale_read_deletes_the_newer_state_but_never_a_namesake(
    registry: Registry,
) -> None:
    stored = await make(registry)
    changed = stored.obj()
    changed["data"] = {"a": "b"}
    await registry.replace(CONFIGMAPS, stored, changed)
    assert await deletion.delete(registry, CONFIGMAPS, stored, DeleteOptions()) is None
    namesake = await make(registry)
    with pytest.raises(errors.NotFound):
        await deletion.delete(registry, CONFIGMAPS, stored, DeleteOptions())
    assert await registry.get(CONFIGMAPS, "d", "c") == namesake


async def test_a_dry_run_changes_nothing(registry: Registry) -> None:
    stored = await make_pod(registry)
    await deletion.delete(registry, PODS, stored, DeleteOptions(dry_run=True))
    await deletion.delete(registry, PODS, stored, DeleteOptions(grace_s=0, dry_run=True))
    assert await registry.get(PODS, "d", "p") == stored


def test_options_are_read_as_kubernetes_reads_them() -> None:
    parsed = DeleteOptions.parse({"gracePeriodSeconds": -5, "orphanDependents": True, "dryRun": ["All"]})
    assert parsed == DeleteOptions(grace_s=1, propagation="Orphan", dry_run=True)
    with pytest.raises(errors.Invalid, match="propagationPolicy: Unsupported value"):
        DeleteOptions.parse({"propagationPolicy": "Never"})
    with pytest.raises(errors.Invalid, match="cannot be both set"):
        DeleteOptions.parse({"propagationPolicy": "Orphan", "orphanDependents": True})


async def test_system_namespaces_are_made_once(registry: Registry) -> None:
    await deletion.ensure_namespaces(registry)
    before = await registry.store.revision()
    await deletion.ensure_namespaces(registry)
    assert await registry.store.revision() == before
    names = [s.obj()["metadata"]["name"] for s in (await registry.page(NAMESPACES)).items]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system"]
