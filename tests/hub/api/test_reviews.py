"""What users may ask about themselves."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hub.access.authorizer import AUTHENTICATED, NOBODY
from security.rbac import MASTERS, User
from tests.hub import serving
from tests.hub.serving import CONFIGMAPS, configmap

ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
ADMIN = User("admin", (MASTERS, AUTHENTICATED))
SOMEBODY = User("bob", ("dev", AUTHENTICATED))


def access(**spec: Any) -> Any:
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}


PODS = access(resourceAttributes={"verb": "create", "resource": "pods", "namespace": "default"})


@pytest.mark.parametrize(
    ("user", "question", "allowed", "reason"),
    [
        (ADMIN, PODS, True, None),
        (ADMIN, access(resourceAttributes={"verb": "*", "group": "*", "resource": "*"}), True, None),
        (ADMIN, access(nonResourceAttributes={"verb": "get", "path": "/metrics"}), True, None),
        (SOMEBODY, PODS, False, 'User "bob" cannot create resource "pods" in API group "" in the namespace "default"'),
        (SOMEBODY, access(resourceAttributes={}), False, "cannot"),
        (SOMEBODY, access(resourceAttributes={"verb": "get"}), False, "cannot"),
        (SOMEBODY, access(nonResourceAttributes={"verb": "get", "path": "/livez"}), True, None),
        (SOMEBODY, access(nonResourceAttributes={"verb": "get", "path": "/metrics"}), False, "/metrics"),
    ],
)  # fmt: skip
async def test_may_i_is_answered_as_the_request_itself_would_be(
    user: User, question: Any, allowed: bool, reason: str | None
) -> None:
    async with serving.hub(authenticator=lambda cert, now: user) as hub:
        reply = await hub.post(ACCESS, question)
        assert reply.status == 201, reply.body
        assert reply.json["spec"] == question["spec"]
        assert reply.json["status"]["allowed"] is allowed
        assert (reason or "") in reply.json["status"].get("reason", "")
        if question is PODS:
            made = await hub.post("/api/v1/namespaces/default/pods", serving.pod("a"))
            assert (made.status == 201) == allowed


async def test_who_am_i_names_user_and_groups() -> None:
    async with serving.hub(authenticator=lambda cert, now: SOMEBODY) as hub:
        reply = await hub.post(WHO, {})
        assert reply.json["kind"] == "SelfSubjectReview"
        assert reply.json["status"] == {"userInfo": {"username": "bob", "groups": ["dev", AUTHENTICATED]}}


async def test_what_may_i_lists_rules() -> None:
    async with serving.hub(authenticator=lambda cert, now: ADMIN) as hub:
        status = (await hub.post(RULES, {"spec": {"namespace": "default"}})).json["status"]
        assert status["resourceRules"] == [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    async with serving.hub(authenticator=lambda cert, now: SOMEBODY) as hub:
        status = (await hub.post(RULES, {"spec": {"namespace": "default"}})).json["status"]
        assert all(rule["verbs"] == ["create"] for rule in status["resourceRules"])
        assert any("/livez" in rule["nonResourceURLs"] for rule in status["nonResourceRules"])


async def test_a_question_may_come_in_protobuf() -> None:
    lines = (Path(__file__).with_name("protobuf_corpus.jsonl")).read_text().splitlines()
    line = next(x for x in map(json.loads, lines) if x["kind"] == "SelfSubjectReview")
    async with serving.hub(authenticator=lambda cert, now: ADMIN) as hub:
        body = base64.b64decode(line["protobuf"])
        reply = await hub.post(WHO, body, content_type="application/vnd.kubernetes.protobuf")
        assert reply.json["status"]["userInfo"]["username"] == "admin"


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        (ACCESS, access(), 422, "exactly one of nonResourceAttributes or resourceAttributes"),
        (ACCESS, access(resourceAttributes={}, nonResourceAttributes={}), 422, "exactly one of"),
        (ACCESS, access(resourceAttributes=1), 400, "cannot unmarshal number"),
        (ACCESS, {"kind": "Pod"}, 400, "does not match the expected kind"),
        (WHO, b"[]", 400, "cannot unmarshal array"),
    ],
)
async def test_a_malformed_question_is_refused(path: str, body: Any, code: int, words: str) -> None:
    async with serving.hub() as hub:
        reply = await hub.post(path, body)
        assert (reply.status, words in reply.message) == (code, True), reply.body


async def test_questions_are_only_posted_and_only_by_somebody() -> None:
    async with serving.hub() as hub:
        assert (await hub.get(WHO)).status == 405
    async with serving.hub(authenticator=lambda cert, now: NOBODY) as hub:
        assert (await hub.post(WHO, {})).status == 401


async def test_a_request_in_anothers_name_is_refused_without_the_right_and_does_nothing() -> None:
    async with serving.hub(authenticator=lambda cert, now: SOMEBODY) as hub:
        for header, value in (("Impersonate-User", "bob"), ("impersonate-user", "system:serviceaccount:a:b")):
            url = hub.url + CONFIGMAPS
            async with hub.http.post(url, json=configmap("a"), headers={header: value}) as reply:
                assert reply.status == 403
                assert "cannot impersonate" in (await reply.json())["message"]
    async with serving.hub() as hub:
        assert (await hub.get(CONFIGMAPS)).json["items"] == []
