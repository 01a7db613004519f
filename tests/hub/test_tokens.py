"""Tokens of service accounts, from a node's question to its answer, over real mTLS with a simulated node."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edgelite.tokens import fault, token_key
from hub import errors
from hub.access.keys import open_shared
from hub.access.podtokens import PodTokens
from hub.access.roles import Roles
from hub.access.tokens import Tokens as AccessTokens
from hub.kubernetes.tokenrequest import Issuer
from hub.objects import PODS, SERVICEACCOUNTS
from hub.tokens import Token, Wanted, wanted_of
from security.jwt import TokenError
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, pod, until
from tests.sim.fleet import SimNode

VOLUMES = [
    {"name": "plain", "emptyDir": {}},
    {
        "name": "access",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "ca"}},
                {"serviceAccountToken": {"path": "bank", "audience": "bank", "expirationSeconds": 600}},
            ]
        },
    },
]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Issued:
    """An issuer that says yes, or `failure`."""

    def __init__(self) -> None:
        self.asked: list[Wanted] = []
        self.failure: errors.ApiError | None = None

    async def __call__(self, wanted: Wanted) -> Token:
        self.asked.append(wanted)
        if self.failure is not None:
            raise self.failure
        return Token(f"token-for-{wanted.audience or 'api'}", 4e9)


async def placed(h: Hub) -> tuple[SimNode, Issued, str]:
    """A connected node with a pod that wants two tokens: (node, issuer, the pod's key)."""
    issuer = h.gateway.tokens.issue = Issued()
    edge = await h.enrol("edge-1")
    await h.connect(edge)
    await h.create(PODS, pod("shop", "edge-1", "uid-1", volumes=VOLUMES, serviceAccountName="till"))
    key = "pod/default/shop/uid-1"
    await until(lambda: key in edge.docs)
    return edge, issuer, key


async def test_a_node_gets_the_tokens_that_its_pod_asks_for(pki: Pki) -> None:
    async with hub(pki) as h:
        edge, issuer, key = await placed(h)
        n = edge.report("token", key, {"want": [["access", 0], ["access", 2]]})
        await until(lambda: edge.stored.get(n) == "")
        assert issuer.asked == [
            Wanted("default", "till", "shop", "uid-1", "", 3607),
            Wanted("default", "till", "shop", "uid-1", "bank", 600),
        ]
        for audience, seconds in (("", 3607), ("bank", 600)):
            at = token_key("uid-1", audience, seconds)
            body = edge.bodies[at]
            assert fault(at, body) is None
            assert json.loads(body)["token"] == f"token-for-{audience or 'api'}"


async def test_tokens_are_no_part_of_what_the_hub_takes_for_desired(pki: Pki) -> None:
    async with hub(pki) as h:
        edge, _, key = await placed(h)
        edge.report("token", key, {"want": [["access", 0]]})
        await until(lambda: any(k.startswith("token/") for k in edge.docs))
        assert list(h.gateway.desired.of("edge-1")) == ["configmap/default/ca", key][1:]


@pytest.mark.parametrize(
    ("want", "told"),
    [
        ([["access", 1]], "no token"),
        ([["access", 9]], "no token"),
        ([["plain", 0]], "no token"),
        ([["access"]], "malformed"),
        ([["access", 0]] * 100, "malformed"),
        ("all", "malformed"),
    ],
)
async def test_what_the_pod_does_not_ask_for_is_refused(pki: Pki, want: Any, told: str) -> None:
    async with hub(pki) as h:
        edge, issuer, key = await placed(h)
        n = edge.report("token", key, {"want": want})
        await until(lambda: n in edge.stored)
        assert told in edge.stored[n]
        assert issuer.asked == []


async def test_a_node_gets_no_token_of_another_nodes_pod(pki: Pki) -> None:
    async with hub(pki) as h:
        _, issuer, key = await placed(h)
        other = await h.enrol("edge-2")
        await h.connect(other)
        n = other.report("token", key, {"want": [["access", 0]]})
        await until(lambda: n in other.stored)
        assert other.stored[n] == "obsolete"
        assert issuer.asked == [] and other.docs == {}


async def test_a_refusal_of_the_api_server_is_told_to_the_node(pki: Pki) -> None:
    async with hub(pki) as h:
        edge, issuer, key = await placed(h)
        issuer.failure = errors.NotFound("serviceaccounts", "till")
        n = edge.report("token", key, {"want": [["access", 0]]})
        await until(lambda: n in edge.stored)
        assert "till" in edge.stored[n]
        h.gateway.tokens.issue = None
        n = edge.report("token", key, {"want": [["access", 0]]})
        await until(lambda: n in edge.stored)
        assert "nothing issues tokens" in edge.stored[n]


async def test_the_hubs_own_tokens_are_bound_to_the_pod_and_renewed(pki: Pki) -> None:
    async with hub(pki) as h, AsyncExitStack() as stack:
        roles = Roles(h.store, h.registry.keys)
        stack.push_async_callback(ended, asyncio.create_task(roles.run()))
        await roles.synced()
        keys = await open_shared(h.store, h.registry.keys.root, lambda: b"k" * 32)
        tokens = AccessTokens(keys, h.registry, roles, "cloudhub.local")
        edge, _, key = await placed(h)
        h.gateway.tokens.issue = PodTokens(tokens, time.time)
        refused = edge.report("token", key, {"want": [["access", 0]]})
        await until(lambda: refused in edge.stored)
        assert 'serviceaccounts "till" not found' in edge.stored[refused], "the account is not there yet"
        await h.create(SERVICEACCOUNTS, {"metadata": {"name": "till", "namespace": "default"}})
        texts = []
        for _ in range(2):
            n = edge.report("token", key, {"want": [["access", 0], ["access", 2]]})
            await until(lambda n=n: edge.stored.get(n) == "")
            document = json.loads(edge.bodies[token_key("uid-1", "", 3607)])
            texts.append(document["token"])
            assert 3600 < document["until"] - document["from"] <= 3607
        assert texts[0] != texts[1], "what is asked for again is another token"
        now = time.time()
        for text in texts:
            user, _ = await tokens.user(text, now)
            assert user.name == "system:serviceaccount:default:till"
            assert ("authentication.kubernetes.io/pod-uid", ("uid-1",)) in user.extra
        bank = json.loads(edge.bodies[token_key("uid-1", "bank", 600)])["token"]
        assert (await tokens.user(bank, now, ["bank"]))[1] == ["bank"]
        with pytest.raises(TokenError, match="another audience"):
            await tokens.user(bank, now)
        # One of the same name that was made anew is another pod.
        await h.registry.remove(PODS, await h.registry.get(PODS, "default", "shop"))
        await h.create(PODS, pod("shop", "edge-1", "uid-2", volumes=VOLUMES, serviceAccountName="till"))
        tokens = AccessTokens(keys, h.registry, roles, "cloudhub.local")
        for text in texts:
            with pytest.raises(TokenError, match="bound to is gone"):
                await tokens.user(text, now)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_default_service_account_stands_for_none() -> None:
    found = {"metadata": {"namespace": "n", "name": "p", "uid": "u"}, "spec": {"volumes": VOLUMES}}
    assert wanted_of(found, "access", 0).service_account == "default"


async def test_a_token_request_binds_the_token_to_its_pod() -> None:
    asked: list[Any] = []

    async def request(method: str, path: str, *, body: bytes) -> tuple[int, bytes]:
        asked.append((method, path, json.loads(body)))
        return (
            201,
            b'{"kind":"TokenRequest","status":{"token":"t","expirationTimestamp":"2030-01-01T00:00:00Z"}}',
        )

    token = await Issuer(request)(Wanted("shop", "till", "p", "u", "bank", 600))
    assert token == Token("t", 1893456000.0)
    ((method, path, body),) = asked
    assert (method, path) == ("POST", "/api/v1/namespaces/shop/serviceaccounts/till/token")
    assert body["spec"] == {
        "audiences": ["bank"],
        "expirationSeconds": 600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"},
    }


async def test_an_answer_that_is_no_token_is_an_error() -> None:
    async def request(method: str, path: str, *, body: bytes) -> tuple[int, bytes]:
        return 201, b'{"status":{}}'

    with pytest.raises(errors.InternalError, match="TokenRequest"):
        await Issuer(request)(Wanted("shop", "till", "p", "u", "", 600))
