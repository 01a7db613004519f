"""Tokens of service accounts: issued (serviceaccounts/token) and verified.

A token ends when it expires, when its service account is gone (or made anew: the uid counts), or when the pod or node that
it is bound to is. Invariants: nothing of a token is stored; a token's text is in no log and no error.

Whether an account exists is known from the cache of this replica, and asked of the store before a token is refused for it.
Pods and nodes are asked of the store, at most once in BOUND_S for each: no replica caches the fleet.
"""

import asyncio
import datetime
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from hub import errors
from hub.access.keys import Keys
from hub.access.roles import Roles
from hub.objects import NODES, PODS, SERVICEACCOUNTS, Resource
from hub.registry import Registry
from security import jwt
from security.jwt import Claims, Kubernetes, Named, TokenError
from security.rbac import User

SECONDS_DEFAULT: Final = 3600
SECONDS_MIN: Final = 600
SECONDS_MAX: Final = jwt.LIFE_S_MAX
AUDIENCES_MAX: Final = 16
AUDIENCE_CHARS_MAX: Final = 256
BOUND_S: Final = 5.0
CACHED_MAX: Final = 4096
ALL_AUTHENTICATED: Final = "system:authenticated"
_EXTRA: Final = "authentication.kubernetes.io/"
Object = dict[str, Any]


def issuer_of(trust_domain: str) -> str:
    """Who issues the fleet's tokens, and the audience of those that are for its API."""
    return f"https://hub.{trust_domain}"


