from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.api import patch, schema
from hub.api.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, apply_patch
from hub.errors import BadRequest, TooLarge, Unprocessable, UnsupportedMediaType

DEPLOYMENT = schema.resource_of("apps/v1", "Deployment")
POD = schema.resource_of("v1", "Pod")
assert DEPLOYMENT is not None
assert POD is not None


def strategic(current: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(current)
    result = apply_patch(STRATEGIC_MERGE_PATCH, POD, current, json.dumps(change).encode())
    assert current == before, "the current object was changed"
    return result


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": list(containers), **spec}}


def names(obj: dict[str, Any]) -> list[str]:
    return [c["name"] for c in obj["spec"]["containers"]]


A, B, C = ({"name": n, "image": n + ":1"} for n in "abc")


def test_a_container_is_merged_by_its_name() -> None:
    got = strategic(pod(A, B), pod({"name": "b", "image": "b:2"}))
    assert got == pod(A, {"name": "b", "image": "b:2"})


def test_a_new_container_comes_before_those_that_the_patch_does_not_name() -> None:
    assert names(strategic(pod(A, B), pod(C))) == ["c", "a", "b"]


def test_ports_are_merged_by_container_port() -> None:
    had = {"name": "a", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 443}]}
    got = strategic(pod(had), pod({"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}]}))
    assert got["spec"]["containers"][0]["ports"] == [
        {"containerPort": 80, "name": "http", "protocol": "TCP"},
        {"containerPort": 443},
    ]


def test_a_list_without_a_merge_key_is_replaced() -> None:
    had = {"name": "a", "command": ["x", "y"]}
    got = strategic(pod(had), pod({"name": "a", "command": ["z"]}))
    assert got["spec"]["containers"][0]["command"] == ["z"]


def test_null_removes_a_field_and_is_not_stored_in_a_new_one() -> None:
    got = strategic(
        {"spec": {"nodeName": "n"}}, {"spec": {"nodeName": None, "hostname": None}, "status": {"x": None}}
    )
    assert got == {"spec": {}, "status": {}}


def test_patch_delete_removes_a_list_element() -> None:
    assert names(strategic(pod(A, B), pod({"name": "a", "$patch": "delete"}))) == ["b"]


def test_patch_delete_empties_a_map() -> None:
    got = strategic({"metadata": {"labels": {"a": "b"}}}, {"metadata": {"labels": {"$patch": "delete"}}})
    assert got == {"metadata": {"labels": {}}}


def test_patch_replace_replaces_a_list() -> None:
    assert strategic(pod(A, B), pod({"$patch": "replace"}, C)) == pod(C)


def test_patch_replace_replaces_a_map() -> None:
    assert strategic(pod(A), {"spec": {"$patch": "replace", "nodeName": "n"}}) == {"spec": {"nodeName": "n"}}


def test_retain_keys_clears_the_old_kind_of_a_volume() -> None:
    had = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    change = {"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}
    got = strategic(had, {"spec": {"volumes": [change]}})
    assert got == {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}


def test_retain_keys_must_name_what_the_patch_sets() -> None:
    with pytest.raises(BadRequest, match="patch content doesn't match retainKeys list"):
        strategic({}, {"spec": {"volumes": [{"name": "v", "hostPath": {}, "$retainKeys": ["name"]}]}})


def test_set_element_order_reorders_without_changing() -> None:
    order = {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}
    assert names(strategic(pod(A, B), {"spec": order})) == ["b", "a"]


def test_set_element_order_places_a_new_element_and_keeps_unnamed_ones() -> None:
    order = {"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}], "containers": [C]}
    assert names(strategic(pod(A, B), {"spec": order})) == ["a", "c", "b"]


def test_a_patch_list_out_of_its_own_order_is_refused() -> None:
    order = {"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [B, A]}
    with pytest.raises(BadRequest, match="order in patch list"):
        strategic(pod(A, B), {"spec": order})


def test_finalizers_merge_as_a_set_and_delete_from_it() -> None:
    had = {"metadata": {"finalizers": ["x/1", "x/2"]}}
    change = {"$deleteFromPrimitiveList/finalizers": ["x/1"], "finalizers": ["x/3", "x/2"]}
    got = strategic(had, {"metadata": change})
    assert sorted(got["metadata"]["finalizers"]) == ["x/2", "x/3"]


def test_directives_inside_new_parts_never_reach_the_object() -> None:
    change = {
        "spec": {
            "$setElementOrder/containers": [{"name": "a"}],
            "containers": [
                {"name": "a", "$retainKeys": ["name", "env"], "env": [{"name": "E", "$patch": "merge"}]}
            ],
            "volumes": [{"name": "gone", "$patch": "delete"}],
        }
    }
    got = strategic({}, change)
    assert "$" not in json.dumps(got)
    assert got["spec"]["containers"] == [{"name": "a", "env": [{"name": "E"}]}]
    assert got["spec"]["volumes"] == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (pod({"image": "x"}), "does not contain declared merge key: name"),
        ({"spec": {"containers": ["a"]}}, "expected a map"),
        ({"spec": {"$patch": "zap"}}, "unknown patch type: zap"),
        ({"metadata": {"finalizers": [{}]}}, "primitive"),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}, "primitive list"),
        ({"spec": {"$setElementOrder/containers": {}}}, "setElementOrder"),
        ({"spec": {"$retainKeys": "x"}}, "retainKeys"),
    ],
)
def test_a_malformed_strategic_patch_is_a_bad_request(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        strategic(pod(A), change)


def test_json_patch_applies_in_order() -> None:
    ops = [
        {"op": "test", "path": "/spec/containers/0/name", "value": "a"},
        {"op": "add", "path": "/spec/containers/-", "value": B},
        {"op": "remove", "path": "/spec/containers/0"},
    ]
    assert apply_patch(JSON_PATCH, POD, pod(A), json.dumps(ops).encode()) == pod(B)


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ([{"op": "test", "path": "/spec", "value": 1}], Unprocessable),
        ([{"op": "remove", "path": "/nope"}], Unprocessable),
        ([{"op": "add", "path": "/spec/containers/x", "value": 1}], Unprocessable),
        ([{"op": "add", "path": "/spec/containers/0/name/x", "value": 1}], Unprocessable),
        ([{"op": "replace", "path": "", "value": []}], Unprocessable),
        ([{"op": "zap", "path": "/spec"}], BadRequest),
        ([{"op": "add"}], BadRequest),
        ([{"path": "/spec"}], BadRequest),
        (["x"], BadRequest),
        ([None], BadRequest),
        ([[]], BadRequest),
        ({"op": "add"}, BadRequest),
        ([{"op": "add", "path": 1, "value": 1}], BadRequest),
        ([{"op": "copy", "from": 1, "path": "/x"}], BadRequest),
        ([{"op": "test", "path": "/a", "value": 1}] * (patch.OPERATIONS_MAX + 1), TooLarge),
        ([{"op": "copy", "from": "", "path": f"/x{i}"} for i in range(50)], TooLarge),
    ],
)
def test_a_json_patch_that_cannot_be_applied_is_refused(ops: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        apply_patch(JSON_PATCH, POD, pod(A), json.dumps(ops).encode())


def test_a_failed_test_operation_does_not_quote_the_object() -> None:
    secret = {"data": {"k": "c2VjcmV0"}}
    with pytest.raises(Unprocessable) as e:
        apply_patch(JSON_PATCH, POD, secret, b'[{"op":"test","path":"/data/k","value":"x"}]')
    assert "c2VjcmV0" not in e.value.message


def test_other_patch_types_are_named_as_unsupported() -> None:
    with pytest.raises(UnsupportedMediaType, match="strategic-merge-patch"):
        apply_patch("application/apply-patch+yaml", POD, {}, b"{}")


def test_a_patch_that_is_not_json_is_a_bad_request() -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"1"):
        for media in patch.TYPES:
            with pytest.raises(BadRequest, match="error decoding patch"):
                apply_patch(media, POD, {}, body)


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a"])
trees = st.recursive(
    scalars,
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.sampled_from("abc"), t, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


def slow_merge(target: Any, change: Any) -> Any:
    """The pseudo code of RFC 7386, as it stands there."""
    if isinstance(change, dict):
        if not isinstance(target, dict):
            target = {}
        target = copy.deepcopy(target)
        for name, value in change.items():
            if value is None:
                if name in target:
                    del target[name]
            else:
                target[name] = slow_merge(target.get(name), value)
        return target
    return change


@given(objects, objects)
def test_merge_patch_equals_the_rfc(current: dict[str, Any], change: dict[str, Any]) -> None:
    before = copy.deepcopy(current)
    got = apply_patch(MERGE_PATCH, POD, current, json.dumps(change).encode())
    assert got == slow_merge(current, change)
    assert current == before


container = st.fixed_dictionaries(
    {"name": st.sampled_from("abcde")},
    optional={"image": st.sampled_from(["1", "2"]), "env": st.just([{"name": "E", "value": "v"}])},
)
containers = st.lists(container, max_size=5, unique_by=lambda c: c["name"])


@given(containers, containers)
def test_a_list_merge_equals_a_merge_of_maps(have: list[Any], want: list[Any]) -> None:
    """Twin: as dicts by name, the list merge is RFC 7386 of each element."""
    got = strategic({"spec": {"containers": have}}, {"spec": {"containers": want}})["spec"]["containers"]
    twin = {c["name"]: c for c in have}
    for c in want:
        twin[c["name"]] = slow_merge(twin.get(c["name"], {}), c)
    assert {c["name"]: c for c in got} == twin
    assert len(got) == len(twin)
    wanted = [c["name"] for c in want]
    assert [n for n in names({"spec": {"containers": got}}) if n in wanted] == wanted
    others = [c["name"] for c in have if c["name"] not in wanted]
    assert [n for n in names({"spec": {"containers": got}}) if n not in wanted] == others


@given(containers, st.permutations("abcde"))
def test_set_element_order_gives_the_order(have: list[Any], order: list[str]) -> None:
    change = {"$setElementOrder/containers": [{"name": n} for n in order]}
    got = strategic({"spec": {"containers": have}}, {"spec": change})["spec"]["containers"]
    assert [c["name"] for c in got] == [n for n in order if n in {c["name"] for c in have}]


@given(objects, trees)
def test_any_json_either_patches_or_is_refused_as_an_api_error(current: dict[str, Any], change: Any) -> None:
    for media in patch.TYPES:
        try:
            apply_patch(media, POD, {"spec": current}, json.dumps({"spec": change}).encode())
        except (BadRequest, Unprocessable):
            pass


def test_objects_are_not_deleted_from_a_list_as_primitives() -> None:
    with pytest.raises(BadRequest, match="primitive"):
        strategic(pod(A), {"spec": {"$deleteFromPrimitiveList/containers": ["a"]}})
