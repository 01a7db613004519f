"""One container of a board's pod, and the code that it runs: see `edgelite.boardpods`. [pure] Runs on MicroPython."""

from binascii import a2b_base64

from edgelite.callables import KILLED, LogRing, Run, Task
from edgelite.dates import rfc3339
from edgelite.modules import COMPILED, ENTRY, SOURCE, LoadError, load, mark_of
from edgelite.restarts import BACKOFF_RESET_S, next_backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.callables import Devices, Function, Functions
    from edgelite.modules import Loaded

    Object = dict[str, Any]

CALLABLE, MODULE = "callable", "module"
PROBATION_S = 10.0
GRACE_DEFAULT_S = 30.0
BAD_MAX = 16


class StartFailure(Exception):
    """A container cannot start. `reason` is Kubernetes' word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason = reason
        self.message = message


def image_parts(image: object) -> "tuple[str, str, str]":
    """(CALLABLE, function, "") or (MODULE, configmap, key). Raises ValueError."""
    kind, _, rest = str(image).partition(":")
    if kind == CALLABLE and rest and isinstance(image, str):
        return CALLABLE, rest, ""
    name, _, key = rest.partition("/")
    if kind == MODULE and name and key and "/" not in key:
        return MODULE, name, key
    raise ValueError("image: has to be callable:<function> or module:<configmap>/<key>, is %r" % (image,))


class Images:
    """The code that containers may run: functions of the firmware, modules out of ConfigMaps, and which of those are good."""

    def __init__(self, functions: "Functions", modules: bool, files: "Any", directory: str) -> None:
        self._functions = functions
        self._modules = modules
        self._files = files
        self._directory = directory
        self._maps: "dict[str, Object]" = {}
        self._good: "dict[str, bytes]" = {}
        self._bad: "dict[str, str]" = {}
        self._saves: "list[tuple[str, bytes | None]]" = []

    def load(self, records: "list[tuple[str, bytes]]") -> None:
        for name, value in records:
            if name.startswith("good/"):
                self._good[name[5:]] = value
            elif name.startswith("bad/"):
                self._bad[name[4:]] = value.decode()

    def saves(self) -> "list[tuple[str, bytes | None]]":
        saves, self._saves = self._saves, []
        return saves

    def put(self, key: str, doc: "Object") -> None:
        self._maps["%s/%s" % (doc["ns"], doc["name"])] = doc

    def drop(self, key: str) -> None:
        self._maps.pop(key[len("configmap/") :], None)

    def value(self, namespace: str, name: str, key: str) -> "str | None":
        """A ConfigMap's key."""
        found = (self._maps.get("%s/%s" % (namespace, name)) or {}).get("data") or {}
        return found.get(key)

    def faults(self, container: "Object") -> "list[str]":
        """What of a container's image, command, args and env cannot be."""
        try:
            kind, _, key = image_parts(container.get("image"))
        except ValueError as error:
            return [str(error)]
        found = []
        command, args = container.get("command") or [], container.get("args") or []
        if kind == MODULE and not self._modules:
            found.append("image: this board's firmware takes no modules")
        if kind == MODULE and not (key.endswith(SOURCE) or key.endswith(COMPILED)):
            found.append("image: %s is neither %s nor %s" % (key, SOURCE, COMPILED))
        if kind == CALLABLE and command:
            found.append("command: a function of the firmware takes args alone")
        if not _texts(command) or len(command) > 1 or not _texts(args):
            found.append("command and args: texts, of the command one: the module's function")
        for at, env in enumerate(container.get("env") or []):
            ref = (env.get("valueFrom") or {}).get("configMapKeyRef")
            if env.get("valueFrom") and not ref:
                found.append("env[%d].valueFrom: a board knows configMapKeyRef" % at)
        return found

    # Code

    def function(self, name: str) -> "Function":
        """Raises StartFailure."""
        found = self._functions.get(name)
        if found is None:
            known = ", ".join(self._functions.names()) or "none"
            text = "the firmware has no function %r; it has: %s" % (name, known)
            raise StartFailure("ErrImageNeverPull", text)
        return found

    def code(self, place: str) -> "bytes | None":
        """The newest code of `<namespace>/<configmap>/<key>` that is not known to be bad; the last good one where it is, or where
        the ConfigMap is not there (yet)."""
        wanted = self._wanted(place)
        if wanted is None or self._bad.get(place) == mark_of(wanted):
            return self._good.get(place)
        return wanted

    def _wanted(self, place: str) -> "bytes | None":
        namespace, name, key = place.split("/", 2)
        doc = self._maps.get("%s/%s" % (namespace, name)) or {}
        data = (doc.get("data") or {}).get(key)
        if data is not None:
            return bytes(data.encode())
        binary = (doc.get("binaryData") or {}).get(key)
        try:
            return None if binary is None else a2b_base64(binary.encode())
        except ValueError:
            return None  # no base64: it is as if the key were not there

    def open(self, place: str, code: bytes) -> "Loaded":
        """Raises LoadError."""
        return load(place.split("/", 2)[2], code, self._files, self._directory)

    def proved(self, place: str, code: bytes) -> None:
        """It has run for long enough."""
        if self._good.get(place) != code:
            self._good[place] = code
            self._saves.append(("good/" + place, code))

    def condemned(self, place: str, code: bytes) -> bool:
        """It has failed on probation. True when there is a good one to go back to."""
        good = self._good.get(place)
        if good is None or good == code:
            return False
        mark = mark_of(code)
        if place not in self._bad and len(self._bad) >= BAD_MAX:
            oldest = sorted(self._bad)[0]
            del self._bad[oldest]
            self._saves.append(("bad/" + oldest, None))
        self._bad[place] = mark
        self._saves.append(("bad/" + place, mark.encode()))
        return True


