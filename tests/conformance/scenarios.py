"""What an agent has to do on every platform: the one list. Each scenario is carried out for all nodes at once, in this order, by
`tests.conformance.suite`, against one real hub; `before` and `after` are of the hub and run once.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelite import credentials, p256, wire
from security.ca import CertificateAuthority
from security.identity import parse
from tests.conformance.platforms import Node
from tests.e2e.cluster import ApiFailure, Hub, wait_for
from tests.e2e.observe import figures
from tests.e2e.rawpeer import play_hub
from tests.edgelite import scripted_hub

PODS = "/api/v1/namespaces/default/pods"
WAIT_S = 90.0
"""For one thing to come about on a busy machine."""
RESUMED_BYTES_MAX = 2500
"""The hub sends at most this to a node that comes back with what it should have; a document of these tests is larger."""
UNHEARD_OF = 200
HEAP_PODS, HEAP_PAD, HEAP_BYTES_MAX = 5, "x" * 250, 40 << 10
CUTS = 1000
"""Of the power, on each kind of disk."""


class World:
    """The hub, and what the scenarios share. full: everything, instead of a part of it."""

    def __init__(self, root: Path, full: bool, seed: int) -> None:
        # A journal that is cut again and again within seconds forgets which connections it has made: as two machines would.
        self.hub = Hub(root / "hub", clone_backoff="1s")
        self.full = full
        self.dice = random.Random(seed)
        self.nodes: list[Node] = []
        self.hostile: Hostile | None = None
        self.before: dict[str, float] = {}
        self._lock = threading.Lock()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        with self._lock:  # one connection serves all
            return self.hub.api(method, path, body)

    def figures(self) -> dict[str, float]:
        with self._lock:
            return figures(self.hub)

    def until(self, node: Node, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of `condition`; on failure the node's log is shown."""
        detail = lambda: f"log of {node.platform}: {node.log()[-2500:]}"  # noqa: E731
        return wait_for(condition, f"{node.platform}: {what}", WAIT_S, detail)

    def is_ready(self, node: Node) -> bool:
        conditions = self.api("GET", f"/api/v1/nodes/{node.name}")["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def make_pod(self, node: Node, what: str, pad: str = "") -> str:
        """Makes a pod, and waits until it runs; its name. pad: makes its document larger."""
        name = f"{what}-{node.name}"
        pod = node.pod(name)
        pod["spec"]["containers"][0]["env"] = [{"name": "PAD", "value": pad or node.pad}]
        self.api("POST", PODS, pod)
        self.until(node, lambda: self.phase(name) == "Running", f"pod {name} runs")
        return name

    def phase(self, name: str) -> str:
        return str(self.api("GET", f"{PODS}/{name}")["status"].get("phase"))

    def restarts(self, name: str) -> int:
        status = self.api("GET", f"{PODS}/{name}")["status"]["containerStatuses"][0]
        return int(status["restartCount"])

    def all_connected(self) -> None:
        """Every node that has an agent is connected, and Ready."""
        running = [node for node in self.nodes if "run" not in node.lacks]
        for node in running:
            self.until(node, lambda node=node: self.is_ready(node), "the node is Ready")
        wait_for(
            lambda: self.figures()["nodes"] == len(running), f"{len(running)} nodes are connected", WAIT_S
        )


def nothing(world: World) -> None:
    """Nothing has to be done to the hub."""


@dataclass(frozen=True)
class Scenario:
    """needs: abilities without which a platform skips it."""

    name: str
    needs: tuple[str, ...]
    act: Callable[[World, Node], None]
    before: Callable[[World], None] = nothing
    after: Callable[[World], None] = nothing


# -- with the hub ----------------------------------------------------------------------------------------------------------


def enrol(world: World, node: Node) -> None:
    """With a token of its own it gets a certificate, and the hub knows its Node."""
    node.join(world.hub)
    assert world.api("GET", f"/api/v1/nodes/{node.name}")["metadata"]["name"] == node.name


def sync(world: World, node: Node) -> None:
    """It connects, gets what it should run, runs it and says so."""
    node.start()
    world.until(node, lambda: world.is_ready(node), "the node is Ready")
    world.make_pod(node, "first")


def heap(world: World, node: Node) -> None:
    """Connected and with five documents of 0.6 KB it keeps within the heap of a small board, the TLS connection apart."""
    names = [world.make_pod(node, f"heap{number}", HEAP_PAD) for number in range(HEAP_PODS)]
    for name in names:
        world.until(node, lambda name=name: node.runs(name), f"{name} runs")
    taken = node.heap_bytes()
    print(f"{node.platform}: {taken} bytes of heap are live")
    assert taken <= HEAP_BYTES_MAX, f"{taken} bytes are live"
    for name in names:
        world.api("DELETE", f"{PODS}/{name}")


def remember(world: World) -> None:
    world.before = world.figures()


def resume(world: World, node: Node) -> None:
    """Killed and started again it connects, and is sent nothing that it has."""
    node.kill()
    assert not node.alive()
    node.start()


def resumed(world: World) -> None:
    running = [node for node in world.nodes if "run" not in node.lacks]
    handshakes = world.before["handshakes"] + len(running)
    wait_for(lambda: world.figures()["handshakes"] >= handshakes, "all have come back", WAIT_S)
    world.all_connected()
    sent = world.figures()["bytes_out"] - world.before["bytes_out"]
    assert sent < RESUMED_BYTES_MAX * len(running), f"{sent:.0f} bytes for {len(running)} nodes"
    for node in running:
        if "keeps" not in node.lacks:
            assert world.restarts(f"first-{node.name}") == 0, f"{node.platform} has adopted what ran"


def update(world: World, node: Node) -> None:
    """What is wanted is another: the new pod runs, the old one is gone."""
    world.make_pod(node, "second")
    world.api("DELETE", f"{PODS}/first-{node.name}")

    def gone() -> bool:
        try:
            world.phase(f"first-{node.name}")
        except ApiFailure as failure:
            return failure.code == 404
        return False

    world.until(node, gone, "the first pod is gone")


# -- without the hub -------------------------------------------------------------------------------------------------------


def stop_hub(world: World) -> None:
    world.hub.stop()


def offline(world: World, node: Node) -> None:
    """Without its hub it says so, and goes on running what it has."""
    world.until(node, node.is_away, "it says that it is not connected")
    assert node.alive() and node.runs(f"second-{node.name}")


def reboot(world: World, node: Node) -> None:
    """The machine restarts, still without a hub: it runs what is in its journal."""
    node.reboot()
    node.start()
    world.until(node, lambda: node.runs(f"second-{node.name}"), "its pod runs again without a hub")


class Hostile:
    """In the hub's place, with its certificate: says what no hub says."""

    def __init__(self, hub: Hub, nodes: list[Node]) -> None:
        self._playing = play_hub(hub)
        self._played = self._playing.__enter__()
        self._come: dict[str, list[scripted_hub.Connection]] = {node.name: [] for node in nodes}
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="hostile-hub")
        self._thread.start()

    def _accept(self) -> None:
        self._played.listener.settimeout(0.2)
        while not self._closed:
            try:
                connection = self._played.accept()  # type: ignore[no-untyped-call]
                names = connection.channel.getpeercert()["subjectAltName"]
                self._come[parse(names[0][1]).node].append(connection)
            except OSError:  # nobody has come, or has gone at once
                continue

    def connection(self, node: str) -> Any:
        """The next one of this node, None while there is none."""
        return self._come[node].pop(0) if self._come[node] else None

    def close(self) -> None:
        self._closed = True
        self._thread.join(30)
        self._playing.__exit__(None, None, None)


