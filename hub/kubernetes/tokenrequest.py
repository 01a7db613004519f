"""Requests tokens of service accounts from an API server (TokenRequest, authentication.k8s.io/v1)."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec
import orjson

from hub import errors
from hub.tokens import Token, Wanted

Request = Callable[..., Awaitable[tuple[int, bytes]]]
"""`KubeClient.request`."""


class _Status(msgspec.Struct):
    token: str
    expirationTimestamp: datetime


class _Answer(msgspec.Struct):
    status: _Status


_decode = msgspec.json.Decoder(_Answer).decode


class Issuer:
    """`hub.tokens.Issue` over a Kubernetes client's `request`."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __call__(self, wanted: Wanted) -> Token:
        """Raises ApiError."""
        path = f"/api/v1/namespaces/{wanted.namespace}/serviceaccounts/{wanted.service_account}/token"
        spec: dict[str, Any] = {
            "audiences": [wanted.audience] if wanted.audience else [],
            "expirationSeconds": wanted.seconds,
            # Void when the pod goes, as a kubelet's.
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": wanted.pod, "uid": wanted.uid},
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        _, answer = await self._request("POST", path, body=orjson.dumps(body))
        try:
            status = _decode(answer).status
        except msgspec.MsgspecError as error:
            raise errors.InternalError(f"the API server's answer to a TokenRequest: {error}") from None
        return Token(status.token, status.expirationTimestamp.timestamp())
