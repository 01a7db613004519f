"""Tokens of service accounts from a real API server: issued for a pod, known to the server, void with the pod."""

import os
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from hub import errors
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.tokenrequest import Issuer
from hub.tokens import Wanted
from tests.hub.hub_fixture import eventually
from tests.servers.kubernetes import KubeCluster

WAIT_S = 60.0


@pytest.fixture
async def api(kubernetes: KubeCluster) -> AsyncIterator[KubeClient]:
    config = KubeConfig.from_file(kubernetes.kubeconfig_of("token-tests", "system:masters"))
    async with KubeClient(config) as made:
        yield made


async def review(api: KubeClient, token: str, audience: str) -> dict[str, Any]:
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience] if audience else []},
    }
    _, answer = await api.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
    status: dict[str, Any] = orjson.loads(answer)["status"]
    return status


async def test_a_token_is_good_for_its_pod_and_audience_and_ends_with_the_pod(api: KubeClient) -> None:
    namespace = f"tokens-{os.urandom(4).hex()}"
    base = f"/api/v1/namespaces/{namespace}"
    await api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})
    try:
        await api.request("POST", f"{base}/serviceaccounts", body={"metadata": {"name": "till"}})
        spec = {
            "serviceAccountName": "till",
            "nodeName": "edge-1",
            "containers": [{"name": "main", "image": "none"}],
        }
        _, made = await api.request("POST", f"{base}/pods", body={"metadata": {"name": "p"}, "spec": spec})
        uid = orjson.loads(made)["metadata"]["uid"]
        issuer = Issuer(api.request)
        for audience in ("", "bank"):
            began = time.time()
            token = await issuer(Wanted(namespace, "till", "p", uid, audience, 3600))
            assert began + 3000 < token.until
            found = await review(api, token.text, audience)
            assert found["authenticated"]
            user = found["user"]
            assert user["username"] == f"system:serviceaccount:{namespace}:till"
            assert user["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
        assert not (await review(api, token.text, "shop")).get("authenticated")
        with pytest.raises(errors.ApiError, match="no-such"):
            await issuer(Wanted(namespace, "no-such", "p", uid, "", 3600))
        with pytest.raises(errors.ApiError):
            await issuer(Wanted(namespace, "till", "p", "another-uid", "", 3600))
        await api.request("DELETE", f"{base}/pods/p", query={"gracePeriodSeconds": 0})

        async def void() -> bool:  # the server remembers reviews for some seconds
            return not (await review(api, token.text, "bank")).get("authenticated")

        await eventually(void, WAIT_S)
    finally:
        await api.request("DELETE", f"/api/v1/namespaces/{namespace}")
