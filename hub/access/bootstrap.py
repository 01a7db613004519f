"""The default roles and bindings in the store: made where they are missing and completed at every start.

Every replica does it, and each step compares what it read, so replicas that start together agree.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from hub import errors
from hub.objects import CLUSTERROLEBINDINGS, CLUSTERROLES, Resource
from hub.registry import MUTATE_ATTEMPTS, Registry
from security import rbac_defaults

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
Object = dict[str, Any]


async def ensure_roles(registry: Registry) -> None:
    """Raises ApiError when the store cannot be read or written."""
    await _ensure(registry, CLUSTERROLES, rbac_defaults.cluster_roles())
    await _ensure(registry, CLUSTERROLEBINDINGS, rbac_defaults.cluster_role_bindings())


async def _ensure(registry: Registry, res: Resource, wanted: Sequence[Object]) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(obj: Object) -> None:
        async with at_once:
            await _ensure_one(registry, res, obj)

    # gather: the first failure is raised as it is, for whoever tries again while the store has no leader.
    await asyncio.gather(*(one(obj) for obj in wanted))


async def _ensure_one(registry: Registry, res: Resource, wanted: Object) -> None:
    name = wanted["metadata"]["name"]
    for _ in range(MUTATE_ATTEMPTS):
        stored = await registry.find(res, "", name)
        try:
            if stored is None:
                await registry.create(res, {**wanted, "metadata": dict(wanted["metadata"])})
                return
            obj = rbac_defaults.reconciled(wanted, stored.obj())
            if obj is None:
                return
            await registry.replace(res, stored, obj)
            log.info("%s %s: added what the defaults have", res.resource, name)
            return
        except (errors.AlreadyExists, errors.Conflict, errors.NotFound):
            continue  # another replica was first, or somebody edits it
    raise errors.Conflict(res.resource, name, group=res.group)