class Container:
    """One container. Its states: waiting (until `_retry_at`), running, ended for good."""

    def __init__(
        self,
        doc: "Object",
        spec: "Object",
        images: Images,
        wall_ms: "Callable[[], int]",
        event: "Callable[[Object, str, str, str], None]",
        devices: "Callable[[str], Devices] | None",
    ) -> None:
        self.name: str = spec["name"]
        self.spec = spec
        self.log = LogRing()
        self.restarts = 0
        self.has_started = False
        self._doc = doc
        self._images = images
        self._wall_ms = wall_ms
        self._event = event
        self._devices = devices
        self._run: "Run | None" = None
        self._loaded: "Loaded | None" = None
        self._code: "bytes | None" = None
        self._began = 0.0
        self._began_ms = 0
        self._retry_at = 0.0
        self._backoff_s = 0.0
        self._waiting = ("ContainerCreating", "")
        self._last: "Object | None" = None
        self._over: "Object | None" = None
        self._stopping = False
        self._replacing = False
        self._kill_at = 0.0
        self._proved = False

    # What happens to it

    def change(self, spec: "Object", now: float) -> None:
        """Its specification is another: with another image it starts again."""
        other = spec.get("image") != self.spec.get("image")
        self.spec = dict(self.spec, image=spec.get("image"))
        if other and self._over is None:
            self._replace(now)

    def poke(self, now: float) -> None:
        """A ConfigMap is another: a module that runs may have to be replaced; one that waits for it looks again."""
        if self._over is not None or self._stopping:
            return
        place = self._place()
        code = None if place is None else self._images.code(place)
        if code is not None and code != self._code:
            self._replace(now)
        elif self._run is None and self._waiting[0] == "CreateContainerConfigError":
            self._retry_at = now

    def _replace(self, now: float) -> None:
        self._retry_at, self._backoff_s = now, 0.0
        if self._run is not None and not self._replacing:
            self._replacing = True
            grace = self._doc["spec"].get("terminationGracePeriodSeconds")
            self._kill_at = now + (GRACE_DEFAULT_S if grace is None else float(grace))
            self._run.stop(now)

    def stop(self, now: float) -> None:
        self._stopping = True
        if self._run is not None:
            self._run.stop(now)

    def kill(self, now: float) -> None:
        if self._run is not None:
            self._run.kill()
            self._finished(now, "Never")

    def reset_by_watchdog(self, now: float) -> None:
        """It ran when the watchdog reset the board: it waits, so that the agent can be reached in between."""
        at = rfc3339(self._wall_ms() // 1000)
        text = "the watchdog reset the board while this ran"
        place = self._place()
        self._code = None if place is None else self._images.code(place)
        rolled_back = place is not None and self._code is not None and self._roll_back(place, text)
        self._last = {
            "exitCode": KILLED,
            "reason": "Watchdog",
            "message": text,
            "startedAt": at,
            "finishedAt": at,
        }
        self._event(self._doc, "Warning", "WatchdogReset", "%s: %s" % (self.name, text))
        self.restarts = 1
        if not rolled_back:
            self._wait(now, "CrashLoopBackOff", text)

    # What it does

    @property
    def is_still(self) -> bool:
        """Nothing of it runs."""
        return self._run is None

    def is_due(self, now: float) -> bool:
        due = self.deadline()
        return due is not None and due <= now

    def deadline(self) -> "float | None":
        if self._over is not None:
            return None
        if self._run is None:
            return None if self._stopping else self._retry_at
        due = self._run.due
        if not self._proved:
            due = min(due, self._began + PROBATION_S)
        return min(due, self._kill_at) if self._replacing else due

    def step(self, now: float, policy: str) -> None:
        """Starts it, or lets it take its next step."""
        if self._run is None:
            self._start(now)
        else:
            if self._replacing and now >= self._kill_at:
                self._run.kill()
            self._run.step(now)
            if not self._proved and self._run.exit_code is None and now - self._began >= PROBATION_S:
                self._passed()
        if self._run is not None and self._run.exit_code is not None:
            self._finished(now, policy)

    def _start(self, now: float) -> None:
        try:
            function = self._function()
            env = self._env()
        except StartFailure as failure:
            if self._waiting[0] != failure.reason or self._waiting[1] != failure.message:
                self._event(self._doc, "Warning", "Failed", "%s: %s" % (self.name, failure.message))
            self._wait(now, failure.reason, failure.message)
            return
        devices = None if self._devices is None else self._devices(self._doc["ns"])
        task = Task(list(self.spec.get("args") or []), env, self.log, self._wall_ms, devices)
        self._began, self._began_ms = now, self._wall_ms()
        self._proved = self._place() is None
        self.has_started = True
        self._run = Run(function, task, self.log, self._wall_ms)
        self._run.begin(now)

    def _function(self) -> "Function":
        place = self._place()
        if place is None:
            return self._images.function(image_parts(self.spec.get("image"))[1])
        while True:
            code = self._images.code(place)
            if code is None:
                name, key = image_parts(self.spec.get("image"))[1:]
                text = "ConfigMap %s has no key %s" % (name, key)
                raise StartFailure("CreateContainerConfigError", text)
            self._code = code
            try:
                self._loaded = self._images.open(place, code)
                found: "Function" = self._loaded.function((self.spec.get("command") or [ENTRY])[0])
                return found
            except LoadError as error:
                self._unload()
                if not self._roll_back(place, str(error)):
                    raise StartFailure("RunContainerError", str(error)) from error

    def _roll_back(self, place: str, why: str) -> bool:
        """The code is bad: True where there is a good one, which is then taken."""
        assert self._code is not None
        if not self._images.condemned(place, self._code):
            return False
        text = "%s: version %s of %s failed and is not tried again; the one before runs: %s"
        self._event(
            self._doc, "Warning", "ModuleRolledBack", text % (self.name, mark_of(self._code), place, why)
        )
        self._backoff_s = 0.0
        return True

    def _passed(self) -> None:
        self._proved = True
        place = self._place()
        if place is not None and self._code is not None:
            self._images.proved(place, self._code)

    def _finished(self, now: float, policy: str) -> None:
        """Its run has ended."""
        assert self._run is not None
        run, self._run = self._run, None
        code, message = run.exit_code or 0, run.message
        ended = self._terminated(code, message)
        place, ran_s = self._place(), now - self._began
        self._unload()
        bad = code != 0 and not self._proved and not self._stopping and not self._replacing
        if code == 0 and not self._proved and not self._replacing:
            self._passed()  # one that is done is as good as one that runs
        rolled_back = bad and place is not None and self._roll_back(place, message or "exit code %d" % code)
        if self._stopping or (
            not self._replacing
            and not rolled_back
            and (policy == "Never" or (policy == "OnFailure" and code == 0))
        ):
            self._over = ended
            return
        self._last = ended
        self.restarts += 1
        if self._replacing or rolled_back:
            self._replacing = False
            self._retry_at = now
            self._waiting = ("ContainerCreating", "")
            return
        if ran_s >= BACKOFF_RESET_S:
            self._backoff_s = 0.0
        self._wait(now, "CrashLoopBackOff", message or "it ended with exit code %d" % code)

    def _wait(self, now: float, reason: str, message: str) -> None:
        self._backoff_s = next_backoff(self._backoff_s)
        self._retry_at = now + self._backoff_s
        self._waiting = (reason, message)

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _place(self) -> "str | None":
        """`<namespace>/<configmap>/<key>` of a module; None for a function of the firmware."""
        kind, name, key = image_parts(self.spec.get("image"))
        return None if kind == CALLABLE else "%s/%s/%s" % (self._doc["ns"], name, key)

    def _env(self) -> "dict[str, str]":
        """Raises StartFailure."""
        found = {}
        for env in self.spec.get("env") or []:
            ref = (env.get("valueFrom") or {}).get("configMapKeyRef")
            if not ref:
                found[env["name"]] = env.get("value") or ""
                continue
            value = self._images.value(self._doc["ns"], ref.get("name"), ref.get("key"))
            if value is None and not ref.get("optional"):
                text = "ConfigMap %s has no key %s" % (ref.get("name"), ref.get("key"))
                raise StartFailure("CreateContainerConfigError", text)
            if value is not None:
                found[env["name"]] = value
        return found

    # Status

    def final_code(self, policy: str) -> "int | None":
        """Its exit code once it has ended for good."""
        return None if self._over is None else int(self._over["exitCode"])

    def status(self) -> "Object":
        """ContainerStatus, as Kubernetes has it."""
        running = self._run is not None
        if running:
            state = {"running": {"startedAt": rfc3339(self._began_ms // 1000)}}
        elif self._over is not None:
            state = {"terminated": self._over}
        else:
            waiting = {"reason": self._waiting[0]}
            if self._waiting[1]:
                waiting["message"] = self._waiting[1][:512]
            state = {"waiting": waiting}
        image = self.spec.get("image") or ""
        return {
            "name": self.name,
            "image": image,
            "imageID": "" if self._code is None else "module://" + mark_of(self._code),
            "ready": running,
            "started": running,
            "restartCount": self.restarts,
            "state": state,
            "lastState": {} if self._last is None else {"terminated": self._last},
        }

    def _terminated(self, code: int, message: str) -> "Object":
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": rfc3339(self._began_ms // 1000),
            "finishedAt": rfc3339(self._wall_ms() // 1000),
        }
        if message:
            ended["message"] = message[:512]
        return ended


def _texts(values: object) -> bool:
    return isinstance(values, list) and all([isinstance(value, str) for value in values])
