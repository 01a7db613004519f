"""Roles, bindings and service accounts of the fleet as one replica knows them: a policy kept up to date by watches.

Invariants: a request is decided from memory, never by a read of the store; the policy is what the store held a moment
ago, on every replica. While the store is out of reach the last known policy goes on being applied.
Not guaranteed: that a change is seen by the request that follows it (as in Kubernetes).
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from hub.cache import keep_view
from hub.informer import Delta, Informers
from hub.objects import (
    CLUSTERROLEBINDINGS,
    CLUSTERROLES,
    ROLEBINDINGS,
    ROLES,
    SERVICEACCOUNTS,
    Keys,
    Meta,
    Resource,
)
from security.rbac import AggregationRule, Binding, Policy, Role, RoleRef, Rule, Subject
from shards.kv import Store

log = logging.getLogger(__name__)


class _RoleView(msgspec.Struct, frozen=True):
    metadata: Meta
    rules: tuple[Rule, ...] | None = None
    aggregationRule: AggregationRule | None = None


class _BindingView(msgspec.Struct, frozen=True):
    metadata: Meta
    roleRef: RoleRef
    subjects: tuple[Subject, ...] | None = None


_roles = msgspec.json.Decoder(_RoleView)
_bindings = msgspec.json.Decoder(_BindingView)


def keep_role(view: Any, raw: bytes) -> tuple[Any, Role | None]:
    """A thin cache's `Keep` of roles: the note is the role, None for one that is not understood."""
    try:
        found = _roles.decode(raw)
    except msgspec.ValidationError as strange:
        # What the API refuses can only come from elsewhere. A role that nobody understands gives nothing.
        log.warning("role %s is not understood and gives nothing: %s", view.metadata.name, strange)
        return view, None
    labels = tuple((found.metadata.labels or {}).items())
    meta = found.metadata
    return view, Role(meta.namespace, meta.name, found.rules or (), labels, found.aggregationRule)


def _keep_binding(view: Any, raw: bytes) -> tuple[Any, Binding | None]:
    try:
        found = _bindings.decode(raw)
    except msgspec.ValidationError as strange:
        log.warning("binding %s is not understood and gives nothing: %s", view.metadata.name, strange)
        return view, None
    meta = found.metadata
    return view, Binding(meta.namespace, meta.name, found.roleRef, found.subjects or ())


_KEEPS = {
    ROLES: keep_role,
    CLUSTERROLES: keep_role,
    ROLEBINDINGS: _keep_binding,
    CLUSTERROLEBINDINGS: _keep_binding,
    SERVICEACCOUNTS: keep_view,
}


class Roles:
    """`run` has to run, in a task of the caller; `policy` is complete once `synced` returns."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.policy = Policy()
        self._informers = Informers(store, keys, tuple(_KEEPS), _KEEPS)
        for res in _KEEPS:
            if res != SERVICEACCOUNTS:
                self._informers.of(res).subscribe(self._listener(res))

    async def run(self) -> None:
        """Until cancelled."""
        await self._informers.run()

    async def synced(self) -> None:
        await self._informers.synced()

    async def at_least(self, revision: int) -> None:
        """Returns once the policy is that of `revision` or later."""
        await self._informers.at_least(revision)

    def account(self, namespace: str, name: str) -> Meta | None:
        """The service account's metadata, None where there is none as far as is known."""
        entry = self._informers.of(SERVICEACCOUNTS).cache.get(namespace, name)
        return None if entry is None else entry.meta

    def _listener(self, res: Resource) -> Any:
        def changed(deltas: Sequence[Delta[Any]], _revision: int) -> None:
            for delta in deltas:
                self._changed(res, delta)

        return changed

    def _changed(self, res: Resource, delta: Delta[Any]) -> None:
        namespace, name = delta.entry.key
        note = delta.entry.note
        if delta.type == "DELETED" or note is None:
            drop = self.policy.drop_role if res in (ROLES, CLUSTERROLES) else self.policy.drop_binding
            drop(namespace, name)
        elif isinstance(note, Role):
            self.policy.put_role(note)
        else:
            self.policy.put_binding(note)
