"""Nobody reaches what is not theirs: every case that the table of admission has, tried at a real gateway over real TLS.

`matrix` says what must come out. The judgement alone is tried for all cases, and against every table that differs in one
cell; what a peer can really send is sent, and afterwards the store is as it was and every attempt was counted.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from edgelite import wire
from edgelite.desired import compact
from hub.objects import CONFIGMAPS, DEVICES, NODES, PODS, SECRETS
from hub.reports import new_node
from hub.store.memory import MemoryStore
from security.identity import NodeId
from security.policy import KINDS, RELATIONS, SUBJECTS, TABLE, Table
from security.revocation import NODE as REVOKED_NODE
from security.revocation import SERIAL as REVOKED_SERIAL
from security.revocation import Entry
from tests.hub.edge_pki import TRUST_DOMAIN, Pki
from tests.hub.forged import context_of, forgeries
from tests.hub.hub_fixture import Hub, configmap, device, hub, pod, until
from tests.hub.matrix import MESSAGES, cases
from tests.sim.fleet import HUB_NAME, SimNode, running_status

NODE_SAYS = frozenset((1, 3, 4, 6, 9, 10, 11, 12, 15, 16, 17, 20, 22)) - {9}
BODIES: dict[int, bytes] = {
    wire.HELLO: compact(
        {"proto": [1, 1], "inc": "0" * 32, "boot": 1, "conn": 1, "digest": "0" * 64, "docs": 0, "rev": 0}
    ),
    wire.REPORT: compact({"e": [{"n": 1, "k": "node", "t": "node", "b": {"labels": {"x": "y"}}}]}),
    wire.JOIN: compact({"token": "x", "csr": "x", "name": "edge-b"}),
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def content(h: Hub) -> tuple[int, dict[str, bytes]]:
    """All that the store holds, and its revision."""
    await h.gateway.upstream.settled()
    page = await h.store.page("", "\x7f", limit=10_000)
    return page.revision, {kv.key: kv.value for kv in page.items}


@contextlib.asynccontextmanager
async def fleet(pki: Pki) -> AsyncIterator[tuple[Hub, SimNode]]:
    """A hub with node A, connected, and everything that is not A's: see `OBJECTS`."""
    async with hub(pki, MemoryStore(slots=16)) as h:
        a = await place(h, "edge-a", "default", "tills")
        await place(h, "edge-b", "default", "tills")
        await place(h, "edge-c", "default", "signs")
        await place(h, "edge-d", "acme", "tills")
        for name, node in (
            ("own", "edge-a"),
            ("b", "edge-b"),
            ("c", "edge-c"),
            ("d", "edge-d"),
            ("free", ""),
        ):
            await h.create(PODS, pod(name, node, f"uid-{name}"))
            if node:
                await h.create(DEVICES, device(name, node, f"uid-{name}"))
        await h.create(CONFIGMAPS, configmap("settings", colour="red"))
        await h.create(SECRETS, {**configmap("key"), "kind": "Secret", "data": {"k": "c2VjcmV0"}})
        await h.connect(a)
        await until(lambda: len(a.docs) == 2 and h.gateway.peers["edge-a"].session._in_flight is None)  # type: ignore[union-attr]
        await until(lambda: h.gateway.node_entry("edge-d") and h.gateway.pod_entry("default", "d"))
        await until(lambda: h.share.devices.cache.get("default", "d"))
        assert await h.condition("edge-a", "Ready")
        yield h, a


async def place(h: Hub, name: str, tenant: str, pool: str) -> SimNode:
    node = new_node(NodeId(TRUST_DOMAIN, tenant, name, name), pool=pool)
    await h.reached(await h.registry.create(NODES, node))
    return h.sim(name)


OBJECTS = {
    "sibling": ["pod/default/b/uid-b", "node/edge-b", "device/default/b/uid-b"],
    "other-pool": ["pod/default/c/uid-c", "node/edge-c", "device/default/c/uid-c"],
    "other-tenant": ["pod/default/d/uid-d", "node/edge-d", "device/default/d/uid-d"],
    "cluster": [
        "configmap/default/settings",
        "secret/default/key",
        "lease/x/y",
        "",
    ],
    "absent": [
        "pod/default/free/uid-free",
        "pod/default/b/uid-old",
        "pod/default/none/u",
        "pod/../b/uid-b",
        "node/nobody",
        "pod/a/b",
        "device/default/b/uid-old",
        "device/default/none/u",
        "device/../b/uid-b",
        "device/a/b",
    ],
}


def test_every_case_of_the_table_comes_out_as_it_must() -> None:
    tried = cases()
    assert len(tried) >= 300
    wrong = [case for case in tried if case.passes(TABLE) != case.allowed]
    assert wrong == []


def test_a_table_that_differs_in_any_one_cell_fails_a_case() -> None:
    by_cell = {(c.kind, c.subject, c.relation): c for c in cases() if not c.oversize}
    unseen = []
    for cell in itertools.product(KINDS, SUBJECTS, RELATIONS):
        changed = Table(TABLE.allowed ^ {cell})
        case = by_cell[cell]
        if case.passes(changed) == case.allowed:
            unseen.append(cell)
    assert unseen == []


