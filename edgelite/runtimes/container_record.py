"""One attempt of one container as the container runtime knows it, and what an engine's description says about it. [pure]"""

from edgelite.runtimes.base import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNKNOWN_EXIT = 137
LABEL = "dev.cloudhub."
OWNER, UID, NAME, ATTEMPT, BOOT, IMAGE = [
    LABEL + name for name in ("agent", "uid", "container", "attempt", "boot", "image")
]
_LOST = 255  # what dockerd writes for containers that ran when the machine went down


class Described:
    """What an engine says about a container (GET /containers/<id>/json), reduced to what matters here.

    state: "created" (never ran), "running" or "exited". started_at, finished_at: wall clock, 0.0 when never."""

    __slots__ = (
        "error",
        "exit_code",
        "finished_at",
        "id",
        "image",
        "labels",
        "memory_limit",
        "oom_killed",
        "started_at",
        "state",
        "stop_signal",
        "tty",
    )

    def __init__(self, data: "dict[str, Any]") -> None:
        """Raises KeyError, TypeError, ValueError for what is no such description."""
        state, config = data["State"], data["Config"]
        self.id: str = data["Id"]
        self.image: str = data.get("Image") or ""
        self.memory_limit = int((data.get("HostConfig") or {}).get("Memory") or 0)  # bytes, 0 for none
        self.labels: "dict[str, str]" = config.get("Labels") or {}
        self.tty = bool(config.get("Tty"))
        self.stop_signal = str(config.get("StopSignal") or "SIGTERM")
        self.started_at = parse_time(state.get("StartedAt") or "")
        self.finished_at = parse_time(state.get("FinishedAt") or "")
        self.exit_code = int(state.get("ExitCode") or 0)
        self.oom_killed = bool(state.get("OOMKilled"))
        self.error: str = state.get("Error") or ""
        word = state.get("Status") or ""
        if state.get("Running") or word in ("running", "paused", "restarting", "stopping"):
            self.state = "running"
        elif word in ("created", "configured", "initialized"):
            self.state = "created"
        else:
            self.state = "exited"

    @property
    def key(self) -> "tuple[str, str, int]":
        """(uid, container, attempt) from the labels. Raises KeyError, ValueError when it is none of ours."""
        return self.labels[UID], self.labels[NAME], int(self.labels[ATTEMPT])


class Container:
    """One attempt. `starting` until the engine has said whether it runs; ended when `status` is set."""

    __slots__ = (
        "attempt",
        "boot",
        "dirty",
        "id",
        "image_id",
        "killed",
        "name",
        "reported",
        "scheme",
        "started_at",
        "starting",
        "status",
        "stop_signal",
        "stops",
        "tty",
        "uid",
    )

    def __init__(self, uid: str, name: str, attempt: int, boot: str, scheme: str) -> None:
        self.uid = uid
        self.name = name
        self.attempt = attempt
        self.boot = boot
        self.scheme = scheme  # "podman" or "docker"
        self.id = ""
        self.image_id = ""
        self.started_at = 0.0  # wall clock, seconds
        self.starting = False
        self.status: "Status | None" = None
        self.reported = False  # its end has been handed out
        self.stops = 0  # how many `stop` wait for its end
        self.dirty = False  # something happened to it that has not been looked at
        self.killed = False  # by `stop`, when its grace was over
        self.tty = False
        self.stop_signal = "SIGTERM"

    @property
    def engine_name(self) -> str:
        """The same for every try to make this attempt, so that a second one finds the first."""
        return "cloudhub_%s_%s_%d" % (self.name, self.uid, self.attempt)

    def learn(self, found: Described) -> None:
        self.id = found.id
        self.tty = found.tty
        self.stop_signal = found.stop_signal
        self.started_at = found.started_at or self.started_at
        self.image_id = self.image_id or found.image

    def _status(self, phase: str) -> Status:
        handle = "%s://%s" % (self.scheme, self.id)
        status = Status(self.uid, self.name, self.attempt, phase, self.started_at, handle)
        status.image_id = self.image_id
        return status

    def running(self) -> Status:
        return self._status("running")

    def exited(self, found: Described) -> Status:
        """Its end, as the engine tells it."""
        status = self._status("exited")
        status.finished_at = max(found.finished_at, self.started_at)
        status.exit_code = found.exit_code
        status.reason = "Completed" if found.exit_code == 0 else "Error"
        status.message = found.error
        if found.exit_code == UNKNOWN_EXIT and found.memory_limit and not self.killed:
            # Podman on cgroups v1 often records no OOM.
            status.message = found.error or "somebody killed it: the kernel, if it went over its memory limit"
        if found.oom_killed:
            status.reason = "OOMKilled"
            status.message = found.error or "the kernel killed it for its memory limit"
        return status

    def lost(self, message: str, at: float) -> Status:
        """Its end, which nothing recorded."""
        status = self._status("exited")
        status.exit_code, status.reason, status.message = UNKNOWN_EXIT, "ContainerStatusUnknown", message
        status.finished_at = max(at, self.started_at)
        return status

    def survived_badly(self, found: Described, boot: str) -> bool:
        """It was made before the last reboot, and its end was not recorded."""
        return self.boot != boot and (found.state != "exited" or found.exit_code == _LOST)


def parse_time(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time with up to nine decimals; 0.0 for an empty one and for Go's zero time (year 1).
    Raises ValueError."""
    if not text or text.startswith("0001-"):
        return 0.0
    date, _, rest = text.replace("t", "T").partition("T")
    year, month, day = [int(part) for part in date.split("-")]
    offset_s = 0
    if rest.endswith(("Z", "z")):
        rest = rest[:-1]
    else:
        sign = max(rest.rfind("+"), rest.rfind("-"))
        if sign < 0:
            raise ValueError("%s has no time zone" % text)
        hours, _, minutes = rest[sign + 1 :].partition(":")
        offset_s = (int(hours) * 3600 + int(minutes) * 60) * (1 if rest[sign] == "+" else -1)
        rest = rest[:sign]
    hour, minute, second = rest.split(":")
    whole, _, part = second.partition(".")
    seconds = _days(year, month, day) * 86400 + int(hour) * 3600 + int(minute) * 60 + int(whole) - offset_s
    return seconds + (float("0." + part) if part else 0.0)


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar."""
    if month <= 2:
        year, month = year - 1, month + 12
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month - 3) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
