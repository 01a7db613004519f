"""What is known of one container of a pod, and how it is written down. [pure]

Invariant: `attempt` is the number of the newest attempt that was handed out; while `assigned` is True it is not known to
have run, and a start that failed hands the same number out again. A new number is handed out only when nothing of
the old attempt runs.
"""

from edgelite.probes import LIVENESS, READINESS, STARTUP, probes_of
from edgelite.restarts import BACKOFF_MAX_S, BACKOFF_RESET_S, next_backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.probes import Probe
    from edgelite.runtimes.base import Status

WAITING = "waiting"  # to be started at retry_at, or when `blocked` ends
STARTING = "starting"  # the runtime was told to start it
RUNNING = "running"
STOPPING = "stopping"  # the runtime was told to stop it
EXITED = "exited"

INIT = "init"
SIDECAR = "sidecar"  # an init container with restartPolicy Always
APP = "app"


class Container:
    """See the module's docstring. Times named `_wall` are unix seconds, `retry_at` is monotonic."""

    def __init__(self, spec: "dict[str, Any]", kind: str) -> None:
        self.spec = spec
        self.kind = kind
        self.name: str = spec["name"]
        self.state = WAITING
        self.attempt = -1
        self.assigned = False
        self.image: "str | None" = None  # what the newest attempt was started with
        self.reason = ""  # why it waits
        self.message = ""
        self.blocked = False  # waits for a document, not for a time
        self.backoff_s = 0.0
        self.retry_at = 0.0
        self.retry_wall = 0.0
        self.started_wall = 0.0
        self.handle = ""
        self.image_id = ""
        self.ended: "dict[str, Any] | None" = None  # terminated state of the newest attempt, once EXITED
        self.last: "dict[str, Any] | None" = None  # terminated state of the attempt before
        self.started = False
        self.ready = False
        self.hook = False  # its postStart hook has not ended yet
        self.replace = False  # it is being stopped to be started with another image
        self.stop_by = 0.0
        self.probes: "list[Probe]" = []

    # -- what is asked of it

    @property
    def live(self) -> bool:
        """Something of it may run."""
        return self.state in (STARTING, RUNNING, STOPPING)

    @property
    def succeeded(self) -> bool:
        return self.state == EXITED and self.ended is not None and self.ended["exitCode"] == 0

    @property
    def restarts(self) -> int:
        return max(0, self.attempt - 1 if self.assigned else self.attempt)

    @property
    def field(self) -> str:
        """The path that its events carry."""
        return "spec.%s{%s}" % ("containers" if self.kind == APP else "initContainers", self.name)

    # -- what happens to it

    def hand_out(self) -> None:
        """It is to be started: takes the attempt's number, which has to be durable before the start is tried."""
        if not self.assigned:
            self.attempt += 1
            self.assigned = True
        self.image = self.spec.get("image") or ""
        self.state = STARTING
        self.blocked = False
        self.replace = False

    def begin(self, status: "Status", hook: bool, now: float, wall: float) -> None:
        """It runs, after a start."""
        self.state = RUNNING
        self.assigned = False
        self.attempt = status.attempt
        self.reason = self.message = ""
        self.started_wall = status.started_at
        self.handle = status.handle
        self.image_id = status.image_id
        self.ended = None
        self.hook = hook
        self.started = self.ready = False
        self.probes = probes_of(self.spec, wall - status.started_at, now)
        self.refresh()

    def adopt(self, status: "Status", now: float, wall: float) -> None:
        """It runs, from before the agent was started: what its probes had found stays true until they say otherwise."""
        same = status.attempt == self.attempt
        started, ready = same and self.started, same and self.ready
        self.begin(status, False, now, wall)
        if self.image is None:
            self.image = self.spec.get("image") or ""
        for probe in self.probes:
            if (probe.kind == STARTUP and started) or (probe.kind == READINESS and ready):
                probe.verdict = True
        self.refresh()

    def refresh(self) -> bool:
        """Derives `started` and `ready` from the probes; True when one of them changed."""
        before = (self.started, self.ready)
        verdicts = {p.kind: p.verdict for p in self.probes}
        running = self.state in (RUNNING, STOPPING) and not self.hook
        self.started = running and verdicts.get(STARTUP, True) is True
        self.ready = self.started and verdicts.get(READINESS, True) is True
        return before != (self.started, self.ready)

    def due_probes(self, now: float) -> "list[Probe]":
        return [p for p in self._active_probes() if p.due <= now]

    def probe_deadline(self) -> "float | None":
        due = [p.due for p in self._active_probes()]
        return min(due) if due else None

    def _active_probes(self) -> "list[Probe]":
        if self.state != RUNNING or self.hook:
            return []
        idle = [p for p in self.probes if not p.in_flight]
        if not self.started:
            return [p for p in idle if p.kind == STARTUP]
        return [p for p in idle if p.kind in (LIVENESS, READINESS)]

    def end(self, ended: "dict[str, Any]", ran_s: float) -> None:
        self.state = EXITED
        self.assigned = False
        self.ended = ended
        self.hook = False
        self.started = self.ready = False
        self.probes = []
        if ran_s >= BACKOFF_RESET_S:
            self.backoff_s = 0.0

    def await_restart(self, now: float, wall: float) -> float:
        """It ended and is to run again, at once the first time and then after the back-off; returns those seconds."""
        self.last, self.ended = self.ended, None
        self.state = WAITING
        wait_s = 0.0 if self.replace else self.backoff_s
        self._back_off(wait_s, now, wall)
        self.backoff_s = 0.0 if self.replace else next_backoff(wait_s)
        self.replace = False
        return wait_s

    def await_retry(self, now: float, wall: float) -> None:
        """Its start failed, nothing of it runs: the same attempt is tried again after the back-off."""
        self.state = WAITING
        self.backoff_s = next_backoff(self.backoff_s)
        self._back_off(self.backoff_s, now, wall)

    def _back_off(self, seconds: float, now: float, wall: float) -> None:
        self.retry_at, self.retry_wall = now + seconds, wall + seconds

    # -- how it is written down

    def record(self) -> "dict[str, Any]":
        return {
            "a": self.attempt,
            "n": self.assigned,
            "s": self.state,
            "i": self.image,
            "b": self.backoff_s,
            "r": self.retry_wall,
            "why": [self.reason, self.message],
            "t": self.started_wall,
            "h": self.handle,
            "ii": self.image_id,
            "e": self.ended,
            "l": self.last,
            "st": self.started,
            "rd": self.ready,
        }

    def restore(self, record: "dict[str, Any]", now: float, wall: float) -> None:
        self.attempt = record["a"]
        self.assigned = record["n"]
        self.state = record["s"]
        self.image = record["i"]
        self.backoff_s = record["b"]
        self.retry_wall = record["r"]
        # The wall clock may have been set meanwhile: never wait longer than the back-off itself.
        self.retry_at = now + min(BACKOFF_MAX_S, max(0.0, self.retry_wall - wall))
        self.reason, self.message = record["why"]
        self.started_wall = record["t"]
        self.handle = record["h"]
        self.image_id = record["ii"]
        self.ended = record["e"]
        self.last = record["l"]
        self.started = record["st"]
        self.ready = record["rd"]
