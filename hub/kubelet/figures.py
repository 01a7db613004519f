"""What a kubelet tells about its node's pods: /pods, /metrics/resource and /stats/summary. [pure]

cpu and memory are what the node's agent has just told; where it tells nothing there are starts alone, and
`resource_scrape_error` says so. Names and types: Kubernetes, "Node metrics data", /metrics/resource and Summary API.
"""

import datetime
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

Object = Mapping[str, Any]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def pod_list(pods: Iterable[Object]) -> dict[str, Any]:
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(pods)}


class Used(msgspec.Struct, frozen=True):
    """`cpu_ns`: since the container's or the machine's start; `memory`: its working set, bytes."""

    cpu_ns: int
    memory: int

    def __add__(self, other: "Used") -> "Used":
        return Used(self.cpu_ns + other.cpu_ns, self.memory + other.memory)


class _Told(msgspec.Struct, frozen=True):
    """What an agent tells (ARCHITECTURE.md, "Usage")."""

    at: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
    containers: tuple[tuple[str, str, Count, Count], ...]
    node: tuple[Count, Count] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """`at`: unix seconds by the node's clock; `containers`: by (the pod's UID at the edge, container)."""

    at: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
    node: Used | None
    containers: Mapping[tuple[str, str], Used]


_told = msgspec.json.Decoder(_Told).decode


def usage_of(raw: bytes) -> Usage:
    """From the bytes that an agent sent. Raises msgspec.MsgspecError."""
    told = _told(raw)
    containers = {(uid, name): Used(cpu, memory) for uid, name, cpu, memory in told.containers}
    return Usage(told.at, Used(*told.node) if told.node is not None else None, containers)


@dataclass(frozen=True, slots=True)
class NodePod:
    """A pod as the cluster has it, and the UID that its node knows it by, which is another one for a mirror pod."""

    obj: Object
    uid: str


def resource_metrics(pods: Sequence[NodePod], usage: Usage | None) -> str:
    """The text of /metrics/resource; without `usage`, which the node did not tell, starts alone."""
    lines = _Lines(int(usage.at * 1000) if usage is not None else 0)
    used = [(pod, _used(pod, usage)) for pod in pods]
    if usage is not None:
        if usage.node is not None:
            lines.pair("node", "node", [("", usage.node)])
        own = [(_labels(pod, container=name), it) for pod, its in used for name, it in its.items()]
        lines.pair("container", "container", own)
        lines.pair("pod", "pod", [(_labels(pod), _total(its)) for pod, its in used if its])
    starts = [
        f"container_start_time_seconds{_labels(pod, container=name)} {_seconds(started)}"
        for pod in pods
        for name, started in _starts(pod.obj)
    ]
    lines.add(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        starts,
    )
    failed = [f"resource_scrape_error {int(usage is None)}"]
    told = "1 if there was an error while getting container metrics, 0 otherwise"
    lines.add("resource_scrape_error", "gauge", told, failed)
    return lines.text


class _Lines:
    """Metrics in the text format, of one moment (unix ms)."""

    def __init__(self, at_ms: int) -> None:
        self._at_ms = at_ms
        self.text = ""

    def add(self, name: str, kind: str, told: str, lines: Iterable[str]) -> None:
        self.text += f"# HELP {name} [STABLE] {told}\n# TYPE {name} {kind}\n"
        self.text += "".join(f"{line}\n" for line in lines)

    def pair(self, prefix: str, noun: str, used: Sequence[tuple[str, Used]]) -> None:
        """cpu and memory; `used`: (labels, values)."""
        cpu, memory = f"{prefix}_cpu_usage_seconds_total", f"{prefix}_memory_working_set_bytes"
        self.add(
            cpu, "counter", f"Cumulative cpu time consumed by the {noun} in core-seconds",
            (f"{cpu}{labels} {it.cpu_ns / 1e9:.9f} {self._at_ms}" for labels, it in used),
        )  # fmt: skip
        self.add(
            memory, "gauge", f"Current working set of the {noun} in bytes",
            (f"{memory}{labels} {it.memory} {self._at_ms}" for labels, it in used),
        )  # fmt: skip


def summary(node: str, pods: Sequence[NodePod], usage: Usage | None) -> dict[str, Any]:
    """The document of /stats/summary."""
    return {
        "node": {"nodeName": node, **_stats(usage.node if usage is not None else None, usage)},
        "pods": [_pod_summary(pod, usage) for pod in pods],
    }


def _pod_summary(pod: NodePod, usage: Usage | None) -> dict[str, Any]:
    meta, used = pod.obj["metadata"], _used(pod, usage)
    names = {"name": meta["name"], "namespace": meta.get("namespace", ""), "uid": meta.get("uid", "")}
    return {
        "podRef": names,
        "startTime": (pod.obj.get("status") or {}).get("startTime"),
        "containers": [
            {"name": name, "startTime": started, **_stats(used.get(name), usage)}
            for name, started in _starts(pod.obj)
        ],
        **_stats(_total(used) if used else None, usage),
    }


def _stats(used: Used | None, usage: Usage | None) -> dict[str, Any]:
    if used is None or usage is None:
        return {}
    at = datetime.datetime.fromtimestamp(usage.at, datetime.UTC).isoformat(timespec="seconds")
    at = at.replace("+00:00", "Z")
    return {
        "cpu": {"time": at, "usageCoreNanoSeconds": used.cpu_ns},
        "memory": {"time": at, "workingSetBytes": used.memory},
    }


def _used(pod: NodePod, usage: Usage | None) -> dict[str, Used]:
    """By container, of those that run."""
    if usage is None:
        return {}
    names = (name for name, _ in _starts(pod.obj))
    return {name: used for name in names if (used := usage.containers.get((pod.uid, name))) is not None}


def _total(used: Mapping[str, Used]) -> Used:
    return functools.reduce(operator.add, used.values())


def _labels(pod: NodePod, **more: str) -> str:
    meta = pod.obj["metadata"]
    labels = {**more, "namespace": meta.get("namespace", ""), "pod": meta["name"]}
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _starts(pod: Object) -> list[tuple[str, str]]:
    """(container, when it was started) of those that run."""
    status = pod.get("status") or {}
    found = []
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or ():
            started = ((container.get("state") or {}).get("running") or {}).get("startedAt")
            if started:
                found.append((str(container["name"]), str(started)))
    return found


def _seconds(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0  # what an agent has sent is shown, not believed


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