async def attempt(address: tuple[str, int], context: ssl.SSLContext, data: bytes) -> list[tuple[int, bytes]]:
    """Connects, sends, and returns what comes until the hub ends it."""
    got = b""
    writer = None
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=HUB_NAME)
            writer.write(data)
            while chunk := await reader.read(65536):
                got += chunk
    except (OSError, asyncio.IncompleteReadError):
        pass  # refused in the handshake, or reset
    finally:
        if writer is not None:
            writer.transport.abort()
    return [(kind, body) for kind, _, body in wire.Decoder().feed(got)]


async def test_no_forged_identity_gets_any_message_through(pki: Pki) -> None:
    async with fleet(pki) as (h, a):
        before, refused = await content(h), h.gateway.refusals.total
        gate = asyncio.Semaphore(8)
        failed: list[str] = []
        tried = 0

        async def one(name: str, context: ssl.SSLContext, kind: int) -> None:
            async with gate:
                body = BODIES.get(kind, b"")
                said = await attempt(
                    h.address, context, wire.frame(wire.HELLO, BODIES[wire.HELLO]) + wire.frame(kind, body)
                )
            codes = [json.loads(body)["code"] for kind, body in said if kind == wire.GOAWAY]
            if len(codes) != len(said) or not set(codes) <= {"denied"}:
                failed.append(f"{name}, {wire.NAMES.get(kind, kind)}: {said}")

        async with asyncio.TaskGroup() as group:
            for forgery in forgeries("edge-a"):
                context = context_of(pki, forgery)
                for kind in KINDS_SENT:
                    tried += 1
                    group.create_task(one(forgery.name, context, kind))
        assert failed == []
        assert tried >= 300 and h.gateway.refusals.total - refused == tried, "each was counted"
        assert h.gateway.peers["edge-a"].conn is not None and a.goaway is None
        assert await content(h) == before
        counted = Counter[str]()
        for (kind, _, _), n in h.gateway.refusals.counts.items():
            counted[kind] += int(n)
        assert {"hub", "relay", "user", "unverified"} <= counted.keys()


KINDS_SENT = (wire.HELLO, wire.PING, wire.PAIRS, wire.ACK, wire.REPORT, wire.DATA, wire.RENEW, wire.JOIN)


async def test_a_revoked_node_or_certificate_gets_no_message_through(pki: Pki) -> None:
    async with fleet(pki) as (h, a):
        await place(h, "edge-r", "default", "tills")
        await place(h, "edge-s", "default", "tills")
        one, two = pki.client("edge-r"), pki.client("edge-s")
        serial = await serial_shown(h, two)
        before, refused = await content(h), h.gateway.refusals.total
        later = time.time() + 60
        h.gateway.revoked.put("r", Entry(REVOKED_NODE, "edge-r", later, "", later))
        h.gateway.revoked.put("s", Entry(REVOKED_SERIAL, serial, later, "", later))
        for context, kind in itertools.product((one, two), KINDS_SENT):
            data = wire.frame(wire.HELLO, BODIES[wire.HELLO]) + wire.frame(kind, BODIES.get(kind, b""))
            said = await attempt(h.address, context, data)
            assert [json.loads(body)["code"] for _, body in said] == ["revoked"], (kind, said)
        assert h.gateway.refusals.total - refused == 2 * len(KINDS_SENT)
        assert h.gateway.refusals.counts[("node", "connect", "revoked")] == 2 * len(KINDS_SENT)
        assert await content(h) == before and a.goaway is None


async def serial_shown(h: Hub, context: ssl.SSLContext) -> str:
    """The serial number, as the hub sees it, of the certificate that a client shows."""
    _, writer = await asyncio.open_connection(*h.address, ssl=context, server_hostname=HUB_NAME)
    await until(lambda: any(p.identity and p.identity.node == "edge-s" for p in h.gateway.everyone))
    found = next(p for p in h.gateway.everyone if p.identity and p.identity.node == "edge-s")
    writer.transport.abort()
    await until(lambda: found not in h.gateway.everyone)
    return found.shown.serial


async def test_a_stranger_and_a_node_get_no_message_through_that_is_not_theirs(pki: Pki) -> None:
    async with fleet(pki) as (h, a):
        before, refused = await content(h), h.gateway.refusals.total
        tried = 0
        nobody = pki.client(None)
        for kind in MESSAGES:
            if wire.NAMES.get(kind) in ("BUNDLE", "JOIN", "GOAWAY"):
                continue
            tried += 1
            said = await attempt(h.address, nobody, wire.frame(kind, BODIES.get(kind, b"")))
            assert [k for k, _ in said] == [wire.GOAWAY], (kind, said)
            assert json.loads(said[0][1])["code"] == "denied"
        for kind in (wire.BUNDLE, wire.GOAWAY, wire.JOIN):
            tried += 1
            said = await attempt(h.address, nobody, wire.message(kind, b"x" * (1 << 20)))
            assert [json.loads(body)["code"] for _, body in said] == ["frame"]
        for kind in MESSAGES:
            if kind in NODE_SAYS:
                continue
            tried += 1
            a.send(kind, BODIES.get(kind, b""))
            await until(lambda: a.goaway is not None)
            assert a.goaway is not None and a.goaway["code"] == "denied", kind
            await until(lambda: a.closed)
            await h.connect(a)
        for kind in (wire.PING, wire.CREDIT, wire.BUNDLE, wire.CLOSE, wire.NACK, wire.RENEW):
            tried += 1
            a.send(kind, b" " * 20_000)
            await until(lambda: a.goaway is not None)
            assert a.goaway is not None and a.goaway["code"] == "frame", kind
            await h.connect(a)
        assert h.gateway.refusals.total - refused == tried, h.gateway.refusals.counts
        assert await content(h) == before


