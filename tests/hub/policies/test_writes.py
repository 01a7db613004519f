"""Policies in force: for clients of the API and for nodes, through the store that both write to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from hub.objects import CONFIGMAPS, EVENTS, NODES, PODS, POLICIES, POLICY_BINDINGS, Keys
from hub.policies.watching import Policies
from hub.registry import Registry
from hub.store.memory import MemoryStore
from tests.hub import serving
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub as EdgeHub
from tests.hub.hub_fixture import configmap, eventually, pod, until
from tests.hub.hub_fixture import hub as edge_hub
from tests.hub.serving import Hub, Reply
from tests.sim.fleet import running_status

API = "/apis/admissionregistration.k8s.io/v1"
POLICY_PATH, BINDING_PATH = f"{API}/validatingadmissionpolicies", f"{API}/validatingadmissionpolicybindings"
MAPS = "/api/v1/namespaces/default/configmaps"


def policy(name: str, resources: list[str], expression: str, **spec: Any) -> dict[str, Any]:
    rule = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": resources}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": expression, "message": f"{name} says no"}],
            **spec,
        },
    }


def binding(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], **spec},
    }


@contextlib.asynccontextmanager
async def following(store: MemoryStore) -> AsyncIterator[Policies]:
    policies = Policies(store, Keys())
    running = asyncio.create_task(policies.run())
    try:
        async with asyncio.timeout(30):
            await policies.synced()
        yield policies
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def api() -> AsyncIterator[tuple[Hub, Policies]]:
    store = MemoryStore(slots=16)
    async with following(store) as policies, serving.hub(store=store, policies=policies) as h:
        yield h, policies


async def until_status(ask: Callable[[], Awaitable[Reply]], status: int) -> Reply:
    """The first answer with this status: a policy takes effect when the watch brings it."""

    async def asked() -> Reply | None:
        reply = await ask()
        return reply if reply.status == status else None

    found = await eventually(asked)
    assert isinstance(found, Reply)
    return found


def cm(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_what_a_policy_denies_is_not_written_and_says_whose_word_it_was() -> None:
    async with api() as (h, _):
        await h.created(
            POLICY_PATH, policy("no-red", ["configmaps"], "!has(object.data) || object.data.colour != 'red'")
        )
        await h.created(BINDING_PATH, binding("no-red"))
        denied = await until_status(lambda: h.post(MAPS + "?dryRun=All", cm("a", colour="red")), 422)
        assert denied.message == (
            "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'no-red' with binding 'no-red' denied request: "
            "no-red says no"
        )
        assert (await h.post(MAPS, cm("a", colour="red"))).status == 422
        assert (await h.get(f"{MAPS}/a")).status == 404
        await h.created(MAPS, cm("a", colour="blue"))
        red = await h.call(
            "PATCH", f"{MAPS}/a", {"data": {"colour": "red"}}, content_type="application/merge-patch+json"
        )
        assert red.status == 422
        assert (await h.call("PUT", f"{MAPS}/a", cm("a", colour="red"))).status == 422
        assert (await h.get(f"{MAPS}/a")).json["data"] == {"colour": "blue"}
        assert (await h.call("DELETE", f"{POLICY_PATH}/no-red")).status == 200
        await until_status(lambda: h.call("PUT", f"{MAPS}/a", cm("a", colour="red")), 200)


async def test_deletes_are_judged_by_what_is_deleted() -> None:
    async with api() as (h, _):
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["DELETE"],
            "resources": ["configmaps"],
        }
        keep = policy(
            "keep",
            ["x"],
            "oldObject.data.keep != 'yes' && object == null",
            matchConstraints={"resourceRules": [rule]},
        )
        await h.created(POLICY_PATH, keep)
        await h.created(BINDING_PATH, binding("keep"))
        await h.created(MAPS, cm("kept", keep="yes"))
        await h.created(MAPS, cm("gone", keep="no"))
        await until_status(lambda: h.call("DELETE", f"{MAPS}/kept", params={"dryRun": "All"}), 422)
        assert (await h.call("DELETE", f"{MAPS}/kept")).status == 422
        assert (await h.call("DELETE", f"{MAPS}/gone")).status == 200
        assert (await h.get(f"{MAPS}/kept")).status == 200


async def test_a_warning_is_shown_and_the_write_goes_through() -> None:
    async with api() as (h, _):
        await h.created(POLICY_PATH, policy("hint", ["configmaps"], "false"))
        await h.created(BINDING_PATH, binding("hint", validationActions=["Warn", "Audit"]))

        async def warned() -> list[str]:
            reply = await h.post(MAPS + "?dryRun=All", cm("a"))
            assert reply.status == 201
            return reply.warnings

        assert any("hint says no" in w for w in await eventually(warned))


async def test_params_come_from_a_configmap_and_follow_its_changes() -> None:
    async with api() as (h, _):
        await h.created(
            POLICY_PATH,
            policy("limit", ["configmaps"], "!has(object.data.n) || int(object.data.n) <= int(params.data.max)", paramKind={"apiVersion": "v1", "kind": "ConfigMap"}),
        )  # fmt: skip
        ref = {"name": "limits", "parameterNotFoundAction": "Deny"}
        await h.created(BINDING_PATH, binding("limit", paramRef=ref, matchResources={"objectSelector": {"matchExpressions": [{"key": "params", "operator": "DoesNotExist"}]}}))  # fmt: skip
        missing = await until_status(lambda: h.post(MAPS + "?dryRun=All", cm("a", n="1")), 422)
        assert "no params found" in missing.message
        limits = cm("limits", max="5")
        limits["metadata"]["labels"] = {"params": "yes"}
        await h.created(MAPS, limits)
        await until_status(lambda: h.post(MAPS + "?dryRun=All", cm("a", n="5")), 201)
        assert (await h.post(MAPS, cm("a", n="6"))).status == 422
        limits["data"]["max"] = "6"
        assert (await h.call("PUT", f"{MAPS}/limits", limits)).status == 200
        await until_status(lambda: h.post(MAPS, cm("a", n="6")), 201)


async def test_expressions_see_the_user_and_policies_cannot_lock_out_whoever_repairs_them() -> None:
    async with api() as (h, _):
        await h.created(
            POLICY_PATH, policy("nobody", ["*", "*/*"], "request.userInfo.username == 'somebody else'")
        )
        await h.created(BINDING_PATH, binding("nobody"))
        await until_status(lambda: h.post(MAPS + "?dryRun=All", cm("a")), 422)
        assert (await h.call("DELETE", f"{BINDING_PATH}/nobody")).status == 200
        await until_status(lambda: h.post(MAPS, cm("a")), 201)


@pytest.mark.parametrize(
    "change", [{"validationz": []}, {"failurePolicy": "Maybe"}, {"validations": [{"expression": "1 +"}]}]
)
async def test_a_policy_that_is_not_understood_is_never_stored(change: dict[str, Any]) -> None:
    async with api() as (h, _):
        wrong = policy("wrong", ["pods"], "true", **change)
        reply = await h.post(POLICY_PATH, wrong, params={"fieldValidation": "Ignore"})
        assert reply.status in (400, 422), reply.body
        assert (await h.get(POLICY_PATH)).json["items"] == []


# -- what edges write


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


@contextlib.asynccontextmanager
async def edges(pki: Pki, *made: dict[str, Any]) -> AsyncIterator[EdgeHub]:
    """A hub whose store held these policies, and bindings of the same names, before it started."""
    store = MemoryStore(slots=16)
    registry = Registry(store, Keys())
    for one in made:
        await registry.create(POLICIES, one)
        await registry.create(POLICY_BINDINGS, binding(one["metadata"]["name"]))
    async with following(store) as policies, edge_hub(pki, store, policies=policies) as h:
        yield h


async def test_a_report_that_a_policy_denies_is_refused_for_good_and_the_next_one_is_taken(pki: Pki) -> None:
    rule = policy(
        "honest", ["pods/status"],
        "request.userInfo.username == 'system:node:edge-1' && object.status.phase != 'Failed' && oldObject.kind == 'Pod'",
    )  # fmt: skip
    async with edges(pki, rule) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
        key = next(iter(edge.docs))
        denied = edge.report("pod", key, {**running_status(), "phase": "Failed"})
        await until(lambda: denied in edge.stored)
        assert edge.stored[denied].startswith("Invalid: ") and "honest" in edge.stored[denied]
        found = await h.pod("p")
        assert found is not None and found["status"]["phase"] == "Pending"
        taken = edge.report("pod", key, running_status())
        await until(lambda: taken in edge.stored)
        found = await h.pod("p")
        assert edge.stored[taken] == "" and found is not None and found["status"]["phase"] == "Running"


async def test_a_denied_node_report_leaves_what_the_hub_itself_finds_about_the_node(pki: Pki) -> None:
    rule = policy(
        "cpu", ["nodes/status"], "!has(object.status.capacity) || object.status.capacity.cpu != '4000'"
    )
    async with edges(pki, rule) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        lie = edge.report("node", "node", {"capacity": {"cpu": "4000"}})
        await until(lambda: lie in edge.stored)
        assert "cpu says no" in edge.stored[lie]
        ready = await h.condition("edge-1", "Ready")
        node = await h.node("edge-1")
        assert ready is not None and ready["status"] == "True" and "capacity" not in node["status"]
        truth = edge.report("node", "node", {"capacity": {"cpu": "4"}})
        await until(lambda: edge.stored.get(truth) == "")
        assert (await h.node("edge-1"))["status"]["capacity"] == {"cpu": "4"}


async def test_events_and_the_end_of_pods_pass_policies_too(pki: Pki) -> None:
    quiet = policy("quiet", ["events"], "object.reason != 'Noise'")
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["pods"]}
    keep = policy(
        "keep", [], "!(has(oldObject.metadata.labels.keep))", matchConstraints={"resourceRules": [rule]}
    )
    async with edges(pki, quiet, keep) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        noise = edge.report("event", "node", {"reason": "Noise", "message": "m"})
        word = edge.report("event", "node", {"reason": "Word", "message": "m"})
        await until(lambda: {noise, word} <= edge.stored.keys())
        assert "quiet says no" in edge.stored[noise] and edge.stored[word] == ""
        events = [s.obj()["reason"] for s in (await h.registry.page(EVENTS)).items]
        assert events == ["Word"]
        kept = pod("p", "edge-1")
        kept["metadata"].update(
            labels={"keep": "yes"}, deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=1
        )
        await h.create(PODS, kept)
        await until(lambda: len(edge.docs) == 1)
        gone = edge.report("gone", next(iter(edge.docs)), {})
        await until(lambda: gone in edge.stored)
        assert "keep says no" in edge.stored[gone] and await h.pod("p") is not None


async def test_kinds_that_no_policy_names_cost_edges_nothing(pki: Pki) -> None:
    async with edges(pki, policy("maps", ["configmaps"], "false")) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        number = edge.report("node", "node", {"capacity": {"cpu": "4"}})
        await until(lambda: edge.stored.get(number) == "")
        await h.create(CONFIGMAPS, configmap("free", a="b"))  # the hub's own writes are judged by nobody
        assert (await h.registry.get(NODES, "", "edge-1")).obj()["status"]["capacity"] == {"cpu": "4"}
