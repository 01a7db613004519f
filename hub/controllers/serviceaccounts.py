"""The service account `default` of every namespace: made with it, and again when somebody deletes it.

Source: the Kubernetes documentation, "Managing Service Accounts": ServiceAccount controller.
"""

from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.controllers.controller import Context, Controller, Writer
from hub.controllers.events import namespace_takes_objects
from hub.informer import Delta
from hub.objects import NAMESPACES, SERVICEACCOUNTS, Resource

DEFAULT = "default"


class ServiceAccounts:
    """See the module. Keys are names of namespaces."""

    kinds = (NAMESPACES, SERVICEACCOUNTS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[str] = Controller("serviceaccounts", context, self._sync, kinds=self.kinds)

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == NAMESPACES and delta.type == "ADDED":
            self._driver.queue.add(delta.entry.meta.name)
        elif res == SERVICEACCOUNTS and delta.type == "DELETED" and delta.entry.key[1] == DEFAULT:
            self._driver.queue.add(delta.entry.key[0])

    async def _sync(self, namespace: str, writer: Writer) -> float | None:
        informers = self._context.informers
        if informers.of(SERVICEACCOUNTS).cache.get(namespace, DEFAULT) is not None:
            return None
        if not namespace_takes_objects(informers, namespace):
            return None
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": DEFAULT, "namespace": namespace},
        }
        try:
            await writer.create(SERVICEACCOUNTS, account)
        except (errors.AlreadyExists, errors.NotFound, errors.Forbidden):
            return None  # somebody else made it, or the namespace goes
        return None
