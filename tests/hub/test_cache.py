import orjson

from hub.cache import Cache, Entry, by_namespace, by_node, by_owner
from hub.objects import PODS, PodView
from hub.share import placed


def cache() -> Cache[PodView]:
    return Cache(PODS, {"namespace": by_namespace, "owner": by_owner, "node": by_node})


def entry(
    held: Cache[PodView], name: str, *, node: str = "", owner: str = "", revision: int = 1, pad: int = 0
) -> Entry[PodView]:
    meta = {"name": name, "namespace": "d", "uid": name, "annotations": {"pad": "x" * pad}}
    if owner:
        meta["ownerReferences"] = [{"uid": owner}]  # type: ignore[assignment]
    raw = orjson.dumps({"metadata": meta, "spec": {"nodeName": node, "unknown": [1]}})
    return held.entry(("d", name), "-", revision, raw)


def test_an_entry_gives_back_the_bytes_that_it_was_made_of() -> None:
    held = cache()
    for pad in (0, 5000):
        made = entry(held, "p", pad=pad, revision=7)
        obj = orjson.loads(made.raw())
        assert obj["metadata"]["annotations"]["pad"] == "x" * pad
        assert obj["spec"]["unknown"] == [1]
        assert "resourceVersion" not in obj["metadata"]
        assert made.obj()["metadata"]["resourceVersion"] == "7"


def test_large_objects_are_kept_compressed() -> None:
    assert entry(cache(), "p", pad=100_000).size < 1000


def test_an_object_returned_may_be_changed_without_harm() -> None:
    made = entry(cache(), "p")
    made.obj()["metadata"]["name"] = "other"
    assert made.obj()["metadata"]["name"] == "p"


def test_indexes_follow_an_object_as_it_changes_and_leaves() -> None:
    held = cache()
    assert held.put(entry(held, "p", node="n1", owner="o1")) is None
    assert [e.key for e in held.find("node", "n1")] == [("d", "p")]
    assert held.put(entry(held, "p", node="n2", owner="o1", revision=2)) is not None
    assert held.find("node", "n1") == []
    assert held.values("node") == ["n2"]
    assert [e.revision for e in held.find("owner", "o1")] == [2]
    assert held.drop(("d", "p")) is not None
    assert held.drop(("d", "p")) is None
    assert held.values("node") == held.values("owner") == held.values("namespace") == []
    assert len(held) == 0


def test_iteration_survives_changes_of_the_cache() -> None:
    held = cache()
    for name in ("a", "b", "c"):
        held.put(entry(held, name))
    for found in held:
        held.drop(found.key)
    assert len(held) == 0


def test_a_slim_cache_keeps_less_of_the_view_and_all_of_the_bytes() -> None:
    held: Cache[PodView] = Cache(PODS, {"node": by_node}, slim=placed)
    raw = {
        "metadata": {
            "name": "p",
            "namespace": "d",
            "uid": "u",
            "labels": {"a": "b"},
            "deletionTimestamp": "t",
        },
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    made = held.entry(("d", "p"), "0001", 1, orjson.dumps(raw))
    held.put(made)
    (found,) = held.find("node", "n")
    assert (found.meta.uid, found.meta.name, found.meta.deletionTimestamp) == ("u", "p", "t")
    assert (found.meta.labels, found.view.status.conditions) == (None, None)
    assert orjson.loads(found.raw()) == raw