def _too_long(connection: Any) -> None:
    connection.channel.sendall(bytes([wire.SET, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]))


def _garbage(connection: Any) -> None:
    connection.channel.sendall(bytes(random.Random(7).randrange(256) for _ in range(4096)))


def _no_json(connection: Any) -> None:
    connection.send(wire.SET, b"\x00\x02{]")


def _for_hubs(connection: Any) -> None:
    connection.send(wire.HELLO, {"proto": [1, 1]})


def _lie(connection: Any) -> None:
    header = b'{"k":"pod/default/evil/u9","v":"' + b"0" * 32 + b'","r":99}'
    connection.send(wire.SET, wire.set_body(header, b'{"kind":"Pod"}'))


def _welcome_again(connection: Any) -> None:
    connection.welcome(proto=9, claim=None)


def _endless(connection: Any) -> None:
    """A message that never ends, in as many frames as the agent takes."""
    frame = bytearray(wire.message(wire.SET, bytes(1024)))
    frame[1] |= wire.MORE
    for _ in range(1 << 15):
        connection.channel.sendall(bytes(frame))


HOSTILE: dict[str, Callable[[Any], None]] = {
    "a frame of 4 GiB": _too_long,
    "random bytes": _garbage,
    "a document without JSON": _no_json,
    "a message for hubs": _for_hubs,
    "a document of another version": _lie,
    "a second WELCOME": _welcome_again,
    "a message without an end": _endless,
}
SHORT = 2
"""So many of them for each platform, each other ones, when not all."""


def play(world: World) -> None:
    world.hostile = Hostile(world.hub, [node for node in world.nodes if "run" not in node.lacks])


