"""The hub's end of the channel against simulated nodes over real mTLS."""

import asyncio
import dataclasses
from typing import Any

import pytest

from edgelite import wire
from hub import reports
from hub.figures import stats
from hub.objects import CONFIGMAPS, EVENTS, NODES, PODS
from hub.registry import Object, Stored
from hub.store.memory import MemoryStore
from security.buckets import Rate, Rates
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, configmap, eventually, hub, pod, until
from tests.sim.fleet import SimNode, running_status


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


def uses(name: str) -> dict[str, Any]:
    return {
        "containers": [
            {"name": "main", "image": "none", "envFrom": [{"configMapRef": {"name": name}}]},
        ]
    }


async def test_a_pod_and_what_it_refers_to_reach_its_node_and_its_status_comes_back(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        edge.report_running = True
        welcome = await h.connect(edge)
        assert welcome["sync"] == "match" and welcome["store"] == h.store.identity.uuid
        await h.create(CONFIGMAPS, configmap("settings", colour="red"))
        await h.create(PODS, pod("web", "edge-1", **uses("settings")))
        await until(lambda: len(edge.docs) == 2)
        assert next(iter(edge.docs)) == "configmap/default/settings"

        async def running() -> bool:
            found = await h.pod("web")
            assert found is not None
            return bool(found["status"]["phase"] == "Running")

        await eventually(running)
        await until(lambda: edge.stored == {1: ""})
        ready = await h.condition("edge-1", "Ready")
        assert ready is not None and ready["status"] == "True"


async def test_an_edited_configmap_reaches_only_the_nodes_that_use_it(pki: Pki) -> None:
    async with hub(pki) as h:
        user, other = await h.enrol("user"), await h.enrol("other")
        await h.connect(user)
        await h.connect(other)
        await h.create(CONFIGMAPS, configmap("settings", colour="red"))
        await h.create(PODS, pod("a", "user", **uses("settings")))
        await h.create(PODS, pod("b", "other"))
        await until(lambda: len(user.docs) == 2 and len(other.docs) == 1)

        def recolour(obj: Object) -> Object:
            obj["data"]["colour"] = "blue"
            return obj

        await h.registry.mutate(CONFIGMAPS, "default", "settings", recolour)
        await until(lambda: b"blue" in user.bodies["configmap/default/settings"])
        assert (user.sets, other.sets) == (3, 1)
        stored = await h.registry.get(PODS, "default", "a")
        await h.registry.remove(PODS, stored)
        await until(lambda: user.docs == {})


async def test_a_reconnect_with_a_matching_digest_moves_under_a_kilobyte(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        for i in range(20):
            await h.create(PODS, pod(f"p{i}", "edge-1"))
        await until(lambda: len(edge.docs) == 20)
        welcome = await h.connect(edge)
        assert welcome["sync"] == "match"
        edge.ping()
        await until(lambda: edge.pongs == 1)
        assert edge.sets == 0 and edge.synced == 0
        assert edge.received_bytes + edge.sent_bytes < 1024


async def test_a_reconnect_sends_only_what_changed_meanwhile(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        for i in range(5):
            await h.create(PODS, pod(f"p{i}", "edge-1"))
        await until(lambda: len(edge.docs) == 5)
        edge.drop()
        await h.registry.remove(PODS, await h.registry.get(PODS, "default", "p0"))
        await h.create(PODS, pod("new", "edge-1"))
        welcome = await h.connect(edge)
        assert welcome["sync"] == "diff"
        await until(lambda: edge.synced == 1)
        assert edge.sets == 1 and len(edge.docs) == 5


async def test_a_restarted_hub_on_the_same_store_matches_and_restarts_nothing(pki: Pki) -> None:
    store = MemoryStore(slots=16)
    async with hub(pki, store) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
        await until(lambda: edge.acks == 1)
    held = (edge.inc, edge.docs, edge.claim, edge.revision)
    async with hub(pki, store) as h:
        again = h.sim("edge-1")
        again.inc, again.docs, again.claim, again.revision = held
        again.boot = 2
        assert (await h.connect(again))["sync"] == "match"
        assert again.sets == 0


async def test_a_node_that_knows_of_the_newest_write_is_no_stranger(pki: Pki) -> None:
    """STORED names revisions that the caches of documents have not reached yet."""
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        n = edge.report("event", "node", {"reason": "Test", "message": "hello"})
        await until(lambda: n in edge.stored)
        assert edge.revision > 0
        for mirror in (h.share.pods, h.share.configmaps, h.share.secrets):
            mirror.revision = 0  # as if they were behind
        assert (await h.connect(edge))["sync"] == "match"


async def test_histories_that_parted_wait_for_an_operator_and_converge_once_confirmed(pki: Pki) -> None:
    async with hub(pki) as first:
        edge = await first.enrol("edge-1")
        await first.connect(edge)
        await first.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
    held = (edge.inc, edge.docs, edge.claim, edge.revision)
    async with hub(pki) as h:  # an empty store with the same CA
        again = h.sim("edge-1")
        again.inc, again.docs, again.claim, again.revision = held
        again.boot = 2
        welcome = await h.connect(again)
        assert welcome["sync"] == "hold" and "cloudhub confirm" in welcome["reason"]
        assert again.claim is not None
        claim_id = again.claim["id"]

        async def parted() -> bool:
            node = await h.node("edge-1")
            return node["metadata"].get("annotations", {}).get("cloudhub.dev/parted") == claim_id

        await eventually(parted)
        condition = await h.condition("edge-1", "HistoryParted")
        assert condition is not None and condition["status"] == "True"
        again.ping()
        await until(lambda: again.pongs == 1)
        assert len(again.docs) == 1, "nothing is taken away before somebody confirms"

        def confirm_another(node: Object) -> Object:
            node["metadata"]["annotations"]["cloudhub.dev/confirmed"] = "another claim"
            return node

        stored = await h.registry.mutate(NODES, "", "edge-1", confirm_another)
        await h.reached(stored)
        again.ping()
        await until(lambda: again.pongs == 2)
        assert again.goaway is None, "only the very claim that the node holds can be confirmed"

        def confirm(node: Object) -> Object:
            annotations = node["metadata"].setdefault("annotations", {})
            annotations["cloudhub.dev/confirmed"] = annotations["cloudhub.dev/parted"]
            return node

        await h.registry.mutate(NODES, "", "edge-1", confirm)
        await until(lambda: again.goaway is not None)
        assert again.goaway is not None and again.goaway["code"] == "resync"
        welcome = await h.connect(again)
        assert welcome["sync"] == "diff" and welcome["confirmed"] == claim_id
        await until(lambda: again.docs == {} and again.synced == 1)

        async def together() -> bool:
            node = await h.node("edge-1")
            kinds = {c["type"]: c["status"] for c in node["status"]["conditions"]}
            left = set(node["metadata"].get("annotations") or {}) - {reports.CERTIFICATE}
            return kinds == {"Ready": "True"} and not left

        await eventually(together)
        welcome = await h.connect(again)
        assert welcome["sync"] == "match" and "confirmed" not in welcome


async def test_an_edited_site_label_does_not_cut_a_node_off(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)

        def move(node: Object) -> Object:
            node["metadata"].setdefault("labels", {})["cloudhub.dev/site"] = "elsewhere"
            return node

        relabelled = await h.registry.mutate(NODES, "", "edge-1", move)
        await h.reached(relabelled)
        edge.drop()
        assert (await h.connect(edge))["sync"] == "match"


async def test_a_node_made_for_another_site_than_the_certificates_is_denied(pki: Pki) -> None:
    async with hub(pki) as h:
        await h.create(NODES, {"metadata": {"name": "stray", "labels": {"cloudhub.dev/site": "elsewhere"}}})
        edge = h.sim("stray")
        edge.connect()
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == "denied"


async def test_a_certificate_without_a_node_makes_an_unconfirmed_node_that_gets_nothing(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = h.sim("stray")
        welcome = await h.connect(edge)
        assert welcome["sync"] == "hold"
        condition = await h.condition("stray", "Unconfirmed")
        assert condition is not None and condition["status"] == "True"
        await h.create(PODS, pod("p", "stray"))
        edge.ping()
        await until(lambda: edge.pongs == 1)
        assert edge.docs == {}

        def confirm(node: Object) -> Object:
            annotations = node["metadata"]["annotations"]
            annotations["cloudhub.dev/confirmed"] = annotations["cloudhub.dev/parted"]
            return node

        await h.registry.mutate(NODES, "", "stray", confirm)
        await until(lambda: edge.goaway is not None)
        await h.connect(edge)
        await until(lambda: len(edge.docs) == 1)

        async def gone() -> bool:
            return await h.condition("stray", "Unconfirmed") is None

        await eventually(gone)


async def test_a_confirmed_node_that_vanished_before_its_first_word_needs_no_second_confirmation(
    pki: Pki,
) -> None:
    async with hub(pki) as h:
        edge = h.sim("stray")
        await h.connect(edge)

        def confirm(node: Object) -> Object:
            annotations = node["metadata"]["annotations"]
            annotations["cloudhub.dev/confirmed"] = annotations["cloudhub.dev/parted"]
            return node

        await h.registry.mutate(NODES, "", "stray", confirm)
        await until(lambda: edge.goaway is not None)
        assert (await h.connect(edge))["sync"] == "match"  # and it says nothing that would prove it
        assert await h.condition("stray", "Unconfirmed") is not None
        assert (await h.connect(edge))["sync"] == "match"
        edge.report("node", "node", {})

        async def gone() -> bool:
            return await h.condition("stray", "Unconfirmed") is None

        await eventually(gone)


async def test_the_newest_connection_wins_and_late_ones_are_told_so(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        twin = h.fleet.node("edge-1b", edge.context)
        twin.inc, twin.conn = edge.inc, edge.conn
        await h.connect(twin)
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == "superseded"
        late = h.fleet.node("edge-1c", edge.context)
        late.inc, late.conn = edge.inc, -1
        late.connect()
        await until(lambda: late.goaway is not None)
        assert late.goaway is not None and late.goaway["code"] == "superseded"
        assert late.goaway["retry_s"] is not None and twin.goaway is None


async def test_two_machines_with_one_identity_are_both_refused_until_one_is_silent(pki: Pki) -> None:
    async with hub(pki, clone_retry_s=10.0, clone_quiet_s=30.0) as h:
        edge = await h.enrol("edge-1")
        copy = h.fleet.node("copy", edge.context)
        await h.connect(edge)
        await h.connect(copy)
        edge.connect()
        await until(lambda: edge.goaway is not None and copy.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == "clone"
        assert copy.goaway is not None and copy.goaway["code"] in ("clone", "superseded")

        async def told() -> bool:
            condition = await h.condition("edge-1", "CloneDetected")
            return condition is not None and "data directory" in condition["message"]

        await eventually(told)
        h.clock.ahead += 31.0
        await h.connect(edge)

        async def over() -> bool:
            return await h.condition("edge-1", "CloneDetected") is None

        await eventually(over)


async def test_a_silent_node_becomes_unknown_once_and_ready_when_it_is_back(pki: Pki) -> None:
    async with hub(pki, heartbeat_s=1.0) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)

        async def status(wanted: str) -> bool:
            ready = await h.condition("edge-1", "Ready")
            return ready is not None and ready["status"] == wanted

        await eventually(lambda: status("True"))
        before = await h.store.revision()
        for _ in range(20):
            edge.ping()
        await until(lambda: edge.pongs == 20)
        assert await h.store.revision() == before, "a heartbeat is never written"
        h.clock.ahead += 3.1  # as if packets were dropped: no FIN, no byte
        await eventually(lambda: status("Unknown"))
        await until(lambda: edge.closed)
        await h.connect(edge)
        await eventually(lambda: status("True"))


async def test_nodes_stored_ready_stay_ready_for_three_heartbeats_after_a_start(pki: Pki) -> None:
    store = MemoryStore(slots=16)
    async with hub(pki, store) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await eventually(lambda: h.condition("edge-1", "Ready"))
    async with hub(pki, store, heartbeat_s=10.0) as h:
        h.clock.ahead += 25.0
        await asyncio.sleep(0.1)
        ready = await h.condition("edge-1", "Ready")
        assert ready is not None and ready["status"] == "True"
        h.clock.ahead += 6.0

        async def unknown() -> bool:
            ready = await h.condition("edge-1", "Ready")
            return ready is not None and ready["reason"] == "NodeStatusUnknown"

        await eventually(unknown)


async def test_a_node_reads_and_writes_only_what_is_bound_to_it(pki: Pki) -> None:
    async with hub(pki) as h:
        mine, other = await h.enrol("mine"), await h.enrol("other")
        await h.connect(mine)
        await h.connect(other)
        stored = await h.create(PODS, pod("p", "other"))
        await until(lambda: len(other.docs) == 1)
        assert mine.docs == {}
        key = next(iter(other.docs))
        n = mine.report("pod", key, running_status())
        gone = mine.report("gone", key, {})
        odd = mine.report("weather", key, {})
        await until(lambda: len(mine.stored) == 3)
        assert mine.stored == {n: "obsolete", gone: "obsolete", odd: "unsupported"}
        assert (await h.registry.get(PODS, "default", "p")).revision == stored.revision


async def test_a_pod_reported_gone_is_removed_only_when_it_is_being_deleted(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
        key = next(iter(edge.docs))
        n = edge.report("gone", key, {})
        await until(lambda: edge.stored.get(n) == "obsolete")

        def mark(obj: Object) -> Object:
            obj["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=30)
            return obj

        await h.registry.mutate(PODS, "default", "p", mark)
        await until(lambda: b'"del":{"grace":30}' in edge.bodies[key])
        n = edge.report("gone", key, {})
        await until(lambda: edge.stored.get(n) == "")
        assert await h.pod("p") is None
        await until(lambda: edge.docs == {})


async def test_a_refused_document_shows_on_node_and_pod(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        key = "pod/default/p/11111111-1111-1111-1111-111111111111"
        edge.nacks[key] = ("Unsupported", "spec.runtimeClassName cannot be honoured")
        await h.create(PODS, pod("p", "edge-1", uid=key.rsplit("/", 1)[1]))

        async def shown() -> bool:
            condition = await h.condition("edge-1", "DocumentsRefused")
            found = await h.pod("p")
            assert found is not None
            return condition is not None and found["status"].get("reason") == "Unsupported"

        await eventually(shown)
        await h.registry.remove(PODS, await h.registry.get(PODS, "default", "p"))

        async def cleared() -> bool:
            return await h.condition("edge-1", "DocumentsRefused") is None

        await eventually(cleared)


async def test_a_document_above_the_nodes_limit_is_not_sent_but_told(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("board")
        edge.limits = {"document": 1024, "frame": 2048}
        await h.connect(edge)
        await h.create(CONFIGMAPS, configmap("big", text="x" * 2000))
        await h.create(PODS, pod("p", "board", **uses("big")))
        await until(lambda: len(edge.docs) == 1)

        async def shown() -> bool:
            condition = await h.condition("board", "DocumentsRefused")
            return condition is not None and condition["reason"] == "DocumentTooLarge"

        await eventually(shown)
        assert (await h.connect(edge))["sync"] == "match"


async def test_node_facts_and_events_are_stored_and_labels_of_others_protected(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1", "shop-7")
        await h.connect(edge)
        edge.report(
            "node",
            "node",
            {
                "capacity": {"cpu": "4", "memory": "1024Ki", "pods": "110"},
                "labels": {"kubernetes.io/arch": "arm64", "cloudhub.dev/site": "elsewhere", "team": "x"},
                "conditions": [
                    {"type": "Ready", "status": "False"},
                    {"type": "DiskPressure", "status": "False"},
                ],
            },
        )
        event = {"reason": "Started", "message": "hello", "type": "Normal", "count": 1, "first": 1, "last": 2}
        edge.report("event", "node", event)
        await until(lambda: edge.stored == {1: "", 2: ""})
        node = await h.node("edge-1")
        assert node["status"]["capacity"]["cpu"] == "4"
        labels = node["metadata"]["labels"]
        assert labels["kubernetes.io/arch"] == "arm64" and labels["cloudhub.dev/site"] == "shop-7"
        assert "team" not in labels
        conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert conditions["Ready"] == "True" and conditions["DiskPressure"] == "False"
        events = (await h.registry.page(EVENTS, "default")).items
        assert [e.obj()["involvedObject"]["name"] for e in events] == ["edge-1"]


def facts(cpu: str) -> dict[str, Any]:
    return {
        "capacity": {"cpu": cpu},
        "labels": {"kubernetes.io/arch": "arm64"},
        "conditions": [{"type": "DiskPressure", "status": "False"}],
    }


async def reported(h: Hub) -> tuple[SimNode, Stored]:
    """A node that is connected and has reported its facts, and its Node, which the hub knows with them."""
    edge = await h.enrol("edge-1")
    await h.connect(edge)
    first = edge.report("node", "node", facts("4"))
    await until(lambda: first in edge.stored)
    await h.gateway.upstream.settled()
    stored = await h.registry.get(NODES, "", "edge-1")
    await h.share.at_least(h.gateway.peers["edge-1"].slot, stored.revision)
    return edge, stored


async def test_a_node_that_comes_back_and_says_nothing_new_is_answered_without_the_store(pki: Pki) -> None:
    async with hub(pki) as h:
        edge, _ = await reported(h)
        await h.connect(edge)
        transactions = h.gateway.upstream.transactions
        again = edge.report("node", "node", facts("4"))
        await until(lambda: again in edge.stored)
        assert edge.stored[again] == "" and h.gateway.upstream.transactions == transactions
        other = edge.report("node", "node", facts("8"))
        await until(lambda: other in edge.stored)
        assert h.gateway.upstream.transactions == transactions + 1
        assert (await h.node("edge-1"))["status"]["capacity"]["cpu"] == "8"


async def test_a_policy_sees_every_report_also_one_that_says_nothing_new(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub(pki) as h:
        edge, _ = await reported(h)
        # As `EdgeWrites` does where a policy concerns nodes' status: another job that asks it, around the first.
        judged = h.gateway.intake._writes.judged
        monkeypatch.setattr(
            h.gateway.intake._writes, "judged", lambda *args: dataclasses.replace(judged(*args), size=1)
        )
        transactions = h.gateway.upstream.transactions
        again = edge.report("node", "node", facts("4"))
        await until(lambda: again in edge.stored)
        assert h.gateway.upstream.transactions == transactions + 1


async def test_a_report_that_takes_back_one_that_is_not_stored_yet_is_no_repetition(pki: Pki) -> None:
    async with hub(pki) as h:
        edge, _ = await reported(h)
        write, gate = h.store.txn, asyncio.Event()

        async def slowly(*args: Any) -> Any:
            await gate.wait()
            return await write(*args)

        h.store.txn = slowly  # type: ignore[method-assign]
        edge.report("node", "node", facts("8"))
        await until(lambda: h.gateway.upstream.jobs == 1)
        back = edge.report("node", "node", facts("4"))
        await until(lambda: h.gateway.upstream.jobs == 2, 10.0, "the second report waits behind the first")
        gate.set()
        await until(lambda: back in edge.stored)
        assert (await h.node("edge-1"))["status"]["capacity"]["cpu"] == "4"


async def test_what_is_cached_and_may_be_old_answers_for_no_report(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub(pki) as h:
        edge, stored = await reported(h)
        # Behind by what this hub itself has stored for the slot.
        monkeypatch.setattr(h.share, "reached", lambda slot, revision: revision < stored.revision)
        transactions = h.gateway.upstream.transactions
        again = edge.report("node", "node", facts("4"))
        await until(lambda: again in edge.stored)
        assert h.gateway.upstream.transactions == transactions + 1


async def test_deleting_the_node_closes_its_connection(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.registry.remove(NODES, await h.registry.get(NODES, "", "edge-1"))
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == "denied"


async def test_a_log_is_streamed_with_credit_and_ends(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        edge.log = b"line\n" * 1000
        await h.connect(edge)
        got = b"".join([c async for c in h.gateway.open_log("edge-1", {"pod": "u", "container": "main"})])
        assert got == edge.log
        reading = h.gateway.open_log("edge-1", {"pod": "u", "container": "main", "follow": True})
        assert (await anext(reading)).startswith(b"line")
        assert len(edge.streams) == 2
        await reading.aclose()  # type: ignore[attr-defined]
        await until(lambda: len(edge.streams) == 1)


async def test_logs_of_an_absent_node_are_unavailable(pki: Pki) -> None:
    from hub.errors import ServiceUnavailable

    async with hub(pki) as h:
        with pytest.raises(ServiceUnavailable, match="not connected"):
            await anext(h.gateway.open_log("nobody", {"pod": "u"}))


async def test_another_claim_of_the_slot_ends_this_hubs_word_for_it(pki: Pki) -> None:
    import secrets

    from hub.objects import Keys
    from tests.hub.alone import Ownership

    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
        await Ownership.claim_all(h.store, Keys(), "hub-1", now=0.0, random_id=lambda: secrets.token_hex(8))
        edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: stats(h.gateway)["slots_serving"] == 15)
        await h.create(PODS, pod("q", "edge-1"))
        edge.ping()
        await until(lambda: edge.pongs == 1)
        assert len(edge.docs) == 1 and edge.stored == {}


@pytest.mark.parametrize(
    "data, code",
    [
        (b"\x01\x00\x00\x00" + (100_000_000).to_bytes(4, "big"), "frame"),
        (wire.frame(wire.WELCOME, b"{}"), "denied"),
        (wire.frame(wire.PAIRS, b'{"pairs":7}'), "protocol"),
        (wire.frame(99, b"?"), "denied"),
        (wire.frame(wire.REPORT, b"[" * 5000), "protocol"),
    ],
)
async def test_a_broken_peer_is_closed_with_a_reason(pki: Pki, data: bytes, code: str) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        edge.raw(data)
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == code


async def test_stopping_says_when_to_come_back(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await h.gateway.stop()
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and edge.goaway["code"] == "shutdown"
        assert 1.0 <= edge.goaway["retry_s"] <= 5.0


async def test_a_connected_node_that_was_stored_as_silent_is_ready_again(pki: Pki) -> None:
    """As when the write of its silence was under way while it came back."""
    from hub.reports import silent

    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        await eventually(lambda: h.condition("edge-1", "Ready"))
        await h.registry.mutate(NODES, "", "edge-1", lambda obj: silent(obj, "2026-01-01T00:00:00Z"))

        async def ready() -> bool:
            condition = await h.condition("edge-1", "Ready")
            return condition is not None and condition["status"] == "True"

        await eventually(ready)


async def test_a_certificate_of_another_site_is_refused(pki: Pki) -> None:
    async with hub(pki) as h:
        await h.enrol("edge-1", "shop-7")
        moved = h.sim("edge-1", "shop-8")
        moved.connect()
        await until(lambda: moved.goaway is not None)
        assert moved.goaway is not None and moved.goaway["code"] == "denied"


async def test_a_user_or_hub_certificate_is_no_node(pki: Pki) -> None:
    import time

    from security.tls import client_context

    async with hub(pki) as h:
        cert, key = pki.ca.issue_user("admin", ["system:masters"], pki.ca.trust_domain, time.time())
        user = h.fleet.node("admin", client_context(pki.ca.root_pem, cert, key))
        user.connect()
        await until(lambda: user.goaway is not None)
        assert user.goaway is not None and user.goaway["code"] == "denied"


async def test_an_expired_certificate_ends_a_connection_that_stays_open(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        wall = h.gateway.wall
        h.gateway.wall = lambda: wall() + 15 * 86400
        h.gateway._audit()
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None and "expired" in edge.goaway["message"]


async def test_whoever_has_renewed_is_told_to_come_back_with_the_new_certificate(pki: Pki) -> None:
    async with hub(pki, node_ttl_s=600.0) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        edge.send(wire.RENEW, {"csr": pki.csr_pem})
        edge.ping()
        await until(lambda: edge.pongs == 1)
        h.gateway._audit()
        assert edge.goaway is None
        wall = h.gateway.wall
        h.gateway.wall = lambda: wall() + 15 * 86400
        h.gateway._audit()
        await until(lambda: edge.goaway is not None)
        assert edge.goaway is not None
        assert (edge.goaway["code"], edge.goaway["retry_s"]) == ("resync", 0.0)


async def test_five_hundred_pods_for_twenty_nodes_all_come_back_running(pki: Pki) -> None:
    async with hub(pki) as h:
        edges = [await h.enrol(f"e{i}") for i in range(20)]
        for edge in edges:
            edge.report_running = True
            await h.connect(edge)
        for i in range(500):
            await h.create(PODS, pod(f"p{i}", f"e{i % 20}"))

        async def running() -> bool:
            page = await h.registry.page(PODS)
            return all(stored.obj()["status"]["phase"] == "Running" for stored in page.items)

        await eventually(running, 20.0)
        assert all(edge.sets == 25 for edge in edges), "each document went out once"


async def test_a_taken_edge_port_is_said_as_such(pki: Pki) -> None:
    async with hub(pki) as first:
        with pytest.raises(OSError, match="Address already in use"):
            async with hub(pki, port=first.address[1]):
                pass


async def test_a_node_that_floods_is_read_more_slowly_and_loses_nothing(pki: Pki) -> None:
    rate = Rate(frames_s=400, bytes_s=1 << 20, burst_s=1)
    async with hub(pki, rates=Rates(node=rate)) as h:
        loud, quiet = await h.enrol("loud"), await h.enrol("quiet")
        await h.connect(loud)
        await h.connect(quiet)
        loud.raw(wire.frame(wire.PING) * 1200)
        await until(lambda: loud.pongs > 0)
        reports = {loud.report("event", "node", {"reason": "Test", "message": str(i)}) for i in range(20)}
        quiet.ping()
        await until(lambda: quiet.pongs == 1)
        await until(lambda: loud.pongs == 1200 and reports <= loud.stored.keys())
        assert set(loud.stored.values()) == {""} and loud.goaway is None
        assert h.gateway.throttle.pauses > 0 and h.gateway.throttle.paused_s > 0
        assert h.gateway.refusals.total == 0


async def test_the_journal_of_a_long_outage_is_taken_at_the_default_rates_without_a_pause(pki: Pki) -> None:
    async with hub(pki) as h:
        edge = await h.enrol("edge-1")
        await h.connect(edge)
        status = running_status() | {"message": "x" * 50_000}
        await h.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1)
        key = next(iter(edge.docs))
        numbers = {edge.report("pod", key, status) for _ in range(80)}
        await until(lambda: numbers <= edge.stored.keys())
        assert h.gateway.throttle.pauses == 0 and edge.goaway is None
