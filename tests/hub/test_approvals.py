"""Permission to join: for a node that exists already, and of an operator. The agent's own enrolment code, a real edge port."""

import asyncio
import base64
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from edgelite import enroll
from edgelite.credentials import EnrollError
from hub.approvals import SIGNER, name_of
from hub.joining import ALLOW_REJOIN
from hub.joinlimits import JoinRates
from hub.objects import CERTIFICATESIGNINGREQUESTS, JOINTOKENS, NODES
from hub.registry import Object, now_rfc3339
from hub.store.memory import MemoryStore
from security.identity import NodeId
from security.revocation import NODE, entry_of
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub
from tests.hub.test_joining import enrol, join_body, token
from tests.hub.test_relaying import buses, replicas


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def refused(h: Hub, text: str, directory: Path, name: str | None = None) -> EnrollError:
    with pytest.raises(EnrollError) as no:
        await enrol(h, text, directory, name)
    return no.value


async def decide(h: Hub, name: str, verdict: str, message: str = "") -> None:
    """As `kubectl certificate` does."""

    def change(obj: Object) -> Object:
        condition = {"type": verdict, "status": "True", "reason": "Kubectl", "message": message}
        obj["status"] = {"conditions": [{**condition, "lastUpdateTime": now_rfc3339()}]}
        return obj

    await h.registry.mutate(CERTIFICATESIGNINGREQUESTS, "", name, change)


async def requests(h: Hub) -> list[Object]:
    return [s.obj() for s in (await h.registry.page(CERTIFICATESIGNINGREQUESTS)).items]


# -- who has joined already


async def test_a_node_that_has_joined_goes_to_another_machine_only_with_a_token_made_for_that(
    pki: Pki, tmp_path: Path
) -> None:
    async with hub(pki) as h:
        told: list[tuple[str, float]] = []

        async def replaced(node: NodeId, before: float) -> None:
            told.append((node.node, before))

        h.gateway.joining.replaced = replaced
        await enrol(h, await token(h, node="edge-1"), tmp_path / "a")
        before = await h.node("edge-1")
        second = await token(h, node="edge-1")
        no = await refused(h, second, tmp_path / "b")
        assert no.code == "RejoinNotAllowed" and "--replace" in no.message and not no.retryable
        assert await h.node("edge-1") == before and told == []
        spent = await h.registry.get(JOINTOKENS, "", second.split(".")[1])
        assert spent.obj()["status"]["redeemed"] == 0, "a refusal takes no place"

        started = time.time()
        await enrol(h, await token(h, node="edge-1", replace=True), tmp_path / "b")
        ((name, at),) = told
        assert name == "edge-1" and started <= at <= time.time()
        record = json.loads((await h.node("edge-1"))["metadata"]["annotations"]["cloudhub.dev/enrolled"])
        assert record["void_before"] == at


async def test_the_revocation_that_a_replacement_makes_frees_the_name_for_nobody_else(
    pki: Pki, tmp_path: Path
) -> None:
    """Its stamp has microseconds: rounded up it is later than the enrolment that it comes from."""
    async with hub(pki) as h:

        async def replaced(node: NodeId, before: float) -> None:
            stamp = math.ceil(before * 1e6 + 0.5) / 1e6
            h.gateway.joining.revoked.put("replaced", entry_of(NODE, node.node, int(before), "", stamp))

        h.gateway.joining.replaced = replaced
        await enrol(h, await token(h, node="edge-1"), tmp_path / "a")
        await enrol(h, await token(h, node="edge-1", replace=True), tmp_path / "b")
        assert (await refused(h, await token(h, node="edge-1"), tmp_path / "c")).code == "RejoinNotAllowed"