def hostile(world: World, node: Node) -> None:
    """Whatever a hub says: the agent ends the connection or does as if nothing was said, goes on and comes back."""
    first = world.nodes.index(node) * SHORT
    names = list(HOSTILE)
    if "hurry" in node.lacks:
        first = 0  # after what breaks the protocol an agent comes back in half a minute
    chosen = names if world.full else [names[(first + n) % len(names)] for n in range(SHORT)]
    for what in chosen:
        _say(world, node, what)
    assert node.alive() and node.runs(f"second-{node.name}")


def _say(world: World, node: Node, what: str) -> None:
    assert world.hostile is not None
    node.hurry()
    connection = world.until(node, lambda: world.hostile.connection(node.name), f"it connects before {what}")  # type: ignore[union-attr]
    try:
        connection.channel.settimeout(WAIT_S)
        hello = connection.expect(wire.HELLO)
        connection.send(UNHEARD_OF, b"\xff\x00 not even JSON")
        claim = {**hello["claim"], "claim": hello["claim"]["id"]}
        connection.welcome(**{**claim, "rev": hello["rev"], "heartbeat": 1.0})
        try:
            HOSTILE[what](connection)
            ended = connection.ended()
        except OSError:  # it has gone while it was being told
            ended = True
        assert ended, f"{node.platform} goes on after {what}"
    finally:
        connection.close()


def start_hub(world: World) -> None:
    assert world.hostile is not None
    world.hostile.close()
    world.hostile = None
    world.hub.start()
    for node in world.nodes:
        if "run" not in node.lacks:
            node.hurry()
    world.all_connected()
    for node in world.nodes:
        if "pods" not in node.lacks:
            world.until(
                node, lambda node=node: world.phase(f"second-{node.name}") == "Running", "its pod runs"
            )


# -- what is on the disk ---------------------------------------------------------------------------------------------------


def cut(world: World, node: Node) -> None:
    """Its journal cut at every byte can be read; the agent starts on a cut one, and has in the end what it should."""
    node.kill()
    journal = node.data_dir / "journal"
    whole = journal.read_bytes()
    stride = 1 if world.full else 97
    assert node.every_cut(stride) == len(range(0, len(whole) + 1, stride))
    for _ in range(8 if world.full else 1):
        journal.write_bytes(whole[: world.dice.randrange(len(whole))])
        node.start()
        world.until(node, lambda: world.is_ready(node) and node.alive(), "the node is Ready")
        name = world.make_pod(node, f"cut{world.dice.randrange(1 << 30)}")
        world.until(node, lambda: node.runs(f"second-{node.name}"), "what it lost runs")
        assert node.runs(name)
        node.kill()
        whole = journal.read_bytes()
    node.start()


def expired(world: World, node: Node) -> None:
    """Its certificate has ended while it was off: it is taken back, and gets another."""
    node.kill()
    path = node.data_dir / "identity.pem"
    private = p256.private_from_pem(path.read_text())
    identity = parse(credentials.certificate(str(node.data_dir)).uris[0])
    authority = CertificateAuthority.open(str(world.hub.data_dir / "ca"), identity.trust_domain)
    chain = authority.issue_node(p256.request_pem(private, node.name), identity, time.time() - 3, 2)
    path.write_text(chain + p256.private_pem(private))
    assert credentials.certificate(str(node.data_dir)).not_after < time.time()
    node.start()
    later = lambda: credentials.certificate(str(node.data_dir)).not_after > time.time() + 60  # noqa: E731
    world.until(node, later, "it has a new certificate")
    world.make_pod(node, "returned")


def power_cuts(world: World, node: Node) -> None:
    """Power cuts while its journal is written and compacted, on every kind of disk: nothing that was committed is lost, nothing torn
    is read."""
    cuts = CUTS if world.full else CUTS // 50
    found = node.power_cuts(cuts, world.dice.randrange(1 << 30) if world.full else 1)
    assert [one["cuts"] for one in found] == [cuts] * 4
    for one in found:
        assert one["by"]["compacting"] and one["by"]["writing"], one


SCENARIOS = (
    Scenario("enrol", ("join",), enrol),
    Scenario("sync", ("run", "pods"), sync),
    Scenario("heap", ("run", "heap"), heap),
    Scenario("resume", ("run", "pods"), resume, remember, resumed),
    Scenario("update", ("run", "pods"), update),
    Scenario("offline", ("run", "pods"), offline, stop_hub),
    Scenario("reboot", ("run", "pods"), reboot),
    Scenario("hostile hub", ("run", "pods"), hostile, play, start_hub),
    Scenario("journal cut", ("run", "pods"), cut),
    Scenario("expired", ("run", "renew"), expired),
    Scenario("power cuts", (), power_cuts),
)
