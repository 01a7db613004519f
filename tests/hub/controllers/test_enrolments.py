"""What joining leaves behind goes when nobody may ask for it any more."""

from hub.controllers.meta import rfc3339
from hub.objects import CERTIFICATESIGNINGREQUESTS, JOINTOKENS
from hub.registry import Object
from security.join import WAITING_S
from tests.hub.controllers.kit import Hub, running

DAY_S = 86400.0


def token(hub: Hub, name: str, expires: str) -> Object:
    return {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"name": name},
        "spec": {"node": "a"},
        "status": {"expires": expires},
    }


async def left(hub: Hub) -> list[str]:
    pages = [await hub.registry.page(res) for res in (JOINTOKENS, CERTIFICATESIGNINGREQUESTS)]
    return sorted(stored.obj()["metadata"]["name"] for page in pages for stored in page.items)


async def test_tokens_go_a_week_after_their_end_and_requests_a_week_after_their_making() -> None:
    async with running() as hub:
        now = hub.clock.now()
        await hub.create(JOINTOKENS, token(hub, "soon", rfc3339(now + DAY_S)))
        await hub.create(JOINTOKENS, token(hub, "late", rfc3339(now + 30 * DAY_S)))
        await hub.create(JOINTOKENS, token(hub, "never", ""))
        kept = token(hub, "kept", rfc3339(now))
        kept["metadata"]["finalizers"] = ["example.com/mine"]
        await hub.create(JOINTOKENS, kept)
        request: Object = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": "waits"},
            "spec": {"request": "", "signerName": "cloudhub.dev/node", "usages": ["client auth"]},
        }
        await hub.create(CERTIFICATESIGNINGREQUESTS, request)
        await hub.pass_time(WAITING_S - 60, step=WAITING_S)
        assert await left(hub) == ["kept", "late", "never", "soon", "waits"]
        await hub.pass_time(120, step=WAITING_S)
        assert await left(hub) == ["kept", "late", "never", "soon"]
        await hub.pass_time(DAY_S, step=DAY_S)
        assert await left(hub) == ["kept", "late", "never"]
        await hub.pass_time(29 * DAY_S, step=DAY_S * 10)
        assert await left(hub) == ["kept", "never"]
