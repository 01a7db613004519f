"""The fleet's set of certificate authorities, the oldest first: `security.rotation` says which of them does what.

A set is immutable; every change is a new one, which the store takes by compare-and-swap. Nodes and users get
certificates of the active root, hubs of the oldest, which everybody knows who knows any.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from security import rotation
from security.ca import CertificateAuthority
from security.keys import IN_MEMORY, KeySource
from security.rotation import ACTIVE, Activate, Remove, Root


def bundle_id(roots: Sequence[str]) -> str:
    """A short name of a trust bundle: 16 hex digits, the same for the same roots (hex SHA-256 of each one's DER)."""
    return hashlib.sha256("".join(f"{root}\n" for root in sorted(roots)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Held:
    """A root, and where it is in its life."""

    ca: CertificateAuthority
    root: Root


@dataclass(frozen=True, slots=True)
class Authorities:
    """See the module. `void_tokens`: the rotation under way does not wait for join tokens that name the old root."""

    held: tuple[Held, ...]
    void_tokens: bool = False

    def __post_init__(self) -> None:
        rotation.check(self.roots)

    @classmethod
    def alone(cls, ca: CertificateAuthority) -> "Authorities":
        """The set of a fleet that has never changed its root."""
        return cls((Held(ca, Root(ca.root_sha256.hex(), ACTIVE, ca.not_before, ca.not_after)),))

    @property
    def roots(self) -> tuple[Root, ...]:
        return tuple(held.root for held in self.held)

    @property
    def active(self) -> CertificateAuthority:
        """Signs for nodes and users."""
        return next(held.ca for held in self.held if held.root.phase == ACTIVE)

    @property
    def serving(self) -> CertificateAuthority:
        """Signs for hubs, and is named by join tokens."""
        return self.held[0].ca

    @property
    def trust_domain(self) -> str:
        return self.held[0].ca.trust_domain

    @property
    def id(self) -> str:
        """The bundle's short name (`bundle_id`)."""
        return bundle_id([root.id for root in self.roots])

    def begin(self, now: float, void_tokens: bool = False, source: KeySource = IN_MEMORY) -> "Authorities":
        """The set with a new root, prepared, with a key of `source`. Raises RotationError while another rotation is under
        way, and for a token's key that the set has already, KeyRefused."""
        if rotation.under_way(self.roots):  # before a key is made
            rotation.begin(self.roots, "", 0.0, now)
        new = CertificateAuthority.create_next(self.trust_domain, now, source)
        if new.key_reference and new.key_reference in {held.ca.key_reference for held in self.held}:
            raise rotation.RotationError(
                f"the key {new.key_reference} is the present root's: make another with `cloudhub key create`, and start the"
                " hub with its URI as --ca-key"
            )
        roots = rotation.begin(self.roots, new.root_sha256.hex(), new.not_after, now)
        return Authorities((*self.held, Held(new, roots[-1])), void_tokens)

    def after(self, step: Activate | Remove, now: float, node_ttl_s: float) -> "Authorities":
        """The set once the step is taken; equal when it was taken already."""
        if isinstance(step, Activate):
            roots = rotation.activate(self.roots, step.id, now, node_ttl_s)
        else:
            roots = rotation.remove(self.roots, step.id)
        by_id = {held.root.id: held for held in self.held}
        held = tuple(replace(by_id[root.id], root=root) for root in roots)
        return Authorities(held, self.void_tokens and len(held) > 1)
