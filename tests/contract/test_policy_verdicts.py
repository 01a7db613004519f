"""The same policies in this hub and in a real API server: what one denies the other denies, in the same words."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hub.objects import Keys
from hub.policies.watching import Policies
from hub.store.memory import MemoryStore
from tests.hub import serving
from tests.hub.hub_fixture import eventually
from tests.servers.kubernetes import ApiError, KubeCluster

Object = dict[str, Any]
Ask = Callable[[str, str, Object], Awaitable[tuple[int, Object]]]
"""(method, path, body) to (code, answer)."""

GROUP = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
BAD, GOOD = {"colour": "red", "n": "9"}, {"colour": "blue", "n": "1"}
CASES: dict[str, Object] = {
    "message": {"validations": [{"expression": "object.data.colour != 'red'", "message": "no red"}]},
    "expression": {"validations": [{"expression": "  int(object.data.n) < 5 "}]},
    "words": {"validations": [{"expression": "int(object.data.n) < 5", "messageExpression": "'%s is too many'.format([object.data.n])"}]},
    "forbidden": {"validations": [{"expression": "object.data.colour != 'red'", "message": "m", "reason": "Forbidden"}]},
    "too large": {"validations": [{"expression": "object.data.colour != 'red'", "message": "m", "reason": "RequestEntityTooLarge"}]},
    "variables": {
        "variables": [{"name": "c", "expression": "object.data.colour"}, {"name": "long", "expression": "size(variables.c) == 3"}],
        "validations": [{"expression": "!variables.long", "message": "short"}],
    },
    "conditions": {
        "matchConditions": [{"name": "red", "expression": "object.data.colour == 'red'"}],
        "validations": [{"expression": "false", "message": "red alone"}],
    },
    "request": {
        "validations": [{
            "expression": "object.data.n != '9' || request.operation != 'CREATE' || request.namespace != 'default' || request.resource.resource != 'configmaps' || has(request.subResource) || oldObject != null",
            "message": "as asked",
        }]
    },
    "strings": {"validations": [{"expression": "object.data.colour.upperAscii().replace('R', 'B') != 'BED'", "message": "m"}]},
    "namespace": {"validations": [{"expression": "namespaceObject.metadata.name != 'default' || object.data.n == '1'", "message": "m"}]},
}  # fmt: skip


def policy(name: str, mark: str, spec: Object) -> tuple[Object, Object]:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["configmaps"],
    }
    match = {"resourceRules": [rule], "objectSelector": {"matchLabels": {"case": name}}}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": f"{name}-{mark}"}}
    made = {**api, "kind": "ValidatingAdmissionPolicy", "spec": {"matchConstraints": match, **spec}}
    bound = {"policyName": f"{name}-{mark}", "validationActions": ["Deny"]}
    return made, {**api, "kind": "ValidatingAdmissionPolicyBinding", "spec": bound}


async def verdicts(ask: Ask) -> dict[str, tuple[int, str]]:
    """(code, message, causes and reason) of what each case denies; what it allows has to go through."""
    mark = secrets.token_hex(4)
    made: list[tuple[str, Object]] = []
    found: dict[str, tuple[int, str]] = {}
    try:
        for title, spec in CASES.items():
            name = title.replace(" ", "-")
            for plural, body in zip(("policies", "policybindings"), policy(name, mark, spec), strict=True):
                path = f"{GROUP}/validatingadmission{plural}"
                code, answer = await ask("POST", path, body)
                assert code == 201, answer
                made.append((path, body))
        for title in CASES:
            name = title.replace(" ", "-")
            meta = {"name": "verdict", "labels": {"case": name}}

            async def denied(meta: Object = meta) -> tuple[int, Object] | None:
                code, answer = await ask("POST", MAPS + "?dryRun=All", {"metadata": meta, "data": BAD})
                return (code, answer) if code != 201 else None

            code, answer = await eventually(denied)
            told = (answer["message"], answer["details"]["causes"], answer["reason"])
            found[title] = (code, json.dumps(told).replace(f"-{mark}", ""))
            code, answer = await ask("POST", MAPS + "?dryRun=All", {"metadata": meta, "data": GOOD})
            assert code == 201, (title, answer)
    finally:
        for path, body in made:
            await ask("DELETE", f"{path}/{body['metadata']['name']}", {})
    return found


@contextlib.asynccontextmanager
async def own() -> AsyncIterator[Ask]:
    store = MemoryStore(slots=16)
    policies = Policies(store, Keys())
    running = asyncio.create_task(policies.run())
    await policies.synced()
    try:
        async with serving.hub(store=store, policies=policies) as h:

            async def ask(method: str, path: str, body: Object) -> tuple[int, Object]:
                reply = await h.call(method, path, body or None)
                return reply.status, reply.json

            yield ask
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def of_cluster(cluster: KubeCluster) -> Ask:
    def ask(method: str, path: str, body: Object) -> tuple[int, Object]:
        try:
            return {"POST": 201}.get(method, 200), cluster.api(method, path, body or None)
        except ApiError as failure:
            return failure.code, failure.status

    async def threaded(method: str, path: str, body: Object) -> tuple[int, Object]:
        return await asyncio.to_thread(ask, method, path, body)

    return threaded


async def test_this_hub_denies_what_a_real_api_server_denies_in_the_same_words(
    kubernetes: KubeCluster,
) -> None:
    async with own() as ask:
        ours = await verdicts(ask)
    theirs = await verdicts(of_cluster(kubernetes))
    assert ours == theirs
