"""Who asks: the user of a request, by its client certificate, its token, and in whose name it is made.

A certificate names a user by its CN (each O is a group, as Kubernetes reads client certificates) or, without one, by a SPIFFE
ID `/user/<name>`. Certificates of nodes and hubs are no users of this API: they are refused, whatever else the request
carries. Who shows a user's certificate is that user; a token is looked at only without one.

Whoever has the verb `impersonate` may act in another's name (`kubectl --as`); everybody else gets 403.
"""

import functools
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import hdrs
from multidict import MultiMapping

from hub import errors
from hub.access.authorizer import ANONYMOUS, AUTHENTICATED, NOBODY, UNAUTHENTICATED, Authorizer
from hub.access.tokens import Tokens
from security import jwt
from security.identity import IdentityError, UserId, parse
from security.jwt import TokenError
from security.rbac import SERVICE_ACCOUNT_PREFIX, Request, User

AUTHENTICATION: Final = "authentication.k8s.io"
GROUPS_MAX: Final = 64
EXTRAS_MAX: Final = 32
_AS_USER, _AS_GROUP, _AS_UID = "Impersonate-User", "Impersonate-Group", "Impersonate-Uid"
_AS_EXTRA: Final = "impersonate-extra-"


class Unknown(errors.Unauthorized):
    """Nobody can be told from the credentials. `why`: a word for metrics."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


@functools.lru_cache(maxsize=1024)
def _expiry(not_after: str) -> float:
    return ssl.cert_time_to_seconds(not_after)


def authenticate(peercert: Mapping[str, Any] | None, now: float, trust_domain: str = "") -> User:
    """The user of a connection, from `SSLSocket.getpeercert()` (chain and purpose are verified by then). `now`: unix
    seconds, for the certificate may have expired since the handshake. `trust_domain`: of SPIFFE IDs; "" takes any. Raises Unknown."""
    if not peercert:
        return NOBODY
    if now > _expiry(peercert["notAfter"]):
        raise Unknown(
            "certificate_expired", "the client certificate has expired; get a new one and connect again"
        )
    name, groups = "", []
    for rdn in peercert.get("subject", ()):
        for key, value in rdn:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    named = _spiffe_user(peercert, trust_domain)
    if name and named and name != named:
        raise Unknown(
            "certificate_no_user", "the client certificate names two users: its CN and its SPIFFE ID"
        )
    name = name or named
    if not name:
        raise Unknown("certificate_no_user", "the client certificate names no user (its subject has no CN)")
    return User(name, (*groups, AUTHENTICATED))


def _spiffe_user(peercert: Mapping[str, Any], trust_domain: str) -> str:
    """The user of a SPIFFE ID, "" where there is none. Raises Unknown for anybody's who is no user."""
    uris = [value for kind, value in peercert.get("subjectAltName", ()) if kind == "URI"]
    ids = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if not ids:
        return ""
    try:
        identity = parse(ids[0])
    except IdentityError as wrong:
        raise Unknown("certificate_no_user", f"the client certificate names no user: {wrong}") from wrong
    if len(ids) > 1 or not isinstance(identity, UserId):
        # Nodes and hubs carry a SPIFFE ID: they are no users of this API.
        raise Unknown(
            "certificate_no_user", "the client certificate names no user: it belongs to a node or a hub"
        )
    if trust_domain and identity.trust_domain != trust_domain:
        raise Unknown("certificate_no_user", "the client certificate is for a user of another trust domain")
    return identity.name


def bearer(headers: Mapping[str, str]) -> str:
    """The bearer token of a request, "" where there is none. Raises Unknown for another scheme."""
    text = headers.get(hdrs.AUTHORIZATION, "")
    if not text:
        return ""
    scheme, _, token = text.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unknown("scheme", "only bearer tokens and client certificates are accepted")
    return token.strip()


class Authenticator:
    """Certificates and, with `tokens`, the tokens of service accounts."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        check: Callable[[Mapping[str, Any] | None], None] | None = None,
        trust_domain: str = "",
    ) -> None:
        """`check` raises Unauthorized for a certificate that is revoked. `trust_domain`: the fleet's; "" takes any."""
        self._tokens = tokens
        self._trust_domain = trust_domain
        self._check = check

    async def user(self, peercert: Mapping[str, Any] | None, headers: Mapping[str, str], now: float) -> User:
        """Who asks; NOBODY without credentials. Raises Unknown, and ApiError when the store cannot be asked."""
        if self._check is not None:
            try:
                self._check(peercert)
            except errors.Unauthorized as refused:
                raise Unknown("certificate_revoked", refused.message) from refused
        user = authenticate(peercert, now, self._trust_domain)
        if user is not NOBODY:
            return user
        token = bearer(headers)
        if not token:
            return NOBODY
        if self._tokens is None:
            raise Unknown("scheme", "this hub accepts no tokens: its objects live in another API server")
        try:
            found, _ = await self._tokens.user(token, now)
        except TokenError as refused:
            raise Unknown(f"token_{refused.reason}", str(refused)) from refused
        return found


def impersonate(headers: "MultiMapping[str]", user: User, authorizer: Authorizer) -> User:
    """In whose name the request is made: `user` himself without the headers. Raises Refused, BadRequest."""
    if not any(header[:12].lower() == "impersonate-" for header in headers):
        return user
    name = headers.get(_AS_USER, "")
    asked_groups = groups = _all(headers, _AS_GROUP)
    uid = headers.get(_AS_UID, "")
    extra = _extra(headers)
    if not (name or groups or uid or extra):
        return user
    if not name:
        raise errors.BadRequest(
            "Impersonate-Group, -Uid and -Extra go with Impersonate-User, which is missing"
        )
    if len(groups) > GROUPS_MAX or len(extra) > EXTRAS_MAX:
        raise errors.BadRequest(
            f"at most {GROUPS_MAX} groups and {EXTRAS_MAX} extra fields can be impersonated"
        )
    account = _account(name)
    if account is None:
        asked = [Request("impersonate", "", "users", name=name)]
    else:
        asked = [Request("impersonate", "", "serviceaccounts", namespace=account[0], name=account[1])]
        groups = groups or jwt.groups(account[0])
    asked += [Request("impersonate", "", "groups", name=group) for group in asked_groups]
    if uid:
        asked.append(Request("impersonate", AUTHENTICATION, "uids", name=uid))
    for key, values in extra:
        asked += [Request("impersonate", AUTHENTICATION, "userextras", key, name=value) for value in values]
    for wanted in asked:
        authorizer.authorize(user, wanted)
    own = UNAUTHENTICATED if name == ANONYMOUS else AUTHENTICATED
    return User(name, groups if own in groups else (*groups, own), uid, extra)


def _all(headers: "MultiMapping[str]", name: str) -> tuple[str, ...]:
    return tuple(value for header, value in headers.items() if header.lower() == name.lower())


def _extra(headers: "MultiMapping[str]") -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for header, value in headers.items():
        if header.lower().startswith(_AS_EXTRA):
            found.setdefault(unquote(header.lower().removeprefix(_AS_EXTRA)), []).append(value)
    return tuple((key, tuple(values)) for key, values in found.items())


def _account(name: str) -> tuple[str, str] | None:
    """(namespace, name) of a service account's user name."""
    if not name.startswith(SERVICE_ACCOUNT_PREFIX):
        return None
    parts = name.removeprefix(SERVICE_ACCOUNT_PREFIX).split(":")
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None
