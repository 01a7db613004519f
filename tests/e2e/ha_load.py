"""Pods and ConfigMaps that change all the time, and the memory of what the API acknowledged.

Each thread has objects of its own, so that what it expects of them is a sequence. A name is never used twice. What was
cut off is resolved by reading; a creation that was cut off may still be carried out by a replica that is frozen now,
which is no fault: such names are `ambiguous`, and one that was deleted may come back.
"""

import dataclasses
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.e2e.ha_api import AnyReplica, NotAnswered

NAMESPACE = "default"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CONFIGMAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
MARK = "load.example.com/value"
PODS_EACH_MAX = 60
CONFIGMAPS_EACH = 4


@dataclasses.dataclass(slots=True)
class Kept:
    """An object as acknowledged."""

    path: str
    name: str
    uid: str
    value: int
    deleted: str = ""
    """How its deletion was answered; "" where nobody has asked for it."""


@dataclasses.dataclass(slots=True)
class Record:
    """What the load did: acknowledged writes by kind of operation, objects by path, UIDs that it wanted deleted."""

    acknowledged: Counter[str] = dataclasses.field(default_factory=Counter)
    objects: dict[str, Kept] = dataclasses.field(default_factory=dict)
    wanted_gone: set[str] = dataclasses.field(default_factory=set)
    ambiguous: set[str] = dataclasses.field(default_factory=set)
    conflicts: int = 0
    troubles: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest_s: float = 0.0
    given_up: list[str] = dataclasses.field(default_factory=list)

    def take(self, other: "Record") -> None:
        self.acknowledged += other.acknowledged
        self.objects |= other.objects
        self.wanted_gone |= other.wanted_gone
        self.ambiguous |= other.ambiguous
        self.conflicts += other.conflicts
        self.troubles += other.troubles
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.given_up += other.given_up


class HaLoad:
    """`threads` clients until `stop`. `patience_s`: how long one write may go unanswered before it is a failure."""

    def __init__(
        self,
        client: Callable[[random.Random], AnyReplica],
        nodes: Sequence[str],
        *,
        seed: int,
        threads: int = 3,
        patience_s: float = 120.0,
        pause_s: float = 0.05,
        pods_max: int = PODS_EACH_MAX,
        selector: dict[str, str] | None = None,
    ) -> None:
        """`selector`: of nodes on which the scheduler may put pods; None: every pod names its node."""
        self._stop = threading.Event()
        self._workers = [
            _Worker(
                f"w{n}", client(random.Random(seed * 1000 + n)), random.Random(seed * 2000 + n), nodes,
                self._stop, patience_s, pause_s, pods_max, selector,
            )
            for n in range(threads)
        ]  # fmt: skip
        self._threads = [threading.Thread(target=w.run, name=w.name, daemon=True) for w in self._workers]

    def start(self) -> "HaLoad":
        for thread in self._threads:
            thread.start()
        return self

    @property
    def writes(self) -> int:
        return sum(w.record.acknowledged.total() for w in self._workers)

    @property
    def failure(self) -> BaseException | None:
        return next((w.failure for w in self._workers if w.failure is not None), None)

    def stop(self, seconds: float = 180.0) -> Record:
        """Ends the load after each thread's present operation. Raises what a thread ended with."""
        self._stop.set()
        whole = Record()
        for thread, worker in zip(self._threads, self._workers, strict=True):
            thread.join(seconds)
            assert not thread.is_alive(), f"{worker.name} does not stop"
            if worker.failure is not None:
                raise worker.failure
            worker.record.troubles = worker.client.troubles
            worker.record.slowest_s = worker.client.slowest_s
            whole.take(worker.record)
        return whole


