"""The admission webhook that the hub serves: pods that ask for edge nodes are made to stay there while a link is down (I8).

The API server asks for pods as they are created, and by the conditions of `configuration` only for those that name a node
or ask for the edge's label; `tolerations` says what they get. It is asked with failurePolicy Ignore: without a hub pods
are created as ever, and the owner of their node's slot makes up for it. Nobody has to prove who asks: an answer says
nothing but which tolerations the pod in the question lacks.

Bounds: bodies of BODY_BYTES_MAX, REVIEWS_AT_ONCE under way; more are told to come back, which the API server ignores.

Source: the AdmissionReview API (admission.k8s.io/v1), "Dynamic Admission Control".
"""

import asyncio
import base64
import ssl
from collections.abc import Callable
from typing import Any, Final

import orjson
from aiohttp import web

from hub import errors
from hub.kubernetes.nodes import EDGE
from hub.kubernetes.patches import MERGE_PATCH
from hub.kubernetes.registry import Api
from hub.kubernetes.tolerations import DEFAULT_S, selects_edge, tolerate

Object = dict[str, Any]

PATH: Final = "/admission/pods"
NAME: Final = "edge-tolerations.cloudhub.dev"
BODY_BYTES_MAX: Final = 8 << 20
"""A pod may have 1.5 MB, and the question holds it once more as it was."""
REVIEWS_AT_ONCE: Final = 64
TIMEOUT_S: Final = 5
READ_S: Final = 10.0
_ASKED: Final = (
    "(has(object.spec.nodeName) && object.spec.nodeName != '')"
    f" || (has(object.spec.nodeSelector) && '{EDGE}' in object.spec.nodeSelector)"
    " || (has(object.spec.affinity) && has(object.spec.affinity.nodeAffinity)"
    " && has(object.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution))"
)


def configuration(client_config: Object, name: str = NAME) -> Object:
    """The MutatingWebhookConfiguration. `client_config`: a WebhookClientConfig, with `service` or `url`, and `caBundle`."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": NAME,
                "clientConfig": client_config,
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ],
                "matchConditions": [{"name": "may-run-at-the-edge", "expression": _ASKED}],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "reinvocationPolicy": "IfNeeded",
                "timeoutSeconds": TIMEOUT_S,
            }
        ],
    }


async def publish_roots(api: Api, roots_pem: str, name: str = NAME) -> bool:
    """Has the API server verify this hub's certificate by these roots, where somebody has registered the webhook; False
    where nobody has. Raises ApiError."""
    path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
    bundle = base64.b64encode(roots_pem.encode()).decode()
    try:
        _, raw = await api.request("GET", path)
        held: Object = orjson.loads(raw)
        if all(hook["clientConfig"].get("caBundle") == bundle for hook in held["webhooks"]):
            return True
        hooks = [{**h, "clientConfig": {**h["clientConfig"], "caBundle": bundle}} for h in held["webhooks"]]
        body = {
            "metadata": {"resourceVersion": held["metadata"]["resourceVersion"]},
            "webhooks": hooks,
        }
        await api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    except errors.NotFound:
        return False
    return True


def review(question: Any, is_edge: Callable[[str], bool], default_s: int = DEFAULT_S) -> Object:
    """The answer to an AdmissionReview about a Pod; the pod is allowed in any case. `is_edge(node)`: is it an edge node, as
    far as is known here. Raises BadRequest."""
    try:
        request = question["request"]
        uid, spec = request["uid"], request["object"]["spec"]
        concerned = is_edge(spec["nodeName"]) if spec.get("nodeName") else selects_edge(spec)
        wanted = tolerate(spec.get("tolerations") or [], default_s) if concerned else None
    except (KeyError, TypeError, AttributeError) as wrong:
        raise errors.BadRequest(f"this is no AdmissionReview of a Pod: {wrong!r}") from wrong
    response: Object = {"uid": uid, "allowed": True}
    if wanted is not None:
        patch = [{"op": "add", "path": "/spec/tolerations", "value": wanted}]
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(patch)).decode()
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


class Webhook:
    """Serves PATH over TLS. `start` returns the address, `stop` ends it."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        is_edge: Callable[[str], bool],
        *,
        host: str = "0.0.0.0",  # noqa: S104 - the API server is elsewhere
        port: int = 0,
        default_s: int = DEFAULT_S,
    ) -> None:
        self.reviews = 0
        self.patched = 0
        self._tls, self._is_edge = tls, is_edge
        self._host, self._port = host, port
        self._default_s = default_s
        self._under_way = 0
        self._runner: web.AppRunner | None = None

    def routes(self) -> list[web.RouteDef]:
        """For a server that has others as well; its `client_max_size` has to be at least BODY_BYTES_MAX."""
        return [web.post(PATH, self._answer)]

    async def start(self) -> tuple[str, int]:
        """Raises OSError."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def stop(self) -> None:
        if self._runner is None:
            return
        server = self._runner.server
        transports = [connection.transport for connection in server.connections] if server is not None else []
        await self._runner.cleanup()
        # An API server keeps idle connections, and would be waited for to end TLS in order.
        for transport in transports:
            if transport is not None:
                transport.abort()

    async def _answer(self, request: web.Request) -> web.Response:
        if self._under_way >= REVIEWS_AT_ONCE:
            return _refusal(errors.TooManyRequests())
        self._under_way += 1
        try:
            async with asyncio.timeout(READ_S):
                body = await request.read()
            answer = review(orjson.loads(body), self._is_edge, self._default_s)
        except TimeoutError:
            return _refusal(errors.Timeout(f"the question did not come within {READ_S:g} s"))
        except orjson.JSONDecodeError as wrong:
            return _refusal(errors.BadRequest(f"this is no JSON: {wrong}"))
        except errors.BadRequest as wrong:
            return _refusal(wrong)
        finally:
            self._under_way -= 1
        self.reviews += 1
        self.patched += "patch" in answer["response"]
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _refusal(error: errors.ApiError) -> web.Response:
    return web.Response(status=error.code, body=orjson.dumps(error.status()), content_type="application/json")
