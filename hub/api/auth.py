"""Who asks, and whether they may.

Authentication is the client certificate of the connection: its CN is the user, each O is a group, as Kubernetes reads
client certificates. Until RBAC comes, the group `system:masters` may do everything, and everybody else only reads
what says nothing: health and version.
"""

import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hub import errors

MASTERS: Final = "system:masters"
ANONYMOUS: Final = "system:anonymous"
AUTHENTICATED: Final = "system:authenticated"
PUBLIC_PATHS: Final = frozenset(("/livez", "/readyz", "/healthz", "/version", "/version/"))


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...]

    @property
    def is_master(self) -> bool:
        return MASTERS in self.groups


NOBODY: Final = User(ANONYMOUS, ("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants, as authorization sees it. `resource` is "" for paths that are no resource."""

    verb: str
    path: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""


@functools.lru_cache(maxsize=1024)
def _expiry(not_after: str) -> float:
    return ssl.cert_time_to_seconds(not_after)


def authenticate(peercert: Mapping[str, Any] | None, now: float) -> User:
    """The user of a connection, from `SSLSocket.getpeercert()` (chain and purpose are verified by then). `now`: unix
    seconds, for the certificate may have expired since the handshake. Raises Unauthorized."""
    if not peercert:
        return NOBODY
    if now > _expiry(peercert["notAfter"]):
        raise errors.Unauthorized("the client certificate has expired; get a new one and connect again")
    name, groups = "", []
    for rdn in peercert.get("subject", ()):
        for key, value in rdn:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    if not name:
        # Nodes and hubs carry a SPIFFE ID and no CN: they are no users of this API.
        raise errors.Unauthorized("the client certificate names no user (its subject has no CN)")
    return User(name, (*groups, AUTHENTICATED))


def refuse_impersonation(headers: Mapping[str, str], user: User) -> None:
    """Raises Forbidden for a request in somebody else's name (`kubectl --as`): to answer it in the asker's own would
    give away, or do, what the other may not."""
    for header, resource in (
        ("Impersonate-User", "users"),
        ("Impersonate-Group", "groups"),
        ("Impersonate-Uid", "uids"),
    ):
        if header in headers:
            raise errors.Forbidden(
                resource,
                headers[header][:256],
                f'User "{user.name}" cannot impersonate resource "{resource}": this hub serves no impersonation; '
                "leave --as, --as-group and --as-uid out",
            )


def authorize(user: User, wanted: Attributes) -> None:
    """Raises Forbidden, or Unauthorized for who did not say who they are."""
    if user.is_master or (wanted.verb == "get" and is_public(wanted.path)):
        return
    if user is NOBODY:
        raise errors.Unauthorized("a client certificate is required: use the kubeconfig that the hub wrote")
    if not wanted.resource:
        raise errors.Forbidden("", "", f'User "{user.name}" cannot {wanted.verb} path "{wanted.path}"')
    what = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    raise errors.Forbidden(
        wanted.resource,
        wanted.name,
        f'User "{user.name}" cannot {wanted.verb} resource "{what}" in API group "{wanted.group}" {where}',
        group=wanted.group,
    )


def is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(("/livez/", "/readyz/"))
