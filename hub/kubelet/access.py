"""Who may use the kubelet's face, as a kubelet decides it: a certificate of the given authority, or a token that the API
server knows (TokenReview); then a right on the node that it concerns (SubjectAccessReview). Default deny; anonymous never.

Answers of the API server are kept for as long as a kubelet keeps them. Tokens are kept as hashes only, and never logged.

Sources: kubelet authentication and authorization; TokenReview and SubjectAccessReview of the Kubernetes API.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import orjson

from hub import errors
from hub.api import auth
from security.rbac import MASTERS

AUTHENTICATED_S: Final = 120.0
ALLOWED_S: Final = 300.0
DENIED_S: Final = 30.0
KEPT_MAX: Final = 1024
TOKEN_BYTES_MAX: Final = 16 << 10
REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Reviewer(Protocol):
    """Who is asked: `hub.kubernetes.client.KubeClient`."""

    async def request(self, method: str, path: str, *, body: Any = None) -> tuple[int, bytes]: ...


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    groups: tuple[str, ...]
    uid: str = ""
    extra: Mapping[str, list[str]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A right on nodes/<subresource>; `node` "" is every node."""

    verb: str
    node: str
    subresource: str


class Kept(Generic[K, V]):
    """What was learned, until it is too old; the least recently learned goes when there is too much."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None or found[0] <= self._now():
            return None
        return found[1]

    def put(self, key: K, value: V, seconds: float) -> None:
        self._kept[key] = (self._now() + seconds, value)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)


class Access:
    """See the module. `reviewer` None: there is no API server to ask, so only certificates of the group system:masters
    are let in."""

    def __init__(self, reviewer: Reviewer | None, now: Callable[[], float] = time.monotonic) -> None:
        self._reviewer = reviewer
        self._callers: Kept[bytes, Caller] = Kept(now)
        self._rights: Kept[tuple[Any, ...], bool] = Kept(now)

    async def caller(self, peercert: Mapping[str, Any] | None, authorization: str) -> Caller:
        """Who asks: `peercert` as verified under the authority, `authorization`: the header. Raises Unauthorized."""
        if peercert:
            user = auth.authenticate(peercert, time.time())
            return Caller(user.name, user.groups)
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX or self._reviewer is None:
            raise errors.Unauthorized()
        key = hashlib.sha256(token.encode()).digest()
        known = self._callers.get(key)
        if known is None:
            known = await self._review(token)
            self._callers.put(key, known, AUTHENTICATED_S)
        return known

    async def _review(self, token: str) -> Caller:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        status = await self._ask(REVIEWS, body)
        user = status.get("user") or {}
        if status.get("authenticated") is not True or not user.get("username"):
            raise errors.Unauthorized()
        groups = tuple(map(str, user.get("groups") or ()))
        return Caller(str(user["username"]), groups, str(user.get("uid") or ""), user.get("extra") or {})

    async def check(self, caller: Caller, wanted: Wanted) -> None:
        """Raises Forbidden, and what the API server answers."""
        if MASTERS in caller.groups:
            return  # whom the API server lets do everything, too
        allowed = False
        if self._reviewer is not None:
            key = (caller.name, caller.uid, caller.groups, wanted)
            known = self._rights.get(key)
            if known is None:
                known = await self._may(caller, wanted)
                self._rights.put(key, known, ALLOWED_S if known else DENIED_S)
            allowed = known
        if not allowed:
            what = f"nodes/{wanted.subresource}"
            raise errors.Forbidden(
                "nodes",
                wanted.node,
                f'User "{caller.name}" cannot {wanted.verb} resource "{what}" at the cluster scope',
            )

    async def _may(self, caller: Caller, wanted: Wanted) -> bool:
        attributes = {
            "verb": wanted.verb,
            "version": "v1",
            "resource": "nodes",
            "subresource": wanted.subresource,
            "name": wanted.node,
        }
        spec = {
            "user": caller.name,
            "groups": list(caller.groups),
            "uid": caller.uid,
            "extra": caller.extra,
            "resourceAttributes": attributes,
        }
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status = await self._ask(ACCESS_REVIEWS, body)
        return status.get("allowed") is True and status.get("denied") is not True

    async def _ask(self, path: str, body: Any) -> dict[str, Any]:
        assert self._reviewer is not None
        _, raw = await self._reviewer.request("POST", path, body=body)
        status = orjson.loads(raw).get("status")
        return status if isinstance(status, dict) else {}
