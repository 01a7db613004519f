"""What users do to a simulated fleet, through the API: pods made on every node, changed at a rate, and removed.

Every pod and change carries when the API was asked for it, so that a node of the same machine knows what passed until its
acknowledgement. Bounds: AT_ONCE requests; what the API refuses is counted, and the first refusals are told.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from hub import errors
from hub.kubernetes.client import KubeClient, Limits
from hub.simulate.figures import Tally
from hub.simulate.repeated import STAMP_NAME

AT_ONCE: Final = 32
NOTES_MAX: Final = 20
LIMITS: Final = Limits(requests_at_once=2 * AT_ONCE, per_second=100_000.0)
LABEL: Final = "simulate.cloudhub.dev/fleet"
MERGE_PATCH: Final = "application/merge-patch+json"

Object = dict[str, Any]
T = TypeVar("T")


def stamp() -> str:
    """Now, as nodes understand it."""
    return str(time.time_ns())


def pod(name: str, node: str, prefix: str, uses: Sequence[str] = ()) -> Object:
    """A pod for `node`. uses: ConfigMaps that it takes its environment from."""
    main: Object = {"name": "main", "image": "simulated", "command": ["simulated"]}
    if uses:
        main["envFrom"] = [{"configMapRef": {"name": name}} for name in uses]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {LABEL: prefix, "cloudhub.dev/runtime": "process"},
            "annotations": {STAMP_NAME: stamp()},
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [main],
        },
    }


class Load:
    """Requests to the API. `tally`: how long each kind took, and how many were refused."""

    def __init__(self, api: KubeClient, namespace: str, prefix: str, seed: int) -> None:
        self._api = api
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._configmaps = f"/api/v1/namespaces/{namespace}/configmaps"
        self._prefix = prefix
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self.tally = Tally()
        self.notes: list[str] = []
        self.made: list[str] = []
        """Names of the pods that are there."""

    async def make_nodes(self, names: Iterable[str]) -> None:
        """Nodes that have an identity and did not join for it; those that are there already stay."""

        async def make(name: str) -> None:
            body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            await self._request("node created", "POST", "/api/v1/nodes", body, fine=errors.AlreadyExists)

        await self._each(make, names)

    async def make_pods(
        self, nodes: Sequence[str], each: int, uses: Sequence[str] = (), at_once: int = AT_ONCE
    ) -> None:
        """`each` pods on every node, node after node; those that are there already stay."""

        async def make(wanted: tuple[str, str]) -> None:
            name, node = wanted
            body = pod(name, node, self._prefix, uses)
            if await self._request("pod created", "POST", self._pods, body, fine=errors.AlreadyExists):
                self.made.append(name)

        await self._each(make, [(f"{node}-{k}", node) for k in range(each) for node in nodes], at_once)

    async def change_pod(self, name: str) -> None:
        """A change that its node has to be told."""
        body = {"metadata": {"annotations": {STAMP_NAME: stamp()}}}
        await self._request("pod changed", "PATCH", f"{self._pods}/{name}", body)

    async def change_pods(self, per_s: float, stop: asyncio.Event) -> None:
        """Changes of pods by chance, at a rate, until `stop`; what the API cannot take in time is not made up for."""
        going: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        at = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                at = max(at + 1 / per_s, loop.time() - 1.0)
                try:
                    async with asyncio.timeout_at(at):
                        await stop.wait()
                except TimeoutError:
                    pass
                if len(going) >= AT_ONCE:
                    self.tally.counts["changes left out"] += 1
                elif self.made and not stop.is_set():
                    task = tasks.create_task(self.change_pod(self._rng.choice(self.made)))
                    going.add(task)
                    task.add_done_callback(going.discard)

    async def saturate(self, seconds: float, at_once: int = AT_ONCE) -> int:
        """As many changes of pods as the API takes; how many it took."""
        until = time.monotonic() + seconds
        before = self.tally.count("pod changed")

        async def change(_: int) -> None:
            while time.monotonic() < until:
                await self.change_pod(self._rng.choice(self.made))

        await self._each(change, range(at_once), at_once)
        return self.tally.count("pod changed") - before

    async def put_configmap(self, name: str, text: str) -> None:
        """Makes or changes a ConfigMap."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": text}}
        body["data"][STAMP_NAME] = stamp()  # type: ignore[index]
        if await self._request(
            "configmap changed",
            "PATCH",
            f"{self._configmaps}/{name}",
            {"data": body["data"]},
            fine=errors.NotFound,
        ):
            return
        await self._request("configmap created", "POST", self._configmaps, body)

    async def remove_pods(self) -> None:
        """Those that this made, without grace: nothing runs there."""

        async def remove(name: str) -> None:
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
            await self._request("pod deleted", "DELETE", f"{self._pods}/{name}", body, fine=errors.NotFound)

        await self._each(remove, self.made)
        self.made = []

    async def remove_nodes(self, names: Iterable[str]) -> None:
        """Nodes, whoever made them."""

        async def remove(name: str) -> None:
            await self._request("node deleted", "DELETE", f"/api/v1/nodes/{name}", None, fine=errors.NotFound)

        await self._each(remove, names)

    async def _request(
        self, what: str, method: str, path: str, body: Any, fine: type[errors.ApiError] | None = None
    ) -> bool:
        """Whether it was done; refusals are counted but for one that is `fine`."""
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        began = time.monotonic()
        try:
            await self._api.request(method, path, body=body, content_type=kind)
        except errors.ApiError as refused:
            if fine is not None and isinstance(refused, fine):
                return fine is errors.AlreadyExists
            self.tally.counts[f"failed: {what}"] += 1
            if len(self.notes) < NOTES_MAX:
                self.notes.append(f"{method} {path}: {refused.message}"[:300])
            return False
        self.tally.time(what, time.monotonic() - began)
        return True

    async def _each(
        self, work: Callable[[T], Awaitable[None]], items: Iterable[T], at_once: int = AT_ONCE
    ) -> None:
        """`work` for all items, `at_once` at a time, in order."""
        left = iter(items)

        async def one_after_the_other() -> None:
            for item in left:
                await work(item)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(one_after_the_other())
