"""The verbs, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hub.api.kinds import kind_of
from hub.objects import CONFIGMAPS as CONFIGMAPS_RESOURCE
from hub.objects import JOINTOKENS, NAMESPACES, PODS, Resource
from hub.registry import Stored
from tests.hub import serving
from tests.hub.serving import CONFIGMAPS, DEPLOYMENTS, Hub, Object, configmap, deployment, pod

PATCH = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with serving.hub() as running:
        yield running


# -- create ---------------------------------------------------------------------------------------------------------


async def test_a_created_object_has_its_defaults_and_can_be_read_at_once(hub: Hub) -> None:
    made = await hub.created(serving.PODS, pod("a"))
    assert made["spec"]["restartPolicy"] == "Always"
    assert made["status"]["phase"] == "Pending"
    assert made["metadata"]["generation"] == 1
    found = (await hub.get(f"{serving.PODS}/a")).json
    assert found == made


async def test_what_the_system_owns_is_not_taken_from_the_client(hub: Hub) -> None:
    asked = configmap("a")
    asked["metadata"] |= {
        "uid": "mine",
        "creationTimestamp": "2001-01-01T00:00:00Z",
        "deletionTimestamp": "2001-01-01T00:00:00Z",
        "generation": 7,
        "managedFields": [],
    }
    meta = (await hub.created(CONFIGMAPS, asked))["metadata"]
    assert meta["uid"] != "mine"
    assert meta["creationTimestamp"] > "2002"
    assert {"deletionTimestamp", "generation", "managedFields"}.isdisjoint(meta)
    status = (await hub.created(DEPLOYMENTS, deployment("d") | {"status": {"replicas": 9}}))["status"]
    assert status == {}


async def test_a_generated_name_is_tried_again_until_it_is_free(hub: Hub) -> None:
    asked = configmap("")
    asked["metadata"] = {"generateName": "gen-"}
    names = {(await hub.created(CONFIGMAPS, asked))["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("gen-") and len(name) == 9 for name in names)


async def test_a_second_object_of_a_name_is_refused(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    again = await hub.post(CONFIGMAPS, configmap("a"))
    assert (again.status, again.message) == (409, 'configmaps "a" already exists')
    assert again.json["reason"] == "AlreadyExists"


async def test_a_dry_run_is_checked_and_not_stored(hub: Hub) -> None:
    before = await hub.store.revision()
    made = await hub.post(CONFIGMAPS, configmap("a"), params={"dryRun": "All"})
    assert made.status == 201
    assert made.json["metadata"]["uid"]
    bad = await hub.post(CONFIGMAPS, configmap("A b"), params={"dryRun": "All"})
    assert bad.status == 422
    wrong = await hub.post(CONFIGMAPS, configmap("a"), params={"dryRun": "Some"})
    assert wrong.status == 400
    assert await hub.store.revision() == before


async def test_unknown_fields_are_refused_warned_about_or_dropped_as_asked(hub: Hub) -> None:
    asked = pod("a", bogus=1)
    strict = await hub.post(serving.PODS, asked, params={"fieldValidation": "Strict", "dryRun": "All"})
    assert strict.status == 400
    assert 'strict decoding error: unknown field "spec.bogus"' in strict.message
    warned = await hub.post(serving.PODS, asked, params={"fieldValidation": "Warn", "dryRun": "All"})
    assert warned.warnings == ['299 - "unknown field \\"spec.bogus\\""']
    assert "bogus" not in warned.json["spec"]
    ignored = await hub.post(serving.PODS, asked, params={"fieldValidation": "Ignore", "dryRun": "All"})
    assert (ignored.status, ignored.warnings) == (201, [])


async def test_yaml_bodies_are_read_and_yaml_answers_written(hub: Hub) -> None:
    body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: 'yes'}\n"
    made = await hub.post(CONFIGMAPS, body, content_type="application/yaml")
    assert made.json["data"] == {"x": "yes"}
    shown = await hub.get(f"{CONFIGMAPS}/a", accept="application/yaml")
    assert shown.headers["Content-Type"].startswith("application/yaml")
    assert b"kind: ConfigMap" in shown.body
    many = await hub.get(CONFIGMAPS, accept="application/yaml")
    assert b"kind: ConfigMapList" in many.body


async def test_a_namespace_must_exist_and_not_be_terminating(hub: Hub) -> None:
    nowhere = await hub.post("/api/v1/namespaces/nowhere/configmaps", configmap("a"))
    assert (nowhere.status, nowhere.message) == (404, 'namespaces "nowhere" not found')
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "old"}}
    made = await hub.created("/api/v1/namespaces", namespace)
    assert made["status"]["phase"] == "Active"
    assert made["spec"]["finalizers"] == ["kubernetes"]
    gone = await hub.call("DELETE", "/api/v1/namespaces/old")
    assert gone.json["status"]["phase"] == "Terminating"
    late = await hub.post("/api/v1/namespaces/old/configmaps", configmap("a"))
    assert late.status == 403
    assert "unable to create new content in namespace old because it is being terminated" in late.message
    assert late.json["details"]["causes"][0]["reason"] == "NamespaceTerminating"


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("DELETE", None, 403), ("PATCH", b'{"metadata":{"labels":{"a":"b"}}}', 201)],
)
async def test_a_create_that_a_change_of_its_namespace_overtakes_looks_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, method: str, body: bytes | None, status: int
) -> None:
    """The namespace passes the check, and is changed before the object is stored."""
    await hub.created("/api/v1/namespaces", {"metadata": {"name": "busy"}})
    create, calls = hub.registry.create, []

    async def overtaken(res: Resource, obj: Object, **options: Any) -> Stored:
        calls.append(res)
        if len(calls) == 1:
            changed = await hub.call(method, "/api/v1/namespaces/busy", body, content_type=MERGE)
            assert changed.status == 200, changed.body
        return await create(res, obj, **options)

    monkeypatch.setattr(hub.registry, "create", overtaken)
    made = await hub.post("/api/v1/namespaces/busy/configmaps", configmap("a"))
    assert made.status == status, made.body
    found = await hub.get("/api/v1/namespaces/busy/configmaps")
    assert len(found.json["items"]) == (status == 201)


async def test_the_body_must_be_of_the_paths_kind_namespace_and_name(hub: Hub) -> None:
    other = await hub.post(CONFIGMAPS, pod("a"))
    assert other.status == 400
    assert "kind" in other.message
    elsewhere = configmap("a")
    elsewhere["metadata"]["namespace"] = "kube-system"
    reply = await hub.post(CONFIGMAPS, elsewhere)
    assert "does not match the namespace sent on the request" in reply.message
    await hub.created(CONFIGMAPS, configmap("a"))
    renamed = await hub.call("PUT", f"{CONFIGMAPS}/a", configmap("b"))
    assert (renamed.status, renamed.message) == (
        400,
        "the name of the object (b) does not match the name on the URL (a)",
    )


# -- update and patch -----------------------------------------------------------------------------------------------


async def test_an_update_over_an_older_state_is_a_conflict(hub: Hub) -> None:
    made = await hub.created(CONFIGMAPS, configmap("a"))
    assert (await hub.call("PUT", f"{CONFIGMAPS}/a", {**made, "data": {"a": "1"}})).status == 200
    stale = await hub.call("PUT", f"{CONFIGMAPS}/a", {**made, "data": {"a": "2"}})
    assert stale.status == 409
    assert "the object has been modified" in stale.message
    free = await hub.call("PUT", f"{CONFIGMAPS}/a", configmap("a") | {"data": {"a": "3"}})
    assert free.json["data"] == {"a": "3"}


async def test_an_update_of_another_uid_is_a_conflict(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    other = configmap("a")
    other["metadata"]["uid"] = "other"
    reply = await hub.call("PUT", f"{CONFIGMAPS}/a", other)
    assert reply.status == 409
    assert "UID in precondition: other" in reply.message


async def test_a_write_that_changes_nothing_makes_no_revision(hub: Hub) -> None:
    made = await hub.created(DEPLOYMENTS, deployment("d"))
    again = await hub.call("PUT", f"{DEPLOYMENTS}/d", deployment("d"))
    assert again.json == made


async def test_the_order_of_fields_is_no_change(hub: Hub) -> None:
    made = await hub.created(CONFIGMAPS, configmap("a") | {"data": {"x": "1", "y": "2"}})
    other = {key: made[key] for key in reversed(made)} | {"data": {"y": "2", "x": "1"}}
    assert (await hub.call("PUT", f"{CONFIGMAPS}/a", other)).json == made


async def test_a_patch_that_meets_a_concurrent_write_is_applied_to_what_that_wrote(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    replace, raced = hub.registry.replace, []

    async def race(res: Resource, stored: Stored, obj: Object) -> Stored:
        if not raced:
            raced.append(await replace(res, stored, {**stored.obj(), "data": {"theirs": "1"}}))
        return await replace(res, stored, obj)

    monkeypatch.setattr(hub.registry, "replace", race)
    reply = await hub.call("PATCH", f"{CONFIGMAPS}/a", {"data": {"ours": "1"}}, content_type=MERGE)
    assert reply.json["data"] == {"ours": "1", "theirs": "1"}
    raced.clear()
    scale = f"{DEPLOYMENTS}/d/scale"
    await hub.created(DEPLOYMENTS, deployment("d"))

    async def race_labels(res: Resource, stored: Stored, obj: Object) -> Stored:
        if not raced:
            other = stored.obj()
            other["metadata"]["labels"] = {"theirs": "1"}
            raced.append(await replace(res, stored, other))
        return await replace(res, stored, obj)

    monkeypatch.setattr(hub.registry, "replace", race_labels)
    assert (await hub.call("PATCH", scale, {"spec": {"replicas": 5}}, content_type=MERGE)).status == 200
    found = (await hub.get(f"{DEPLOYMENTS}/d")).json
    assert (found["spec"]["replicas"], found["metadata"]["labels"]) == (5, {"theirs": "1"})


def test_the_version_is_spliced_into_stored_bytes_whatever_their_order() -> None:
    kind = kind_of(CONFIGMAPS_RESOURCE)
    ours = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"\\u00e9"}}'
    assert ours.startswith(kind.head)
    for raw in (
        ours,
        b'{"metadata":{"name":"a"},"kind":"ConfigMap","apiVersion":"v1"}',
        b'{"metadata":{"name":"a"}}',
    ):
        obj = json.loads(kind.encode(raw, 7))
        assert obj == kind.decode(raw, 7)
        assert (obj["kind"], obj["apiVersion"], obj["metadata"]["resourceVersion"]) == (
            "ConfigMap",
            "v1",
            "7",
        )


async def test_only_a_change_of_spec_raises_the_generation(hub: Hub) -> None:
    made = await hub.created(DEPLOYMENTS, deployment("d"))
    labelled = await hub.call(
        "PATCH", f"{DEPLOYMENTS}/d", {"metadata": {"labels": {"a": "b"}}}, content_type=PATCH
    )
    assert labelled.json["metadata"]["generation"] == made["metadata"]["generation"]
    scaled = await hub.call("PATCH", f"{DEPLOYMENTS}/d", {"spec": {"replicas": 3}}, content_type=PATCH)
    assert scaled.json["metadata"]["generation"] == made["metadata"]["generation"] + 1


async def test_the_status_is_written_only_through_its_subresource_and_nothing_else_is(hub: Hub) -> None:
    await hub.created(serving.PODS, pod("a"))
    body: Object = {"status": {"phase": "Running"}, "metadata": {"labels": {"x": "y"}}}
    ignored = await hub.call("PATCH", f"{serving.PODS}/a", body, content_type=MERGE)
    assert ignored.json["status"]["phase"] == "Pending"
    assert ignored.json["metadata"]["labels"] == {"x": "y"}
    body = {"status": {"phase": "Running"}, "metadata": {"labels": {"x": "z"}}}
    taken = await hub.call("PATCH", f"{serving.PODS}/a/status", body, content_type=MERGE)
    assert taken.json["status"]["phase"] == "Running"
    assert taken.json["metadata"]["labels"] == {"x": "y"}
    assert taken.json["metadata"]["generation"] == 1


async def test_every_patch_type_is_served_and_apply_says_what_to_do(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    path = f"{CONFIGMAPS}/a"
    operations = [{"op": "add", "path": "/data/b", "value": "1"}]
    first = await hub.call("PATCH", path, operations, content_type="application/json-patch+json")
    assert first.json["data"] == {"a": "b", "b": "1"}
    second = await hub.call("PATCH", path, {"data": {"a": None}}, content_type=MERGE)
    assert second.json["data"] == {"b": "1"}
    third = await hub.call("PATCH", path, {"data": {"c": "2"}}, content_type=PATCH)
    assert third.json["data"] == {"b": "1", "c": "2"}
    applied = await hub.call("PATCH", path, b"{}", content_type="application/apply-patch+yaml")
    assert applied.status == 415
    assert "kubectl apply --server-side=false" in applied.message


async def test_concurrent_patches_of_different_fields_all_take_effect(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    await asyncio.gather(
        *(
            hub.call("PATCH", f"{CONFIGMAPS}/a", {"data": {f"k{i}": "1"}}, content_type=MERGE)
            for i in range(6)
        )
    )
    assert len((await hub.get(f"{CONFIGMAPS}/a")).json["data"]) == 7


async def test_a_patch_that_names_an_old_resource_version_is_a_conflict(hub: Hub) -> None:
    made = await hub.created(CONFIGMAPS, configmap("a"))
    await hub.call("PATCH", f"{CONFIGMAPS}/a", {"data": {"b": "1"}}, content_type=MERGE)
    body = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"b": "2"}}
    assert (await hub.call("PATCH", f"{CONFIGMAPS}/a", body, content_type=MERGE)).status == 409


async def test_an_invalid_update_is_refused_with_its_causes(hub: Hub) -> None:
    await hub.created(DEPLOYMENTS, deployment("d"))
    body = {"spec": {"selector": {"matchLabels": {"app": "other"}}}}
    reply = await hub.call("PATCH", f"{DEPLOYMENTS}/d", body, content_type=PATCH)
    assert reply.status == 422
    fields = [c["field"] for c in reply.json["details"]["causes"]]
    assert "spec.selector" in fields


async def test_removing_the_last_finalizer_of_a_deleted_object_removes_it(hub: Hub) -> None:
    asked = configmap("a")
    asked["metadata"]["finalizers"] = ["x.io/y"]
    await hub.created(CONFIGMAPS, asked)
    marked = await hub.call("DELETE", f"{CONFIGMAPS}/a")
    assert marked.json["metadata"]["deletionTimestamp"]
    freed = await hub.call("PATCH", f"{CONFIGMAPS}/a", {"metadata": {"finalizers": None}}, content_type=MERGE)
    assert freed.status == 200
    assert (await hub.get(f"{CONFIGMAPS}/a")).status == 404


async def test_a_put_creates_a_lease_but_not_a_pod(hub: Hub) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l"
    assert (await hub.call("PUT", path, lease)).status == 201
    assert (await hub.call("PUT", f"{serving.PODS}/p", pod("p"))).status == 404


# -- delete ---------------------------------------------------------------------------------------------------------


async def test_a_bound_pod_is_terminating_and_a_forced_one_gone(hub: Hub) -> None:
    await hub.created(serving.PODS, pod("a", nodeName="n"))
    marked = await hub.call("DELETE", f"{serving.PODS}/a")
    assert marked.json["metadata"]["deletionGracePeriodSeconds"] == 30
    shorter = await hub.call("DELETE", f"{serving.PODS}/a", params={"gracePeriodSeconds": "5"})
    assert shorter.json["metadata"]["deletionGracePeriodSeconds"] == 5
    forced = await hub.call("DELETE", f"{serving.PODS}/a", {"gracePeriodSeconds": 0})
    assert forced.status == 200
    assert (await hub.get(f"{serving.PODS}/a")).status == 404


async def test_a_delete_answers_with_a_status_that_names_what_is_gone(hub: Hub) -> None:
    made = await hub.created(DEPLOYMENTS, deployment("d"))
    reply = await hub.call("DELETE", f"{DEPLOYMENTS}/d")
    assert reply.json["status"] == "Success"
    assert reply.json["details"] == {
        "name": "d",
        "group": "apps",
        "kind": "deployments",
        "uid": made["metadata"]["uid"],
    }


async def test_a_delete_with_a_wrong_precondition_or_option_changes_nothing(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    body: Object = {"preconditions": {"uid": "other"}}
    assert (await hub.call("DELETE", f"{CONFIGMAPS}/a", body)).status == 409
    assert (await hub.call("DELETE", f"{CONFIGMAPS}/a", {"propagationPolicy": "Never"})).status == 422
    assert (await hub.call("DELETE", f"{CONFIGMAPS}/a", {"dryRun": ["All"]})).status == 200
    assert (await hub.call("DELETE", f"{CONFIGMAPS}/a", params={"gracePeriodSeconds": "x"})).status == 400
    assert (await hub.get(f"{CONFIGMAPS}/a")).status == 200


async def test_system_namespaces_cannot_be_deleted(hub: Hub) -> None:
    reply = await hub.call("DELETE", "/api/v1/namespaces/default")
    assert (reply.status, reply.message) == (
        403,
        'namespaces "default" is forbidden: this namespace may not be deleted',
    )


async def test_a_collection_is_deleted_as_far_as_it_is_selected(hub: Hub) -> None:
    for i in range(12):
        await hub.created(CONFIGMAPS, configmap(f"c{i}", even=str(i % 2)))
    reply = await hub.call("DELETE", CONFIGMAPS, params={"labelSelector": "even=0"})
    assert reply.json["kind"] == "ConfigMapList"
    assert len(reply.json["items"]) == 6
    left = (await hub.get(CONFIGMAPS)).json["items"]
    assert {o["metadata"]["labels"]["even"] for o in left} == {"1"}


# -- subresources ---------------------------------------------------------------------------------------------------


async def test_scale_is_read_and_written(hub: Hub) -> None:
    await hub.created(DEPLOYMENTS, deployment("d", replicas=2))
    scale = (await hub.get(f"{DEPLOYMENTS}/d/scale")).json
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"]["selector"] == "app=d"
    scale["spec"]["replicas"] = 0
    assert (await hub.call("PUT", f"{DEPLOYMENTS}/d/scale", scale)).json["spec"] == {"replicas": 0}
    stale = await hub.call("PUT", f"{DEPLOYMENTS}/d/scale", scale)
    assert stale.status == 409
    body = {"spec": {"replicas": 4}}
    patched = await hub.call("PATCH", f"{DEPLOYMENTS}/d/scale", body, content_type=MERGE)
    assert patched.json["spec"] == {"replicas": 4}
    negative = await hub.call(
        "PATCH", f"{DEPLOYMENTS}/d/scale", {"spec": {"replicas": -1}}, content_type=MERGE
    )
    assert negative.status == 422
    found = (await hub.get(f"{DEPLOYMENTS}/d")).json
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (4, 3)


async def test_a_pod_is_bound_once(hub: Hub) -> None:
    await hub.created(serving.PODS, pod("a"))
    binding = {"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "a"}, "target": {"name": "n"}}
    assert (await hub.post(f"{serving.PODS}/a/binding", binding)).status == 201
    assert (await hub.get(f"{serving.PODS}/a")).json["spec"]["nodeName"] == "n"
    again = await hub.post(f"{serving.PODS}/a/binding", binding)
    assert again.status == 409
    assert "already assigned" in again.message


async def test_an_eviction_deletes(hub: Hub) -> None:
    await hub.created(serving.PODS, pod("a"))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}}
    assert (await hub.post(f"{serving.PODS}/a/eviction", eviction)).status == 201
    assert (await hub.get(f"{serving.PODS}/a")).status == 404


async def test_finalize_frees_a_terminating_namespace(hub: Hub) -> None:
    namespace: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "old"}}
    await hub.created("/api/v1/namespaces", namespace)
    await hub.call("DELETE", "/api/v1/namespaces/old")
    reply = await hub.call("PUT", "/api/v1/namespaces/old/finalize", namespace | {"spec": {}})
    assert reply.status == 200
    assert await hub.registry.find(NAMESPACES, "", "old") is None


async def test_a_join_token_is_shown_once_and_its_record_never() -> None:
    minted: list[Object] = []

    def mint(spec: Object) -> tuple[Object, str]:
        minted.append(spec)
        return {"id": "abc123", "expires": 1_900_000_000.0, "hash": "salted"}, "the token"

    async with serving.hub(mint=mint) as hub:
        path = "/apis/cloudhub.dev/v1alpha1/jointokens"
        asked = {"apiVersion": "cloudhub.dev/v1alpha1", "kind": "JoinToken", "spec": {"node": "n"}}
        made = await hub.created(path, asked)
        assert made["metadata"]["name"] == "abc123"
        assert made["status"] == {"token": "the token", "expires": "2030-03-17T17:46:40Z", "redeemed": 0}
        assert minted[0]["ttlSeconds"] == 3600
        bodies = [await hub.get(f"{path}/abc123"), await hub.get(path), await hub.get(path, accept=TABLE)]
        body = {"metadata": {"labels": {"x": "y"}}}
        bodies.append(await hub.call("PATCH", f"{path}/abc123", body, content_type=MERGE))
        async with hub.watch(path) as watch:
            _, seen = await watch.next()
        for text in (*(b.body.decode() for b in bodies), json.dumps(seen)):
            assert "the token" not in text
            assert "salted" not in text
        kept = (await hub.registry.page(JOINTOKENS)).items[0].obj()
        assert kept["status"]["record"]["hash"] == "salted"
        assert (await hub.post(path, asked | {"spec": {}})).status == 422
        assert len(minted) == 1


# -- reads ----------------------------------------------------------------------------------------------------------


async def test_a_list_is_read_in_pages_at_one_revision(hub: Hub) -> None:
    for i in range(5):
        await hub.created(serving.PODS, pod(f"p{i}", nodeName=f"n{i}"))
    names: list[str] = []
    params = {"limit": "2"}
    revisions = set()
    while True:
        page = (await hub.get(serving.PODS, params=params)).json
        names += [o["metadata"]["name"] for o in page["items"]]
        revisions.add(page["metadata"]["resourceVersion"])
        if "continue" not in page["metadata"]:
            break
        await hub.call("DELETE", f"{serving.PODS}/p4", {"gracePeriodSeconds": 0})
        params = {"limit": "2", "continue": page["metadata"]["continue"]}
    assert names == [f"p{i}" for i in range(5)]
    assert len(revisions) == 1


async def test_a_long_list_is_streamed_whole(hub: Hub) -> None:
    for i in range(1203):
        await hub.registry.create(
            PODS, {"metadata": {"name": f"p{i}", "namespace": "default"}, "spec": {"nodeName": f"n{i % 7}"}}
        )
    for path in (serving.PODS, "/api/v1/pods"):
        found = (await hub.get(path)).json
        assert len({o["metadata"]["name"] for o in found["items"]}) == 1203
        assert "continue" not in found["metadata"]
    rows = (await hub.get(serving.PODS, accept=TABLE)).json["rows"]
    assert len(rows) == 1203
    chosen = await hub.get("/api/v1/pods", params={"fieldSelector": "spec.nodeName=n3", "limit": "50"})
    assert len(chosen.json["items"]) == 50
    rest = await hub.get(
        "/api/v1/pods",
        params={"fieldSelector": "spec.nodeName=n3", "continue": chosen.json["metadata"]["continue"]},
    )
    names = [o["metadata"]["name"] for o in (*chosen.json["items"], *rest.json["items"])]
    assert len(names) == len(set(names)) == 172


async def test_selectors_choose_by_labels_and_fields(hub: Hub) -> None:
    for name, label, node in (("a", "x", "n1"), ("b", "x", ""), ("c", "y", "n1")):
        asked = pod(name, **({"nodeName": node} if node else {}))
        asked["metadata"]["labels"] = {"l": label}
        await hub.created(serving.PODS, asked)

    async def names(path: str = serving.PODS, **params: str) -> list[str]:
        reply = await hub.get(path, params=params)
        assert reply.status == 200, reply.body
        return [o["metadata"]["name"] for o in reply.json["items"]]

    assert await names(labelSelector="l=x") == ["a", "b"]
    assert await names(fieldSelector="spec.nodeName=n1") == ["a", "c"]
    assert await names(fieldSelector="spec.nodeName=n1", labelSelector="l!=x") == ["c"]
    assert await names(fieldSelector="metadata.name=b") == ["b"]
    assert await names(fieldSelector="spec.restartPolicy=Always") == ["a", "b", "c"]
    assert await names("/api/v1/pods", fieldSelector="metadata.namespace=default,metadata.name=b") == ["b"]
    assert await names("/api/v1/pods", fieldSelector="metadata.name=b,metadata.namespace!=default") == []
    assert await names("/api/v1/namespaces/other/pods") == []
    bad = await hub.get(serving.PODS, params={"fieldSelector": "spec.foo=1"})
    assert bad.status == 400


async def test_tables_and_metadata_only_are_served(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    table = (await hub.get(CONFIGMAPS, accept=TABLE)).json
    assert table["kind"] == "Table"
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert table["rows"][0]["cells"][:2] == ["a", 1]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    whole = await hub.get(CONFIGMAPS, accept=TABLE, params={"includeObject": "Object"})
    assert whole.json["rows"][0]["object"]["data"] == {"a": "b"}
    one = (await hub.get(f"{CONFIGMAPS}/a", accept=TABLE)).json
    assert one["rows"][0]["cells"][0] == "a"
    partial = (await hub.get(f"{CONFIGMAPS}/a", accept=PARTIAL)).json
    assert partial["kind"] == "PartialObjectMetadata"
    assert "data" not in partial
    many = (await hub.get(CONFIGMAPS, accept=PARTIAL.replace("Metadata;", "MetadataList;"))).json
    assert many["kind"] == "PartialObjectMetadataList"
    assert many["items"][0]["metadata"]["name"] == "a"
    neither = await hub.get(CONFIGMAPS, accept="application/vnd.kubernetes.protobuf")
    assert neither.status == 406


async def test_resource_versions_of_lists_mean_what_kubernetes_says(hub: Hub) -> None:
    first = await hub.created(CONFIGMAPS, configmap("a"))
    revision = first["metadata"]["resourceVersion"]
    await hub.created(CONFIGMAPS, configmap("b"))

    async def ask(**params: str) -> serving.Reply:
        return await hub.get(CONFIGMAPS, params=params)

    exact = await ask(resourceVersion=revision, resourceVersionMatch="Exact")
    assert [o["metadata"]["name"] for o in exact.json["items"]] == ["a"]
    assert exact.json["metadata"]["resourceVersion"] == revision
    for match in ({}, {"resourceVersionMatch": "NotOlderThan"}):
        assert len((await ask(resourceVersion=revision, **match)).json["items"]) == 2
    assert len((await ask(resourceVersion="0")).json["items"]) == 2
    ahead = await ask(resourceVersion="999999")
    assert ahead.status == 504
    assert "Too large resource version: 999999" in ahead.message
    assert ahead.json["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert (await ask(resourceVersion="x")).status == 400
    assert (await ask(resourceVersionMatch="Exact")).status == 422
    assert (await ask(resourceVersion="0", resourceVersionMatch="Exact")).status == 422
    await hub.store.compact(await hub.store.revision())
    old = await ask(resourceVersion=revision, resourceVersionMatch="Exact")
    assert (old.status, old.json["reason"]) == (410, "Expired")


async def test_a_continue_token_that_is_too_old_or_forged_is_refused(hub: Hub) -> None:
    for name in ("a", "b", "c"):
        await hub.created(CONFIGMAPS, configmap(name))
    token = (await hub.get(CONFIGMAPS, params={"limit": "1"})).json["metadata"]["continue"]
    for forged in ("x", "!!!", "e30", token[:-4], "A" * 5000):
        reply = await hub.get(CONFIGMAPS, params={"limit": "1", "continue": forged})
        assert reply.status == 400, reply.body
        assert "continue key is not valid" in reply.message
    await hub.created(CONFIGMAPS, configmap("d"))
    await hub.store.compact(await hub.store.revision())
    old = await hub.get(CONFIGMAPS, params={"limit": "1", "continue": token})
    assert old.status == 410
    assert "continue parameter is too old" in old.message
