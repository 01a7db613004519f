"""What nodes get of their pods' namespaces: bounded, shared by all of them, and never taken away unread."""

from collections.abc import Callable

import orjson
import pytest

from hub import spaces
from hub.cache import by_namespace
from hub.documents import Document, Layers
from hub.mirror import Mirror
from hub.objects import ENDPOINTSLICES, SERVICES, SHARED, ObjectView, Resource
from hub.spaces import Spaces


class Kind(Mirror[ObjectView]):
    """`hub.spaces.Namespaced` by hand: nothing is known before `read`."""

    def __init__(self, res: Resource) -> None:
        super().__init__(res, {"namespace": by_namespace})
        self.used: set[str] = set()
        self.read_spaces: set[str] = set()
        self.handlers: list[Callable[[str], None]] = []
        self.at = 0

    def use(self, namespace: str) -> None:
        assert namespace not in self.used
        self.used.add(namespace)

    def release(self, namespace: str) -> None:
        self.used.remove(namespace)
        self.read_spaces.discard(namespace)
        for entry in self.cache.find("namespace", namespace):
            self.cache.drop(entry.key)

    def known(self, namespace: str) -> bool:
        return namespace in self.read_spaces

    def waits(self, namespace: str) -> bool:
        return namespace in self.used and not self.known(namespace)

    def on_read(self, handler: Callable[[str], None]) -> Callable[[], None]:
        self.handlers.append(handler)
        return lambda: self.handlers.remove(handler)

    def read(self, namespace: str) -> None:
        self.read_spaces.add(namespace)
        for handler in self.handlers:
            handler(namespace)

    def put(self, namespace: str, name: str, port: int = 80) -> None:
        self.at += 1
        obj = {"metadata": {"name": name, "namespace": namespace}, "spec": {"ports": [{"port": port}]}}
        entry = self.cache.entry((namespace, name), SHARED, self.at, orjson.dumps(obj))
        self.advance(self.set_state((namespace, name), entry, self.at), self.at)

    def drop(self, namespace: str, name: str) -> None:
        self.at += 1
        self.advance(self.set_state((namespace, name), None, self.at), self.at)


class World:
    def __init__(self) -> None:
        self.services, self.slices = Kind(SERVICES), Kind(ENDPOINTSLICES)
        self.told: list[tuple[str, str]] = []
        self.spaces = Spaces(
            (self.services, self.slices),
            lambda node, key: self.told.append((node, key)),
            lambda revision: None,
            lambda version, body: None,
        )
        self.spaces.start()

    def read(self, *namespaces: str) -> None:
        for namespace in namespaces:
            self.services.read(namespace)
            self.slices.read(namespace)

    def take(self) -> list[tuple[str, str]]:
        told, self.told = self.told, []
        return sorted(told)

    def of(self, node: str) -> list[str]:
        return sorted(self.spaces.of(node, {}))


@pytest.fixture
def world() -> World:
    return World()


def test_a_node_gets_what_lies_in_its_pods_namespaces_and_the_api_servers_service(world: World) -> None:
    world.spaces.use("shop", "n1")
    world.spaces.use("shop", "n1")
    world.read("shop", "default")
    world.services.put("shop", "web")
    world.slices.put("shop", "web-1")
    world.services.put("default", "kubernetes")
    world.services.put("default", "other")
    want = ["endpointslice/shop/web-1", "service/default/kubernetes", "service/shop/web"]
    assert world.of("n1") == want and world.of("n2") == []
    assert world.take() == [("n1", key) for key in want]
    world.services.put("shop", "web")
    assert world.take() == [], "the same document is told once"
    world.services.put("shop", "web", 81)
    assert world.take() == [("n1", "service/shop/web")]
    world.services.drop("shop", "web")
    assert world.take() == [("n1", "service/shop/web")] and "service/shop/web" not in world.of("n1")
    world.spaces.use("default", "n1")
    assert world.take() == [("n1", "service/default/kubernetes"), ("n1", "service/default/other")]
    world.spaces.unuse("default", "n1", True)
    assert world.take() == [("n1", "service/default/other")], "the API server's is still wanted"
    world.spaces.unuse("shop", "n1", True)
    assert world.take() == [], "another pod is there"
    world.spaces.unuse("shop", "n1", True)
    assert world.take() == [("n1", "endpointslice/shop/web-1"), ("n1", "service/default/kubernetes")]
    assert world.of("n1") == [] and world.services.used == set()


def test_nodes_of_one_namespace_share_its_documents(world: World) -> None:
    world.services.put("shop", "web")
    for i in range(3):
        world.spaces.use("shop", f"n{i}")
    world.services.put("shop", "web", 81)
    own: dict[str, Document] = {}
    found = [world.spaces.of(f"n{i}", own) for i in range(3)]
    assert all(isinstance(one, Layers) for one in found)
    assert len({id(one["service/shop/web"]) for one in found}) == 1
    assert world.spaces.of("elsewhere", own) is own


def test_a_pod_waits_until_its_namespace_and_that_of_the_api_server_are_read(world: World) -> None:
    world.spaces.use("shop", "n1")
    key = "pod/shop/till/u"
    assert world.spaces.hold("shop", "n1", key) and not world.spaces.ready("n1")
    world.read("shop")
    assert world.take() == [] and not world.spaces.ready("n1")
    world.read("default")
    assert world.take() == [("n1", key)] and world.spaces.ready("n1")
    assert not world.spaces.hold("shop", "n1", key)


def test_nothing_that_was_not_read_is_taken_away(world: World) -> None:
    world.spaces.use("shop", "n1")
    for key in ("service/shop/web", "service/default/kubernetes"):
        assert world.spaces.withhold("n1", key)
    assert not world.spaces.withhold("n1", "service/bank/vault"), "its namespace has no pods there"
    assert not world.spaces.withhold("n2", "service/shop/web")
    world.services.read("shop")
    assert world.take() == [("n1", "service/shop/web")], "now it may be said that it is gone"
    assert not world.spaces.withhold("n1", "service/shop/web")
    assert world.spaces.withhold("n1", "endpointslice/shop/web-1")


def test_of_a_large_namespace_the_first_by_name_are_told_and_the_others_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spaces, "NAMES_MAX", 2)
    world.spaces.use("default", "n1")
    for name in ("b", "kubernetes", "a", "c"):
        world.services.put("default", name)
    assert world.of("n1") == ["service/default/a", "service/default/kubernetes"]
    assert world.spaces.left_out == 2 and caplog.text.count("are told to edge nodes") == 1
    world.take()
    world.services.drop("default", "a")
    assert world.of("n1") == ["service/default/b", "service/default/kubernetes"]
    assert world.take() == [("n1", "service/default/a"), ("n1", "service/default/b")]


def test_a_node_that_is_anothers_is_told_nothing(world: World) -> None:
    world.spaces.use("shop", "n1")
    world.services.put("shop", "web")
    world.take()
    world.spaces.unuse("shop", "n1", False)
    assert world.take() == [] and world.services.used == set()
