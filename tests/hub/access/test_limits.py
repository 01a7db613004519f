"""One user's requests do not shut out another's."""

import asyncio
from typing import Any

from hub.api.server import Limits
from tests.hub.access.kit import access_hub, until


async def test_a_user_over_his_limit_is_told_to_come_back_and_others_are_served() -> None:
    async with access_hub(limits=Limits(in_flight_per_user=3)) as hub:
        held = asyncio.Event()
        get = hub.hub.api._handlers._get

        async def slow(request: Any, target: Any) -> Any:
            if target.name == "slow":
                await held.wait()
            return await get(request, target)

        hub.hub.api._handlers._get = slow  # type: ignore[method-assign]
        path = "/api/v1/namespaces/slow"
        waiting = [asyncio.create_task(hub.ask("GET", path)) for _ in range(3)]
        await until(lambda: hub.hub.api._in_flight == 3, "three requests are served")
        refused = await hub.ask("GET", "/api/v1/namespaces/default")
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        other = hub.user("other", "system:masters")
        assert (await hub.ask("GET", "/api/v1/namespaces/default", tls=other)).status == 200
        as_other = {"Impersonate-User": "third", "Impersonate-Group": "system:masters"}
        assert (await hub.ask("GET", "/api/v1/namespaces/default", headers=as_other)).status == 200
        held.set()
        assert [(await reply).status for reply in waiting] == [404, 404, 404]
        assert (await hub.ask("GET", "/api/v1/namespaces/default")).status == 200
        assert hub.refused()["too_many"] == 1
        assert not hub.hub.api._in_flight_by_user
