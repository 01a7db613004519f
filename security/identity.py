"""Who a peer is: the SPIFFE IDs of nodes, hubs and users. [pure]

    spiffe://<trust domain>/node/<tenant>/<affinity>/<node>
    spiffe://<trust domain>/hub/<replica>
    spiffe://<trust domain>/user/<name>

Invariant: an identity object that exists is valid and has exactly one text form; `parse(i.uri()) == i`. Nothing is
normalised: what is not already in that form (another case, percent-encoding, empty or dot segments, a port, a query)
is refused, so that two spellings can never name one peer. `/relay/<site>` is reserved and refused for now.

Names are RFC 1123 subdomains, as Kubernetes demands of node names; user names are SPIFFE path segments.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from security.errors import SecurityError

URI_CHARS_MAX = 2048  # SPIFFE-ID section 2.3
NAME_CHARS_MAX = 253  # RFC 1123 subdomain, Kubernetes' own bound
TRUST_DOMAIN_CHARS_MAX = 249  # "hub." + trust domain must be a DNS name too
LABEL_CHARS_MAX = 63

DEFAULT_TENANT = "default"

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class IdentityError(SecurityError):
    """A name or URI does not identify a peer of this system. The message says what is wrong with it."""


def check_name(what: str, name: str, chars_max: int = NAME_CHARS_MAX) -> str:
    """`name` itself when it is an RFC 1123 subdomain of at most `chars_max` characters, else IdentityError."""
    if not isinstance(name, str) or not name:
        raise IdentityError(f'{what} is empty; give it a name such as "{what.split()[-1]}-1"')
    if len(name) > chars_max:
        raise IdentityError(
            f"{what} has {len(name)} characters, at most {chars_max} are allowed: {name[:40]!r}..."
        )
    if _SUBDOMAIN.fullmatch(name) is None:
        raise IdentityError(
            f"{what} {name!r} is not an RFC 1123 subdomain: use lower case letters, digits, '-' and '.', each part"
            f" between dots beginning and ending with a letter or digit, at most {LABEL_CHARS_MAX} characters long"
        )
    return name


def check_trust_domain(name: str) -> str:
    """`name` itself when it can be a trust domain and `hub.<name>` a DNS name, else IdentityError."""
    return check_name("trust domain", name, TRUST_DOMAIN_CHARS_MAX)


def hub_dns_name(trust_domain: str) -> str:
    """The DNS name that every hub certificate carries and every agent checks."""
    return "hub." + trust_domain


@dataclass(frozen=True, slots=True)
class NodeId:
    """An edge node. `affinity` is its site where it has one, else its own name; it decides the slot."""

    trust_domain: str
    tenant: str
    affinity: str
    node: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_name("tenant", self.tenant)
        check_name("affinity", self.affinity)
        check_name("node name", self.node)

    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/node/{self.tenant}/{self.affinity}/{self.node}"


@dataclass(frozen=True, slots=True)
class HubId:
    """One replica of the hub."""

    trust_domain: str
    replica: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_name("replica", self.replica)

    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/hub/{self.replica}"


@dataclass(frozen=True, slots=True)
class UserId:
    """A person or program that uses the API. Letters keep their case; groups travel in the certificate's subject."""

    trust_domain: str
    name: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        name = self.name
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
            raise IdentityError(f"user name must have 1 to {NAME_CHARS_MAX} characters")
        if _SEGMENT.fullmatch(name) is None or name in (".", ".."):
            raise IdentityError(f"user name {name!r} may only have letters, digits, '.', '_' and '-'")

    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/user/{self.name}"


Identity = NodeId | HubId | UserId


def parse(uri: str) -> Identity:
    """The identity that a SPIFFE ID names. Raises IdentityError for anything that is not exactly one of ours."""
    if not isinstance(uri, str):
        raise IdentityError("a SPIFFE ID is text")
    if len(uri) > URI_CHARS_MAX:
        raise IdentityError(f"SPIFFE ID of {len(uri)} characters, at most {URI_CHARS_MAX} are allowed")
    if not uri.startswith("spiffe://"):
        raise IdentityError(f"{_shown(uri)} is no SPIFFE ID: it does not begin with spiffe://")
    trust_domain, *path = uri[len("spiffe://") :].split("/")
    match path:
        case ["node", tenant, affinity, node]:
            return NodeId(trust_domain, tenant, affinity, node)
        case ["hub", replica]:
            return HubId(trust_domain, replica)
        case ["user", name]:
            return UserId(trust_domain, name)
        case ["relay", *_]:
            raise IdentityError(f"{_shown(uri)}: site relays are reserved and not supported by this version")
    raise IdentityError(
        f"{_shown(uri)} names no node, hub or user:"
        " expected /node/<tenant>/<affinity>/<node>, /hub/<replica> or /user/<name>"
    )


def from_peercert(peercert: Mapping[str, Any] | None, trust_domain: str | None = None) -> Identity:
    """The identity of a TLS peer, from the dict of `SSLSocket.getpeercert()`.

    The TLS layer has verified the certificate before; here exactly one URI SAN must name a peer of `trust_domain`
    (of any, when None). Raises IdentityError otherwise, also for no certificate.
    """
    if not peercert:
        raise IdentityError("the peer showed no verified certificate")
    uris = [value for kind, value in peercert.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise IdentityError(f"a certificate must carry exactly one URI, this one has {len(uris)}")
    identity = parse(uris[0])
    if trust_domain is not None and identity.trust_domain != trust_domain:
        raise IdentityError(f"{identity.uri()} is of another trust domain; this one is {trust_domain}")
    return identity


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= 120 else uri[:120] + "...")
