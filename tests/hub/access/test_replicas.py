"""Two replicas over one etcd: what was changed at one holds at the other, and a token of one is good at both."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from hub.store.etcd import EtcdStore
from tests.hub.access.kit import DEADLINE_S, RBAC, AccessHub, Authority, access_hub
from tests.servers.etcd import EtcdCluster


async def soon(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Replicas learn of each other's changes by their watches."""
    async with asyncio.timeout(DEADLINE_S):
        while not await check():
            await asyncio.sleep(0.02)
    assert await check(), what


async def test_replicas_agree_on_roles_and_tokens() -> None:
    with EtcdCluster(1) as cluster:
        authority = Authority()
        async with contextlib.AsyncExitStack() as stack:
            replicas: list[AccessHub] = []
            for _ in range(2):
                store = await EtcdStore.open(cluster.endpoints, slots=16)
                stack.push_async_callback(store.close)
                replicas.append(await stack.enter_async_context(access_hub(authority, store)))
            first, second = replicas
            await first.account("default", "robot")
            token = await first.token("default", "robot")
            path = "/api/v1/namespaces/default/configmaps"

            async def code(hub: AccessHub) -> int:
                return (await hub.ask("GET", path, token=token)).status

            assert await code(second) == 403, "the other replica knows whose token it is"
            subject = {"kind": "ServiceAccount", "name": "robot", "namespace": "default"}
            name = await first.bind("default", "view", subject, cluster=True)
            assert await code(first) == 200

            async def is_allowed() -> bool:
                return await code(second) == 200

            await soon(is_allowed, "a binding of the first replica holds at the second")
            binding = f"/apis/{RBAC}/v1/namespaces/default/rolebindings/{name}"
            assert (await second.ask("DELETE", binding)).status == 200

            async def is_forbidden() -> bool:
                return await code(first) == 403

            await soon(is_forbidden, "its end at the second holds at the first")
            # A key that signs at one is known at the other before it signs, and one that is void ends there by itself.
            await first.keys.rotate(time.time(), void=False)

            async def is_known() -> bool:
                return len(second.keys.current.keys) == 2

            await soon(is_known, "the new key is known at the second")
            assert second.keys.current.signing(time.time()).kid == second.keys.current.keys[1].kid
            assert await code(second) == 403
            await second.keys.rotate(time.time(), void=True)

            async def is_void() -> bool:
                return await code(first) == 401

            await soon(is_void, "tokens of void keys end at the other replica")
            token = await first.token("default", "robot")
            assert await code(second) == 403
            account = "/api/v1/namespaces/default/serviceaccounts/robot"
            assert (await first.ask("DELETE", account)).status == 200

            async def is_unknown() -> bool:
                return await code(second) == 401

            await soon(is_unknown, "the account's end too")
            assert second.refused()["token_account_gone"] >= 1
