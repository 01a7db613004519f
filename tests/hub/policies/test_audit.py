"""What policies find is in the audit log, as Kubernetes words it: of requests, and of what comes over the edge channel."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.access.auditlog import AuditFile, AuditLog
from hub.access.auditpolicy import parse
from hub.api.auditing import EDGE_URI, Auditor
from hub.objects import POLICIES, POLICY_BINDINGS
from hub.policies.watching import VALIDATION_FAILURE
from hub.store.memory import MemoryStore
from observability.metrics import Series
from tests.hub import serving
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import hub as edge_hub
from tests.hub.hub_fixture import until
from tests.hub.policies.test_writes import BINDING_PATH, MAPS, POLICY_PATH, binding, cm, following, policy

WANTED = parse(
    {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "resources": [{"resources": ["configmaps"]}]},
            {"level": "Request", "users": ["system:node:edge-1"]},
        ],
    }
)
ANNOTATED = {"auditAnnotations": [{"key": "colour", "valueExpression": "object.data.colour"}]}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    made = AuditLog(AuditFile(str(tmp_path / "audit.log")), Series(), Series())
    made.start()
    try:
        yield made
    finally:
        made.stop()


def events(log: AuditLog, tmp_path: Path) -> list[Any]:
    """All that was told until now."""
    log.stop()
    return [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]


async def test_what_the_action_audit_finds_is_an_annotation_of_the_requests_event(
    log: AuditLog, tmp_path: Path
) -> None:
    store = MemoryStore(slots=16)
    auditor = Auditor(WANTED, log)
    async with (
        following(store) as policies,
        serving.hub(store=store, policies=policies, auditor=auditor) as h,
    ):
        checks = [{"expression": "true"}, {"expression": "object.data.colour != 'red'", "message": "no red"}]
        await h.created(POLICY_PATH, policy("seen", ["configmaps"], "", validations=checks, **ANNOTATED))
        await h.created(BINDING_PATH, binding("seen", validationActions=["Audit"]))
        await h.created(POLICY_PATH, policy("not", ["configmaps"], "object.data.colour != 'grey'"))
        await h.created(BINDING_PATH, binding("not", validationActions=["Audit", "Deny"]))
        await until(lambda: len(policies._compiled) == 2, what="both are in force")
        await h.created(MAPS, cm("red", colour="red"))
        await h.created(MAPS, cm("blue", colour="blue"))
        assert (await h.post(MAPS, cm("grey", colour="grey"))).status == 422
    red, blue, grey = (e for e in events(log, tmp_path) if e["verb"] == "create")
    assert red["responseStatus"]["code"] == 201
    assert red["annotations"]["seen/colour"] == "red"
    assert json.loads(red["annotations"][VALIDATION_FAILURE]) == [
        {
            "message": "no red", "policy": "seen", "binding": "seen", "expressionIndex": 1,
            "validationActions": ["Audit"],
        }
    ]  # fmt: skip
    assert blue["annotations"]["seen/colour"] == "blue" and VALIDATION_FAILURE not in blue["annotations"]
    assert grey["responseStatus"]["code"] == 422 and "not says no" in grey["annotations"][VALIDATION_FAILURE]


async def test_what_a_node_writes_is_in_the_log_where_policies_have_something_to_say(
    log: AuditLog, tmp_path: Path
) -> None:
    store = MemoryStore(slots=16)
    pki = Pki(str(tmp_path))
    async with following(store) as policies, edge_hub(pki, store, policies=policies) as h:
        policies.audit = Auditor(WANTED, log).judged
        rule = "!has(object.status.capacity) || object.status.capacity.cpu != '%s'"
        for name, cpu, action in (("much", "4000", "Deny"), ("some", "400", "Audit")):
            await h.create(POLICIES, policy(name, ["nodes/status"], rule % cpu))
            await h.create(POLICY_BINDINGS, binding(name, validationActions=[action]))
        await until(lambda: len(policies._compiled) == 2, what="both are in force")
        edge, other = await h.enrol("edge-1"), await h.enrol("edge-2")
        for node, cpu in ((edge, "4000"), (edge, "400"), (edge, "4"), (other, "400")):
            if node.welcome is None:
                await h.connect(node)
            n = node.report("node", "node", {"capacity": {"cpu": cpu}})
            await until(lambda node=node, n=n: n in node.stored)
        assert (await h.node("edge-1"))["status"]["capacity"] == {"cpu": "4"}
    denied, seen = events(log, tmp_path)
    assert (denied["responseStatus"]["code"], seen["responseStatus"]["code"]) == (422, 200)
    assert "much says no" in denied["responseStatus"]["message"] and "annotations" not in denied
    assert json.loads(seen["annotations"][VALIDATION_FAILURE])[0]["policy"] == "some"
    for event in (denied, seen):
        assert event["user"]["username"] == "system:node:edge-1" and event["verb"] == "update"
        assert event["objectRef"] == {
            "resource": "nodes", "name": "edge-1", "apiVersion": "v1", "subresource": "status"
        }  # fmt: skip
        assert event["requestURI"] == EDGE_URI and event["stage"] == "ResponseComplete"
