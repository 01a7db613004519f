"""A node whose machine was set up anew: what the old key was given is void everywhere, and the new machine is served."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from edgelite import wire
from edgelite.credentials import client_context
from hub.objects import NODES, REVOCATIONS
from hub.reports import ENROLLED_MARGIN_S, Enrolment
from security import tls
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import until
from tests.hub.test_joining import enrol, join_body, token
from tests.hub.test_revocations import World, world


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def connects(w: World, directory: Path) -> None:
    """A certificate that follows a revocation begins a second after it."""
    node = w.hub.fleet.node("edge-1", client_context(str(directory)))
    for _ in range(100):
        node.connect()
        await until(lambda: node.welcome or node.goaway or node.closed, what="an answer")
        if node.welcome:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it is not served: {node.goaway}")


async def test_the_old_machine_is_sent_away_for_good_and_the_new_one_served(pki: Pki, tmp_path: Path) -> None:
    async with world(pki) as w:
        await enrol(w.hub, await token(w.hub, node="edge-1"), tmp_path / "old")
        old = w.hub.fleet.node("edge-1", client_context(str(tmp_path / "old")))
        await w.hub.connect(old)
        text = await token(w.hub, node="edge-1", replace=True)
        assert len(w.all.revoked) == 0
        await enrol(w.hub, text, tmp_path / "new")
        await until(lambda: old.goaway, what="the old one is told")
        assert old.goaway is not None and old.goaway["code"] == "revoked" and old.goaway["retry_s"] is None
        assert "another machine has taken its place" in old.goaway["message"]
        old.connect()
        await until(lambda: old.goaway, what="it is refused again")
        assert old.welcome is None
        await connects(w, tmp_path / "new")
        assert len((await w.hub.registry.page(REVOCATIONS)).items) == 1


async def test_a_lost_answer_is_repeated_and_a_later_revocation_counts(pki: Pki, tmp_path: Path) -> None:
    async with world(pki) as w:
        await enrol(w.hub, await token(w.hub, node="edge-1"), tmp_path / "old")
        body = json.dumps(join_body(await token(w.hub, node="edge-1", replace=True), 1)).encode()
        for _ in range(2):
            assert "cert" in json.loads(await w.hub.gateway.joining.join(body))
        assert len(w.all.revoked) == 1, "one replacement is one revocation"
        await asyncio.sleep(1.1)  # revocations have whole seconds, and this one is to be the later
        await w.revoke(node="edge-1", reason="stolen")
        with pytest.raises(Exception, match="was revoked after this token had been made"):
            await w.hub.gateway.joining.join(body)


async def test_a_machine_whose_name_was_given_away_after_its_node_was_deleted_is_refused(
    pki: Pki, tmp_path: Path
) -> None:
    """Nothing was revoked, and its certificate, seconds old, is good for two weeks."""
    async with world(pki) as w:
        await enrol(w.hub, await token(w.hub, node="edge-1"), tmp_path / "old")
        old = w.hub.fleet.node("edge-1", client_context(str(tmp_path / "old")))
        await w.hub.connect(old)
        await w.hub.registry.remove(NODES, await w.hub.registry.get(NODES, "", "edge-1"))
        await until(lambda: old.goaway, what="it is told that its Node is deleted")
        assert (await w.hub.connect(old))["sync"] == "hold", "it waits for a confirmation"
        began = int(time.time())
        await until(lambda: int(time.time()) > began, what="certificates are told apart by the second")
        await enrol(w.hub, await token(w.hub, node="edge-1"), tmp_path / "new")
        await until(lambda: old.goaway, what="its live session ends")
        new = w.hub.fleet.node("edge-1", client_context(str(tmp_path / "new")))
        await w.hub.connect(new)
        old.connect()
        await until(lambda: old.goaway, what="it is told so at HELLO")
        assert old.welcome is None and old.goaway is not None
        assert [old.goaway[k] for k in ("code", "reason", "retry_s")] == ["denied", "Replaced", None]
        assert new.welcome is not None and not new.closed, "it does not push the new one out"
        # What is renewed right away is not dated back to before the enrolment, and is served.
        new.send(wire.RENEW, {"csr": pki.csr_pem})
        await until(lambda: new.renewed is not None, what="RENEWED")
        new.context = tls.client_context(pki.ca.root_pem, new.renewed["cert"], pki.key_pem)
        new.session = None
        await w.hub.connect(new)


def test_certificates_of_enrolments_that_were_dated_back_are_told_apart_with_a_margin() -> None:
    assert not Enrolment(enrolled=10_000.5).is_foreign(10_000.5 - ENROLLED_MARGIN_S)
    assert Enrolment(enrolled=10_000.5).is_foreign(9_999 - ENROLLED_MARGIN_S)
    exact = Enrolment(enrolled=10_000.5, exact=True)
    assert exact.not_before == 10_000.0 and not exact.is_foreign(10_000) and exact.is_foreign(9_999)
    assert not Enrolment(enrolled=10_000.5, exact=True, void_before=10_000.5).is_foreign(9_999), (
        "it is revoked"
    )
    assert not exact.is_foreign(0), "a replica of an older release does not say when it begins"