async def test_a_node_reaches_nothing_of_another_node_pool_tenant_or_the_cluster(pki: Pki) -> None:
    async with fleet(pki) as (h, a):
        before, counts = await content(h), dict(h.gateway.refusals.counts)
        expected = Counter[tuple[str, str, str]]()
        numbers: list[int] = []
        bodies: dict[str, Any] = {
            "pod": running_status(), "gone": {}, "event": {"reason": "R", "message": "m"},
            "token": {"want": [["v", 0]]}, "node": {"labels": {"kubernetes.io/os": "linux"}},
            "twin": {"gen": 1, "r": {"temperature": [[1, 20]]}},
        }  # fmt: skip
        for (relation, keys), (entry, body) in itertools.product(OBJECTS.items(), bodies.items()):
            for key in keys:
                numbers.append(a.report(entry, key, body))
                expected[("node", entry, relation)] += 1
        # What is the node's own, and no device: an entry of one kind about an object of another.
        for entry, key in (("twin", "pod/default/own/uid-own"), ("pod", "device/default/own/uid-own")):
            numbers.append(a.report(entry, key, bodies[entry]))
            expected[("node", entry, "absent")] += 1
        for relation, name in (
            ("sibling", "b"),
            ("other-pool", "c"),
            ("other-tenant", "d"),
            ("absent", "free"),
        ):
            numbers.append(a.report("static", f"static/default/{name}", {"gone": True}))
            expected[("node", "static", relation)] += 1
        numbers.append(a.report("lease", "node", {}))
        expected[("node", "lease", "unknown")] += 1
        for relation, keys in OBJECTS.items():
            for key in keys:
                a.send(wire.ACK, {"a": [[key, "0" * 32]]})
                a.send(wire.NACK, {"k": key, "v": "", "reason": "R", "message": "m"})
                expected[("node", "ACK", relation)] += 1
                expected[("node", "NACK", relation)] += 1
        for stream in (1, 3, 5):
            a.send(wire.DATA, b"x", stream)
            a.send(wire.CREDIT, {"c": 1000}, stream)
            a.send(wire.CLOSE, {}, stream)
            for name in ("DATA", "CREDIT", "CLOSE"):
                expected[("node", name, "absent")] += 1
        a.ping()
        await until(lambda: a.pongs == 1)
        await until(lambda: all(n in a.stored for n in numbers))
        assert all(a.stored[n] for n in numbers), "each was refused"
        grown = {
            k: n - counts.get(k, 0) for k, n in h.gateway.refusals.counts.items() if n != counts.get(k, 0)
        }
        assert grown == dict(expected)
        assert await content(h) == before and a.goaway is None


async def test_pairs_that_name_anothers_pods_are_counted_and_get_nothing_but_a_del(pki: Pki) -> None:
    async with fleet(pki) as (h, a):
        before = await content(h)
        for relation in ("sibling", "other-pool", "other-tenant"):
            a.docs[OBJECTS[relation][0]] = "0" * 32
        await h.connect(a)
        await until(lambda: a.synced == 1 and len(a.docs) == 2)
        assert a.dels == 3 and a.sets == 0
        counted = {key for key in h.gateway.refusals.counts if key[1] == "PAIRS"}
        assert counted == {("node", "PAIRS", r) for r in ("sibling", "other-pool", "other-tenant")}
        assert await content(h) == before


async def test_a_renewal_names_who_asks_whatever_the_request_says(pki: Pki) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    async with fleet(pki) as (h, _):
        names = [x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{path}") for path in
                 ("node/default/edge-b/edge-b", "hub/hub-0", "node/acme/edge-a/edge-a", "user/admin")]  # fmt: skip
        for name in (*names, x509.DNSName(HUB_NAME)):
            request = (
                x509.CertificateSigningRequestBuilder()
                .subject_name(x509.Name([]))
                .add_extension(x509.SubjectAlternativeName([name]), critical=False)
                .sign(pki.key, hashes.SHA256())
                .public_bytes(serialization.Encoding.PEM)
                .decode()
            )
            _, body = h.gateway.joining.renew(h.gateway.peers["edge-a"].identity, request, None)  # type: ignore[arg-type]
            cert = x509.load_pem_x509_certificate(orjson.loads(body)["cert"].encode())
            san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert [n.value for n in san] == [f"spiffe://{TRUST_DOMAIN}/node/default/edge-a/edge-a"]
