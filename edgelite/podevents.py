"""Kubernetes events of one pod, folded and bounded. [pure]

The first event of a (reason, field, topic) goes out at once; repetitions within FOLD_S are folded into one that carries
their count. The topic is the message up to its first colon: a liveness probe that fails is not a repetition of a readiness
probe that does, though both are Unhealthy. At most BURST events at once and one per REFILL_S afterwards leave per pod, like the kubelet's spam filter.
What is over that is folded further, so a count is late but never lost while the pod lives.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLD_S = 60.0
BURST = 25
REFILL_S = 300.0
KINDS_MAX = 128
MESSAGE_MAX = 1024


class PodEvents:
    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._refilled: "float | None" = None
        self._folds: "dict[tuple[str, str, str], _Fold]" = {}
        self._ready: "list[dict[str, Any]]" = []

    def add(self, kind: str, reason: str, message: str, field: str, now: float, wall: float) -> None:
        """kind: Normal or Warning; field: e.g. spec.containers{app}, or ""."""
        message = message if len(message) <= MESSAGE_MAX else message[: MESSAGE_MAX - 3] + "..."
        key = (reason, field, message.split(":", 1)[0])
        fold = self._folds.get(key)
        if fold is None:
            if len(self._folds) >= KINDS_MAX:
                # Reasons, containers and a few topics make keys, so this takes a pod of absurd shape: oldest goes.
                oldest = min(self._folds, key=lambda k: self._folds[k].until)
                del self._folds[oldest]
            fold = self._folds[key] = _Fold(now)
        fold.note(kind, message, wall)
        self._flush(now)

    def take(self, now: float) -> "list[dict[str, Any]]":
        """What is to be reported now."""
        self._flush(now)
        ready, self._ready = self._ready, []
        return ready

    def deadline(self) -> "float | None":
        """When `take` will have more."""
        waiting = [f.until for f in self._folds.values() if f.count]
        if not waiting:
            return None
        nearest = min(waiting)
        if self._tokens < 1 and self._refilled is not None:
            nearest = max(nearest, self._refilled + (1 - self._tokens) * REFILL_S + 0.001)
        return nearest

    def _flush(self, now: float) -> None:
        if self._refilled is not None:
            self._tokens = min(float(BURST), self._tokens + (now - self._refilled) / REFILL_S)
        self._refilled = now
        for (reason, field, _), fold in self._folds.items():
            if not fold.count or fold.until > now or self._tokens < 1:
                continue
            self._tokens -= 1
            self._ready.append(fold.body(reason, field))
            fold.count = 0
            fold.until = now + FOLD_S


class _Fold:
    __slots__ = ("count", "first", "kind", "last", "message", "until")

    def __init__(self, now: float) -> None:
        self.until = now
        self.count = 0
        self.first = 0.0
        self.last = 0.0
        self.kind = "Normal"
        self.message = ""

    def note(self, kind: str, message: str, wall: float) -> None:
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall
        self.kind = kind
        self.message = message

    def body(self, reason: str, field: str) -> "dict[str, Any]":
        return {
            "reason": reason,
            "message": self.message,
            "type": self.kind,
            "count": self.count,
            "first": int(self.first),
            "last": int(self.last),
            "field": field,
        }