class _Worker:
    def __init__(
        self, name: str, client: AnyReplica, rng: random.Random, nodes: Sequence[str], stop: threading.Event,
        patience_s: float, pause_s: float, pods_max: int, selector: dict[str, str] | None,
    ) -> None:  # fmt: skip
        self.name, self.client, self.record = name, client, Record()
        self.failure: BaseException | None = None
        self._rng, self._nodes, self._stop = rng, list(nodes), stop
        self._patience_s, self._pause_s, self._pods_max, self._selector = (
            patience_s,
            pause_s,
            pods_max,
            selector,
        )
        self._count = 0

    def run(self) -> None:
        try:
            for _ in range(CONFIGMAPS_EACH):
                self._create_config()
            while not self._stop.is_set():
                self._one()
                time.sleep(self._pause_s * self._rng.random() * 2)
        except NotAnswered as late:
            self.record.given_up.append(str(late))
            self.failure = late
        except BaseException as failure:
            self.failure = failure
        finally:
            self.client.close()

    def _one(self) -> None:
        pods = self._alive(PODS)
        chance = self._rng.random()
        if not pods or (chance < 0.4 and len(pods) < self._pods_max):
            self._create_pod()
        elif chance < 0.6:
            self._delete(self._rng.choice(pods))
        elif chance < 0.8:
            self._change(self._rng.choice(pods))
        else:
            self._change(self._rng.choice(self._alive(CONFIGMAPS)))

    def _alive(self, path: str) -> list[Kept]:
        return [o for o in self.record.objects.values() if not o.deleted and o.path.startswith(path + "/")]

    # Operations

    def _create_pod(self) -> None:
        name = self._name("pod")
        config = self._rng.choice(self._alive(CONFIGMAPS)).name
        spec: dict[str, Any] = {
            "terminationGracePeriodSeconds": 1,
            # As an API server of Kubernetes wants it, too.
            "automountServiceAccountToken": False,
            "containers": [
                {"name": "main", "image": "none", "command": ["/bin/sh", "-c", "exec sleep 100000"]}
            ],
            "volumes": [{"name": "settings", "configMap": {"name": config}}],
        }
        if self._selector is not None and self._rng.random() < 0.3:
            spec["nodeSelector"] = self._selector
        else:
            spec["nodeName"] = self._rng.choice(self._nodes)
        labels = {"cloudhub.dev/runtime": "process", "load": self.name}
        metadata = {"name": name, "labels": labels, "annotations": {MARK: "0"}}
        self._create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def _create_config(self) -> None:
        metadata = {"name": self._name("config"), "annotations": {MARK: "0"}}
        data = {"value": "0"}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        self._create(CONFIGMAPS, body)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self.name}-{kind}-{self._count}"

    def _create(self, path: str, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        where = f"{path}/{name}"
        answer = self.client.send("POST", path, body, seconds=self._patience_s)
        obj = answer.body
        if answer.repeated:
            self.record.ambiguous.add(where)
        if answer.code == 409 and answer.repeated:
            obj = self._read(where)
            assert obj is not None, f"{where} exists, and then it does not"
        elif answer.code not in (200, 201):
            raise AssertionError(f"POST {where}: {answer.code} {answer.body}")
        self.record.objects[where] = Kept(where, name, obj["metadata"]["uid"], 0)
        self.record.acknowledged["create"] += 1

    def _change(self, kept: Kept) -> None:
        """Writes the next value under the resourceVersion that was read, until one such write is known to be there."""
        value = kept.value + 1
        deadline = time.monotonic() + self._patience_s
        while True:
            if time.monotonic() > deadline:
                raise NotAnswered(f"{kept.path} could not be changed in {self._patience_s:g} s")
            obj = self._read(kept.path)
            assert obj is not None, f"{kept.path} was acknowledged and is not there"
            assert obj["metadata"]["uid"] == kept.uid, f"{kept.path} is another object than was acknowledged"
            held = int(obj["metadata"]["annotations"][MARK])
            assert held in (kept.value, value), f"{kept.path} holds {held}; acknowledged was {kept.value}"
            if held == value:
                break
            patch: dict[str, Any] = {
                "metadata": {
                    "resourceVersion": obj["metadata"]["resourceVersion"], "annotations": {MARK: str(value)},
                }
            }  # fmt: skip
            if kept.path.startswith(CONFIGMAPS):
                patch["data"] = {"value": str(value)}
            answer = self.client.send(
                "PATCH",
                kept.path,
                patch,
                seconds=self._patience_s,
                content_type="application/merge-patch+json",
            )
            if answer.code == 200:
                assert answer.body["metadata"]["annotations"][MARK] == str(value), answer.body
                break
            if answer.code != 409:
                raise AssertionError(f"PATCH {kept.path}: {answer.code} {answer.body}")
            self.record.conflicts += 1
        kept.value = value
        self.record.acknowledged["change"] += 1

    def _delete(self, kept: Kept) -> None:
        self.record.wanted_gone.add(kept.uid)
        body = {"preconditions": {"uid": kept.uid}, "gracePeriodSeconds": self._rng.choice([0, 1, 1, 1])}
        deadline = time.monotonic() + self._patience_s
        while True:
            answer = self.client.send("DELETE", kept.path, body, seconds=self._patience_s)
            if answer.code in (200, 202):
                break
            if answer.code not in (404, 409) or not answer.repeated:
                raise AssertionError(f"DELETE {kept.path}: {answer.code} {answer.body}")
            # An earlier try may have done it; or none has, and others who write to it have had their way each time.
            obj = self._read(kept.path)
            if obj is None or obj["metadata"]["uid"] != kept.uid or obj["metadata"].get("deletionTimestamp"):
                break
            if answer.code == 404 or time.monotonic() > deadline:
                raise AssertionError(
                    f"DELETE {kept.path}: {answer.code} {answer.body}, and it is there: {obj}"
                )
            self.record.conflicts += 1
        kept.deleted = f"{answer.code}{' after other tries' if answer.repeated else ''} by {answer.port}"
        self.record.acknowledged["delete"] += 1

    def _read(self, path: str) -> Any:
        return self.client.get(path, self._patience_s)


def unkept(record: Record, pods: Sequence[Any], configs: Sequence[Any]) -> list[str]:
    """Acknowledged writes that the store does not show: sentences. Deleted pods have to be gone by now."""
    found: list[str] = []
    there = {f"{PODS}/{o['metadata']['name']}": o for o in pods}
    there |= {f"{CONFIGMAPS}/{o['metadata']['name']}": o for o in configs}
    for path, kept in record.objects.items():
        obj = there.get(path)
        if kept.deleted:
            if obj is not None and obj["metadata"]["uid"] == kept.uid:
                found.append(f"{path} was deleted ({kept.deleted}) and is still there: {obj['metadata']}")
            elif obj is not None and path not in record.ambiguous:
                found.append(f"{path} was deleted and is there again, as {obj['metadata']['uid']}")
        elif obj is None:
            found.append(f"{path} (UID {kept.uid}) was acknowledged and is gone")
        elif obj["metadata"]["uid"] != kept.uid:
            found.append(f"{path} was acknowledged with UID {kept.uid}, it has {obj['metadata']['uid']}")
        elif obj["metadata"]["annotations"].get(MARK) != str(kept.value):
            held = obj["metadata"]["annotations"].get(MARK)
            found.append(f"{path} was acknowledged with value {kept.value}, it has {held}")
    return found
