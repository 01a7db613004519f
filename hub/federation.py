"""Which trust domain speaks for which node. [pure]

A node's name belongs to one trust domain: to the hub's own, unless the map gives it to another. Then only that one's
certificates are accepted for it, and the own ones are refused: two authorities never speak for one node.

The map is made of texts `TRUST-DOMAIN=node:PATTERN` and `TRUST-DOMAIN=site:PATTERN`; a pattern is a name, or the beginning
of one and `*`. Nodes of a pool are called `POOL-...`, so `node:POOL-*` is a pool. A node without a site is one of its own name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from security.identity import IdentityError, NodeId, check_trust_domain

ENTRIES_MAX = 256
_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?|[a-z0-9][-a-z0-9.]{0,251}\*", re.ASCII)


class FederationError(ValueError):
    """The map cannot be read. The message names the text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the map. `kind`: node or site."""

    trust_domain: str
    kind: str
    pattern: str

    def matches(self, node: NodeId) -> bool:
        name = node.node if self.kind == "node" else node.affinity
        if self.pattern.endswith("*"):
            return name.startswith(self.pattern[:-1])
        return name == self.pattern


class Federation:
    """The map. Without entries only `own` counts."""

    def __init__(self, own: str, entries: Iterable[Entry] = ()) -> None:
        self.own = own
        self.entries = tuple(entries)
        self.trust_domains = frozenset(entry.trust_domain for entry in self.entries)
        """The foreign ones."""

    def check(self, node: NodeId) -> None:
        """Raises IdentityError when the node's trust domain is not the one that speaks for it."""
        if node.trust_domain != self.own and node.trust_domain not in self.trust_domains:
            raise IdentityError(f"{node.uri()} is of another trust domain; this one is {self.own}")
        if not self.entries:
            return
        found = {entry.trust_domain for entry in self.entries if entry.matches(node)}
        if len(found) > 1:
            raise IdentityError(
                f"node {node.node!r} is mapped to several trust domains, {', '.join(sorted(found))}: correct federated_node"
            )
        speaks = found.pop() if found else self.own
        if speaks != node.trust_domain:
            raise IdentityError(
                f"{node.uri()} is refused: {speaks} speaks for a node {node.node!r} of site {node.affinity!r}; see"
                " federated_node"
            )


def parse_map(texts: Iterable[str], own: str) -> tuple[Entry, ...]:
    """The entries of `TRUST-DOMAIN=node:PATTERN` texts. Raises FederationError."""
    found = []
    for text in texts:
        trust_domain, _, rest = text.partition("=")
        kind, _, pattern = rest.partition(":")
        if kind not in ("node", "site") or _PATTERN.fullmatch(pattern) is None:
            raise FederationError(
                f"{text!r}: write TRUST-DOMAIN=node:NAME or TRUST-DOMAIN=site:NAME; a NAME may end in *"
            )
        found.append(Entry(_foreign(text, trust_domain, own), kind, pattern))
    if len(found) > ENTRIES_MAX:
        raise FederationError(f"{len(found)} entries, at most {ENTRIES_MAX} are supported")
    return tuple(found)


def parse_bundles(texts: Iterable[str], own: str) -> dict[str, str]:
    """Trust domain -> file, of `TRUST-DOMAIN=FILE` texts. Raises FederationError."""
    found: dict[str, str] = {}
    for text in texts:
        trust_domain, _, path = text.partition("=")
        if not path:
            raise FederationError(f"{text!r}: write TRUST-DOMAIN=FILE")
        if _foreign(text, trust_domain, own) in found:
            raise FederationError(f"{text!r}: there is a bundle of {trust_domain} already")
        found[trust_domain] = path
    return found


def _foreign(text: str, trust_domain: str, own: str) -> str:
    try:
        check_trust_domain(trust_domain)
    except IdentityError as wrong:
        raise FederationError(f"{text!r}: {wrong}") from wrong
    if trust_domain == own:
        raise FederationError(f"{text!r}: that is this hub's own trust domain")
    return trust_domain