async def test_permission_for_one_node_holds_once_and_for_a_time(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        await enrol(h, await token(h, node="edge-1"), tmp_path / "a")

        async def allow(until: str) -> None:
            def change(obj: Object) -> Object:
                obj["metadata"]["annotations"][ALLOW_REJOIN] = until
                return obj

            await h.registry.mutate(NODES, "", "edge-1", change)

        await allow("2020-01-01T00:00:00Z")
        assert (await refused(h, await token(h, node="edge-1"), tmp_path / "b")).code == "RejoinNotAllowed"
        await allow("yes")
        assert (await refused(h, await token(h, node="edge-1"), tmp_path / "b")).code == "RejoinNotAllowed"
        await allow("2199-01-01T00:00:00Z")
        await enrol(h, await token(h, node="edge-1"), tmp_path / "b")
        assert ALLOW_REJOIN not in (await h.node("edge-1"))["metadata"]["annotations"]
        assert (await refused(h, await token(h, node="edge-1"), tmp_path / "c")).code == "RejoinNotAllowed"
        # A pool's machine may come back under its name so, too.
        await allow("2199-01-01T00:00:00Z")
        await enrol(h, await token(h, pool="any", count=2), tmp_path / "d", "edge-1")


async def test_a_node_that_came_back_to_a_hub_without_its_data_is_not_free_to_take(
    pki: Pki, tmp_path: Path
) -> None:
    async with hub(pki) as h:
        stray = h.sim("valued")
        await h.connect(stray)

        def reported(obj: Object) -> Object:
            obj["status"]["nodeInfo"] = {"kubeletVersion": "v1"}
            return obj

        await h.registry.mutate(NODES, "", "valued", reported)
        assert (await refused(h, await token(h, node="valued"), tmp_path / "a")).code == "RejoinNotAllowed"
        await enrol(h, await token(h, node="valued", replace=True), tmp_path / "a")


# -- an operator


async def test_a_node_waits_until_it_is_approved_and_nothing_is_made_of_it_before(
    pki: Pki, tmp_path: Path
) -> None:
    store = MemoryStore(slots=16)
    text = ""
    async with hub(pki, store=store) as h:
        text = await token(h, node="edge-1", site="shop-7", approval=True)
        no = await refused(h, text, tmp_path / "a")
        assert no.code == "PendingApproval" and no.retryable and no.retry_s is not None and no.retry_s >= 2.0
        (request,) = await requests(h)
        name = request["metadata"]["name"]
        assert f"kubectl certificate approve {name}" in no.message and name.startswith("edge-1-")
        assert request["spec"]["signerName"] == SIGNER and request["spec"]["usages"] == ["client auth"]
        assert request["metadata"]["annotations"]["cloudhub.dev/spiffe-id"].endswith(
            "/node/default/shop-7/edge-1"
        )
        assert request["metadata"]["annotations"]["cloudhub.dev/source"].startswith("127.0.0.1:")
        asked = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        assert asked.is_signature_valid
        assert await h.registry.find(NODES, "", "edge-1") is None
        assert (await refused(h, text, tmp_path / "b")).code == "TokenUsed", "the place is taken"
    async with hub(pki, store=store) as h:  # the hub has started anew, or another replica is asked
        assert (await refused(h, text, tmp_path / "a")).code == "PendingApproval"
        assert len(await requests(h)) == 1
        await decide(h, name, "Approved")
        assert (await enrol(h, text, tmp_path / "a"))["node"] == "edge-1"
        (request,) = await requests(h)
        issued = base64.b64decode(request["status"]["certificate"])
        assert x509.load_pem_x509_certificate(issued).public_key() == asked.public_key()
        assert (await h.node("edge-1"))["metadata"]["labels"]["cloudhub.dev/site"] == "shop-7"


async def test_a_denied_node_is_told_so_and_gets_nothing(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        text = await token(h, pool="shop", count=3, approval=True)
        await refused(h, text, tmp_path / "a", "till-1")
        (request,) = await requests(h)
        await decide(h, request["metadata"]["name"], "Denied", "stolen")
        no = await refused(h, text, tmp_path / "a", "till-1")
        assert no.code == "Denied" and "stolen" in no.message and not no.retryable
        assert await h.registry.find(NODES, "", "till-1") is None
        assert "certificate" not in (await requests(h))[0]["status"]


async def test_a_hub_may_have_every_node_wait_also_beyond_its_tokens_end(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki, join_approval=True) as h:
        text = await token(h, ago_s=3595.0, node="edge-1")
        assert (await refused(h, text, tmp_path / "a")).code == "PendingApproval"
        ends = time.time() + 6.0
        h.gateway.joining._now = lambda: ends
        assert (await refused(h, text, tmp_path / "a")).code == "PendingApproval"
        assert (await refused(h, text, tmp_path / "b")).code == "TokenExpired"


async def test_replicas_share_who_waits_and_what_was_decided(pki: Pki, tmp_path: Path) -> None:
    async with buses("local") as (both, _), replicas(pki, both) as (owner, other):
        text = await token(owner.hub, node="edge-1", approval=True)
        body = json.dumps(join_body(text, 1)).encode()
        asked = [r.hub.gateway.joining.join(body) for r in (owner, other, owner, other)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert "waits until an operator" in str(answer)
        (request,) = await requests(other.hub)
        await decide(other.hub, request["metadata"]["name"], "Approved")
        certs = [json.loads(await r.hub.gateway.joining.join(body))["cert"] for r in (other, owner)]
        assert len(certs) == 2 and len((await owner.hub.registry.page(NODES)).items) == 1


async def test_what_was_approved_is_one_key_and_one_identity(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        text = await token(h, node="edge-1", approval=True)
        body = join_body(text, 1)
        with pytest.raises(Exception, match="waits until an operator"):
            await h.gateway.joining.join(json.dumps(body).encode())
        (request,) = await requests(h)
        await decide(h, request["metadata"]["name"], "Approved")
        other = {**body, "token": await token(h, node="edge-1", site="shop-9", approval=True)}
        with pytest.raises(Exception, match="another signer, key or identity"):
            await h.gateway.joining.join(json.dumps(other).encode())
        assert name_of("edge-1", "ab" * 32) != name_of("edge-1", "cd" * 32)
        assert len(name_of("a" * 253, "ab" * 32)) == 253
        assert "cert" in json.loads(await h.gateway.joining.join(json.dumps(body).encode()))


async def test_a_token_that_is_deleted_ends_the_waiting_at_once(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki) as h:
        text = await token(h, node="edge-1", approval=True)
        assert (await refused(h, text, tmp_path / "a")).code == "PendingApproval"
        stored = await h.registry.get(JOINTOKENS, "", text.split(".")[1])
        await h.registry.remove(JOINTOKENS, stored)
        assert (await refused(h, text, tmp_path / "a")).code == "TokenInvalid"


# -- rates


async def test_joins_beyond_the_rate_are_sent_away_with_a_time_to_come_back(pki: Pki, tmp_path: Path) -> None:
    rates = JoinRates(source_per_s=0.5, source_burst=2.0)
    async with hub(pki, join_rates=rates) as h:
        text = await token(h, pool="shop", count=9)
        for n in range(2):
            await enrol(h, text, tmp_path / f"{n}")
        no = await refused(h, text, tmp_path / "x")
        assert no.code == "RateLimited" and no.retryable
        assert no.retry_s is not None and 0.0 < no.retry_s <= 2.0 + 2.0
        assert h.gateway.joining.limited == 1
        h.clock.ahead += 4.0
        await enrol(h, text, tmp_path / "x")


async def test_who_guesses_tokens_is_slowed(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki, join_rates=JoinRates(source_burst=30.0, source_per_s=1.0)) as h:
        wrong = tampered(await token(h, node="edge-1"))
        codes = [(await refused(h, wrong, tmp_path / "a")).code for _ in range(4)]
        assert codes == ["TokenInvalid", "TokenInvalid", "RateLimited", "RateLimited"]


async def test_a_token_has_a_rate_which_only_who_shows_its_secret_spends(pki: Pki, tmp_path: Path) -> None:
    async with hub(pki, join_rates=JoinRates(token_burst=1.0, token_per_s=0.001)) as h:
        text = await token(h, pool="shop", count=5)
        assert (await refused(h, tampered(text), tmp_path / "a")).code == "TokenInvalid"
        await enrol(h, text, tmp_path / "b")
        assert (await refused(h, text, tmp_path / "c")).code == "RateLimited"
        await enrol(h, await token(h, pool="shop", count=5), tmp_path / "c")


def tampered(text: str) -> str:
    """The same id with another secret."""
    parts = text.split(".", 4)
    return ".".join([*parts[:2], "A" * 32, *parts[3:]])


def test_the_command_waits_for_an_operator_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelite import commands
    from edgelite.config import Config

    answers: list[Any] = [EnrollError(enroll.PENDING, "node 'a' waits: approve it", True, 7.5)] * 40
    answers += [EnrollError("RateLimited", "too many", True, 3.0), {"node": "a"}]
    slept: list[float] = []

    def join(*_: Any, **__: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(enroll, "join", join)
    monkeypatch.setattr(commands.time, "sleep", slept.append)
    values = {"hub": "h:1", "token": "t", "name": None, "again": None}
    assert commands._join_patiently(values, str(tmp_path), Config()) == {"node": "a"}
    assert slept == [7.5] * 40 + [3.0]
    said = capsys.readouterr().err
    assert said.count("approve it") == 1 and "trying again in 3 s" in said


async def test_forty_that_wait_poll_without_making_objects(pki: Pki) -> None:
    async with hub(pki) as h:
        text = await token(h, pool="shop", count=40, approval=True)
        bodies = [json.dumps(join_body(text, n)).encode() for n in range(10)]
        for _ in range(2):
            done = await asyncio.gather(*map(h.gateway.joining.join, bodies), return_exceptions=True)
            assert all("waits until" in str(answer) for answer in done)
        assert len(await requests(h)) == 10 and h.gateway.joining.pending == 20
