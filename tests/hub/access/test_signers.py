"""Deciding on waiting nodes takes the right to approve for their signer, beside the right to write the decision."""

import base64
from typing import Any

from hub.objects import CERTIFICATESIGNINGREQUESTS
from tests.hub.access.kit import RBAC, AccessHub, access_hub, rule

JANE = {"kind": "User", "name": "jane", "apiGroup": RBAC}
GROUP = "certificates.k8s.io"
PATH = f"/apis/{GROUP}/v1/certificatesigningrequests"
MERGE = "application/merge-patch+json"


async def waiting(hub: AccessHub, name: str) -> None:
    spec = {
        "request": base64.b64encode(b"csr").decode(),
        "signerName": "cloudhub.dev/node",
        "usages": ["client auth"],
    }
    obj = {"apiVersion": f"{GROUP}/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}}
    await hub.registry.create(CERTIFICATESIGNINGREQUESTS, {**obj, "spec": spec})


async def decide(hub: AccessHub, name: str, verdict: str = "Approved", sub: str = "approval") -> Any:
    body = {"status": {"conditions": [{"type": verdict, "status": "True", "reason": "Test"}]}}
    return await hub.ask("PATCH", f"{PATH}/{name}/{sub}", body, tls=hub.user("jane"), content_type=MERGE)


async def test_who_may_write_decisions_and_not_approve_for_the_signer_decides_nothing() -> None:
    async with access_hub() as hub:
        for name in ("a", "b", "c"):
            await waiting(hub, name)
        both = "certificatesigningrequests/approval certificatesigningrequests/status"
        await hub.role("", "writer", rule("get update patch", both, GROUP))
        await hub.bind("", "writer", JANE)
        for sub in ("approval", "status"):
            refused = await decide(hub, "a", sub=sub)
            assert refused.status == 403 and "cannot approve resource" in refused.message, refused.message
            assert '"signers"' in refused.message
        body = {"status": {"certificate": base64.b64encode(b"cert").decode()}}
        refused = await hub.ask("PATCH", f"{PATH}/a/status", body, tls=hub.user("jane"), content_type=MERGE)
        assert refused.status == 403 and "cannot sign resource" in refused.message
        await hub.role("", "approver", rule("approve", "signers", GROUP, names="cloudhub.dev/node"))
        await hub.bind("", "approver", JANE)
        assert (await decide(hub, "a")).status == 200
        assert (await decide(hub, "b", "Denied")).status == 200
        assert (await decide(hub, "c", "Failed")).status == 403


async def test_a_right_for_a_domain_is_one_for_each_of_its_signers() -> None:
    async with access_hub() as hub:
        await waiting(hub, "a")
        await hub.role("", "writer", rule("patch", "certificatesigningrequests/approval", GROUP))
        await hub.role("", "other", rule("approve", "signers", GROUP, names="example.com/*"))
        for name in ("writer", "other"):
            await hub.bind("", name, JANE)
        assert (await decide(hub, "a")).status == 403
        await hub.role("", "domain", rule("approve", "signers", GROUP, names="cloudhub.dev/*"))
        await hub.bind("", "domain", JANE)
        assert (await decide(hub, "a")).status == 200


async def test_nobody_creates_requests_at_a_hub() -> None:
    async with access_hub() as hub:
        refused = await hub.ask("POST", PATH, {"metadata": {"name": "a"}})
        assert refused.status == 405