class Tokens:
    """See the module."""

    def __init__(self, keys: Keys, registry: Registry, roles: Roles, trust_domain: str) -> None:
        self._keys = keys
        self._registry = registry
        self._roles = roles
        self.issuer = issuer_of(trust_domain)
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        """SHA-256 of tokens whose signature was found right by a key of `_known`."""
        self._known = keys.current
        self._bound: OrderedDict[tuple[str, str, str, str], tuple[float, bool]] = OrderedDict()
        """(plural, namespace, name, uid) -> (until when that is taken for known, does it exist)."""

    # -- issuing ------------------------------------------------------------------------------------------------------

    async def issue(self, namespace: str, name: str, spec: Object, now: float) -> tuple[str, Object]:
        """(the token's text, spec as granted with `expires`). `spec`: of a decoded TokenRequest. Raises NotFound, Invalid,
        Conflict."""
        stored = await self._registry.get(SERVICEACCOUNTS, namespace, name)
        account = stored.obj()["metadata"]
        if account.get("deletionTimestamp"):
            raise errors.Conflict("serviceaccounts", name, "the service account is being deleted")
        audiences, seconds = _checked(spec, self.issuer)
        pod, node = await self._binding(namespace, name, spec.get("boundObjectRef"))
        expires = int(now) + seconds
        claims = Claims(
            iss=self.issuer,
            sub=jwt.username(namespace, name),
            aud=audiences,
            exp=expires,
            nbf=int(now),
            iat=int(now),
            kubernetes=Kubernetes(namespace, Named(name, account["uid"]), pod, node),
            jti=secrets.token_hex(16),
        )
        granted = {"audiences": audiences, "expirationSeconds": seconds, "expires": expires}
        return self._keys.current.sign(claims), granted

    async def _binding(
        self, namespace: str, account: str, ref: Object | None
    ) -> tuple[Named | None, Named | None]:
        """(pod, node) of the token's claims."""
        if ref is None:
            return None, None
        kind, name, uid = ref.get("kind", ""), ref.get("name", ""), ref.get("uid", "")
        if ref.get("apiVersion", "v1") != "v1" or kind not in ("Pod", "Node") or not name:
            raise _invalid(
                "spec.boundObjectRef", kind, "tokens are bound to a Pod or a Node of apiVersion v1"
            )
        res = PODS if kind == "Pod" else NODES
        found = (await self._registry.get(res, namespace if kind == "Pod" else "", name)).obj()
        meta = found["metadata"]
        if uid and uid != meta["uid"]:
            raise errors.Conflict(
                res.resource, name, f"the UID in the bound object reference ({uid}) does not match its UID ({meta['uid']})"
            )  # fmt: skip
        bound = Named(name, meta["uid"])
        if kind == "Node":
            return None, bound
        if (found["spec"].get("serviceAccountName") or "default") != account:
            raise _invalid("spec.boundObjectRef", name, "the pod runs as another service account")
        return bound, None

    # -- verifying ----------------------------------------------------------------------------------------------------

    async def user(self, token: str, now: float, audiences: Sequence[str] = ()) -> tuple[User, list[str]]:
        """(who the token is for, which of `audiences` it is for; none given: this API). Raises TokenError, and ApiError when
        the store cannot be asked."""
        claims = await self._claims(token, now)
        meant = jwt.check(claims, self.issuer, audiences or (self.issuer,), now)
        account = claims.kubernetes.serviceaccount
        namespace = claims.kubernetes.namespace
        await self._check_account(namespace, account)
        extra = [(_EXTRA + "credential-id", (f"JTI={claims.jti}",))]
        for res, bound, at in (
            (PODS, claims.kubernetes.pod, namespace),
            (NODES, claims.kubernetes.node, ""),
        ):
            if bound is not None:
                await self._check_bound(res, at, bound)
                extra += [
                    (f"{_EXTRA}{res.singular}-name", (bound.name,)),
                    (f"{_EXTRA}{res.singular}-uid", (bound.uid,)),
                ]
        groups = (*jwt.groups(namespace), ALL_AUTHENTICATED)
        return User(jwt.username(namespace, account.name), groups, account.uid, tuple(extra)), meant

    async def _claims(self, token: str, now: float) -> Claims:
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        if self._known is not self._keys.current:  # a key may have been taken out of the set
            self._known = self._keys.current
            self._verified.clear()
        found = self._verified.get(digest)
        if found is not None:
            self._verified.move_to_end(digest)
            return found
        try:
            found = self._keys.current.verify(token, now)
        except TokenError as refused:
            if refused.reason != "unknown_key" or not await self._keys.refresh():
                raise
            self._known = self._keys.current
            self._verified.clear()
            found = self._known.verify(token, now)
        _remember(self._verified, digest, found)
        return found

    async def _check_account(self, namespace: str, account: Named) -> None:
        known = self._roles.account(namespace, account.name)
        if known is not None and known.uid == account.uid and known.deletionTimestamp is None:
            return
        # The account may be younger than the cache.
        stored = await self._registry.find(SERVICEACCOUNTS, namespace, account.name)
        meta = {} if stored is None else stored.obj()["metadata"]
        if meta.get("uid") != account.uid or meta.get("deletionTimestamp"):
            raise TokenError("account_gone", "the token's service account is gone")

    async def _check_bound(self, res: Resource, namespace: str, bound: Named) -> None:
        key = (res.resource, namespace, bound.name, bound.uid)
        now = asyncio.get_running_loop().time()
        until, exists = self._bound.get(key, (0.0, False))
        if now >= until:
            stored = await self._registry.find(res, namespace, bound.name)
            exists = stored is not None and stored.obj()["metadata"]["uid"] == bound.uid
            _remember(self._bound, key, (now + BOUND_S, exists))
        if not exists:
            raise TokenError("bound_gone", f"the {res.singular} that the token is bound to is gone")


def _checked(spec: Object, issuer: str) -> tuple[list[str], int]:
    """(audiences, seconds) that are granted. Raises Invalid."""
    audiences = spec.get("audiences") or [issuer]
    if len(audiences) > AUDIENCES_MAX or any(not 0 < len(a) <= AUDIENCE_CHARS_MAX for a in audiences):
        raise _invalid(
            "spec.audiences",
            len(audiences),
            f"at most {AUDIENCES_MAX} audiences of 1 to {AUDIENCE_CHARS_MAX} characters",
        )
    seconds = spec.get("expirationSeconds") or SECONDS_DEFAULT
    if seconds < SECONDS_MIN:
        raise _invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
    return audiences, min(seconds, SECONDS_MAX)


def _invalid(field: str, value: object, text: str) -> errors.Invalid:
    return errors.Invalid(
        "TokenRequest", "", [errors.invalid(field, value, text)], group="authentication.k8s.io"
    )


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > CACHED_MAX:
        cache.popitem(last=False)


def rfc3339(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
