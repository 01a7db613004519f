"""Join tokens where a Kubernetes API server keeps them: made by the command line, which so alone sees their text.

What a token pins, the trust domain and the root of the fleet's authority, is public: the hub publishes it in the
ConfigMap `kube-public/cloudhub`, where Kubernetes itself keeps what joining machines have to know. Whoever may write
that ConfigMap decides what the tokens pin that are made afterwards, so its writers are the hub and administrators.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hub import errors, jointokens
from hub.kubernetes.patches import MERGE_PATCH, path_of
from hub.kubernetes.registry import Api
from hub.kubernetes.tokens import new_token
from hub.objects import CONFIGMAPS, JOINTOKENS
from security import join

log = logging.getLogger(__name__)

Object = dict[str, Any]

NAMESPACE: Final = "kube-public"
NAME: Final = "cloudhub"
TRUST_DOMAIN: Final = "trust-domain"
ROOT: Final = "root.pem"
PUBLISH_S: Final = 600.0
PUBLISH_RETRY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Trust:
    """What tokens pin. `root_pem`: the certificate of the fleet's authority."""

    trust_domain: str
    root_pem: str

    @property
    def root_sha256(self) -> bytes:
        """Of the root's DER. Raises ValueError when it is no certificate."""
        der = x509.load_pem_x509_certificate(self.root_pem.encode()).public_bytes(Encoding.DER)
        return hashlib.sha256(der).digest()


async def publish(api: Api, trust: Trust) -> None:
    """Writes the ConfigMap, unless it says so already. Raises ApiError."""
    data = {TRUST_DOMAIN: trust.trust_domain, ROOT: trust.root_pem}
    path = path_of(CONFIGMAPS, NAMESPACE, NAME)
    try:
        _, raw = await api.request("GET", path)
        held = orjson.loads(raw)
        if held.get("data") != data:
            meta = {field: held["metadata"][field] for field in ("uid", "resourceVersion")}
            await api.request("PATCH", path, body={"metadata": meta, "data": data}, content_type=MERGE_PATCH)
    except errors.NotFound:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": data,
        }
        try:
            await api.request("POST", path_of(CONFIGMAPS, NAMESPACE), body=body)
        except errors.AlreadyExists:
            pass  # another replica, which says the same


async def keep_published(api: Api, trust: Callable[[], Trust]) -> None:
    """Publishes now, whenever `trust` says something else (looked at every PUBLISH_RETRY_S), and every so often, for ever:
    tokens cannot be made while somebody has taken it away."""
    said: Trust | None = None
    again_at = 0.0
    now = asyncio.get_running_loop().time
    while True:
        wanted = trust()
        if wanted != said or now() >= again_at:
            try:
                await publish(api, wanted)
                said, again_at = wanted, now() + PUBLISH_S
            except errors.ApiError as failure:
                log.warning(
                    "what join tokens pin cannot be published in %s/%s: %s", NAMESPACE, NAME, failure.message
                )
        await asyncio.sleep(PUBLISH_RETRY_S)


async def published(api: Api) -> Trust:
    """What the hub has published. Raises ApiError; NotFound says what to do."""
    try:
        _, raw = await api.request("GET", path_of(CONFIGMAPS, NAMESPACE, NAME))
        data = orjson.loads(raw)["data"]
        return Trust(data[TRUST_DOMAIN], data[ROOT])
    except errors.NotFound:
        raise _not_published("is missing") from None
    except KeyError as missing:
        raise _not_published(f"lacks {missing}") from missing


async def create_token(api: Api, spec: Mapping[str, Any], trust: Trust) -> tuple[str, str]:
    """Makes a JoinToken from `spec` (as of hub.api.own_types); the token's text, and when it ends (RFC 3339). `trust`: what
    was published. Raises ApiError."""
    try:
        request = jointokens.request(spec, trust.trust_domain, trust.root_sha256)
        record, text = join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
    except join.TokenRequestError as wrong:
        raise errors.BadRequest(str(wrong)) from wrong
    except ValueError as wrong:
        raise _not_published(f"has no certificate in {ROOT}: {wrong}") from wrong
    token = new_token(spec, record)
    try:
        _, raw = await api.request("POST", path_of(JOINTOKENS, ""), body=token)
    except errors.NotFound:
        raise errors.NotFound(
            JOINTOKENS.resource,
            "",
            message="the cluster has no JoinTokens: install the chart's CustomResourceDefinitions",
        ) from None
    kept = orjson.loads(raw)["spec"].get("record", {})
    if any(kept.get(demand) != record.get(demand) for demand in ("replace", "approval")):
        # The definition of an older chart drops what it does not know, and the token would admit more than it should.
        await api.request("DELETE", path_of(JOINTOKENS, "", record["id"]))
        raise errors.BadRequest(
            "the cluster's JoinTokens know neither replace nor approval: upgrade the chart's CustomResourceDefinitions"
        )
    return text, str(token["spec"]["expires"])


def _not_published(what: str) -> errors.NotFound:
    text = f"the ConfigMap {NAMESPACE}/{NAME} {what}: is a hub with `source: kubernetes` running in this cluster?"
    return errors.NotFound(CONFIGMAPS.resource, NAME, message=text)
