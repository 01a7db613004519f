"""The `container` runtime: containers in an engine that speaks the Docker Engine API (Podman, Docker). [Linux]

How a container is made is told in container_plan, what of a Pod is honoured in container_fields, how the engine is spoken to in
engine. Here: starting, watching, stopping and finding again.

The engine is the memory: labels say whose a container is, and its name is made from (uid, container, attempt), so whatever
kills the agent when, a second try to start the same attempt finds the first and doubles nothing. Invariants: an attempt is started
only when the one before has ended; its end is decided once, from what the engine says of the container and not from an event
(events only tell when to look); every end is handed out once, by the `stop` that waited for it, else by `changes`, or by `recover`
when it came while no agent ran.
"""

import json
import os
import time

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes import container_plan, container_review
from edgelite.runtimes.base import Runtime, RuntimeFailure
from edgelite.runtimes.container_record import BOOT, IMAGE, NAME, OWNER, UID, Container, Described
from edgelite.runtimes.engine import Engine, EngineDown, EngineRefused, at_once
from edgelite.runtimes.engine_bell import Bell, Gate
from edgelite.runtimes.engine_http import BadAnswer, Frames, filters, lines_of, quote
from edgelite.runtimes.engine_images import Images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Loop
    from edgelite.runtimes.base import Launch, LogSink, State, Status

CONTACT_S = 2.0
START_S = 120.0
STARTS_AT_ONCE = 4  # engines take turns inside anyway, and slow down when many wait
RESYNC_S = 30.0  # looks at all containers, should an event have been lost
UNWATCHED_S = 2.0  # how often, with an engine that gives no events
RECONNECT_S = (0.2, 0.5, 1.0, 2.0, 5.0)
OVERLAP_S = 5.0  # events are asked for from before the connection, for there must be no gap
UNKILLABLE_S = 20.0
POLL_S = (0.02, 0.05, 0.1, 0.2, 0.5)
REMOVE_S = 60.0
OUTPUT_BYTES = 10240
EVENT_BYTES_MAX = 1 << 20
ENDINGS = ("die", "died", "stop", "kill", "oom", "destroy", "remove", "cleanup")
SOCKETS = ("/run/podman/podman.sock", "/var/run/docker.sock")


class Config:
    """Options of the runtime.

    socket: the engine's unix socket. allow_privileged: whether pods may use privileged, hostPath, hostNetwork and the like.
    network: the engine's network that containers join: "host" (the default: what the agent reports as the pod's address and probes
    is then right, and the containers of a pod reach each other), or one of the engine's, in which every container is alone.
    log_bytes x log_files: size and number of log files of a container (Podman keeps one). pids_max: processes per container.
    pull_s: how long one pull may take."""

    __slots__ = ("allow_privileged", "log_bytes", "log_files", "network", "pids_max", "pull_s", "socket")

    def __init__(
        self,
        socket: str,
        allow_privileged: bool = False,
        network: str = "host",
        log_bytes: int = 10 << 20,
        log_files: int = 3,
        pids_max: int = 4096,
        pull_s: float = 1800.0,
    ) -> None:
        self.socket = socket
        self.allow_privileged = allow_privileged
        self.network = network
        self.log_bytes = log_bytes
        self.log_files = log_files
        self.pids_max = pids_max
        self.pull_s = pull_s


def create(data_dir: str, config: "Any", host: "Any", loop: "Loop", state: "State") -> "ContainerRuntime":
    """What the agent calls. config: the agent's own Config; its engine_socket is used, or else the first of the usual places."""
    socket = config.engine_socket or find_socket()
    return ContainerRuntime(loop, state, data_dir, host.boot_id(), Config(socket, config.allow_privileged))


def find_socket() -> str:
    """The engine socket that exists in one of the usual places; Podman's when none does."""
    for path in SOCKETS + ("/run/user/%d/podman/podman.sock" % os.getuid(),):
        if os.path.exists(path):
            return path
    return SOCKETS[0]


class ContainerRuntime(Runtime):
    """See the module's docstring, and Runtime for the interface.

    loop: runs the task that listens to the engine; state: not used, the engine remembers; data_dir: the agent's, holds the id by which
    its containers are known; boot_id: differs after a reboot. `trouble` tells why the engine cannot be reached, "" when it can."""

    name = "container"

    def __init__(self, loop: "Loop", state: "State", data_dir: str, boot_id: str, config: Config) -> None:
        self._loop = loop
        self._boot = boot_id
        self._config = config
        self._engine = Engine(config.socket)
        self._images = Images(self._engine, config.pull_s)
        self._owner = _owner(os.path.join(os.path.realpath(data_dir), "container.id"))
        self._site = container_plan.Site(
            self._owner,
            boot_id,
            config.network,
            config.log_bytes,
            config.log_files,
            config.pids_max,
            _ulimits(),
        )
        self._attempts: "dict[tuple[str, str], list[Container]]" = {}  # newest last, at most two
        self._starting: "set[tuple[str, str]]" = set()
        self._bell = Bell()  # something ended, or was started
        self._gate = Gate(STARTS_AT_ONCE)
        self._watcher: "Any" = None
        self.trouble = ""
        try:
            at_once(self._engine.contact(CONTACT_S))
        except (EngineDown, EngineRefused) as error:
            self.trouble = str(error)

    def close(self) -> None:
        """Stops listening. What runs goes on running; a runtime made anew with the same data directory adopts it."""
        self._loop.cancel(self._watcher)
        self._watcher = None

    def facts(self) -> "dict[str, str]":
        """The version is that of the last contact; "container://unknown" before the first."""
        engine = self._engine
        return {
            "version": "%s://%s" % (engine.name, engine.version) if engine.name else "container://unknown"
        }

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        return container_review.review(pod, self._config.allow_privileged, self._config.network)

    # Starting

    def start(self, launch: "Launch") -> "Generator[Wait, bool, Status]":
        key = (launch.pod["uid"], launch.container["name"])
        attempts = self._attempts.get(key, [])
        if key in self._starting or (attempts and attempts[-1].status is None):
            text = "container %s is still running; stop it first" % key[1]
            raise RuntimeFailure("CreateContainerError", text)
        self._starting.add(key)
        try:
            self._listen()
            image = yield from self._images.ensure(
                launch.container.get("image") or "",
                launch.container.get("imagePullPolicy") or "",
                launch.pull_secrets,
            )
            yield from self._gate.enter()
            try:
                return (yield from self._start(launch, image))
            finally:
                self._gate.leave()
        except (EngineDown, EngineRefused) as error:
            # The same attempt is tried again, and then finds what this one may have left.
            raise RuntimeFailure("CreateContainerError", str(error)) from error
        finally:
            self._starting.discard(key)
            self._bell.ring()

    def _start(self, launch: "Launch", image: "dict[str, Any]") -> "Generator[Wait, bool, Status]":
        c = Container(
            launch.pod["uid"], launch.container["name"], launch.attempt, self._boot, self._engine.name
        )
        c.image_id = _image_id(image)
        body = container_plan.create_body(launch, image, self._site)
        _give_group(launch)
        yield from self._prune(c)
        found = yield from self._create(c, body)
        self._attempts.setdefault((c.uid, c.name), []).append(c)
        c.starting = True
        try:
            if found is None:
                yield from self._run(c)
                found = yield from self._inspect(c.id)
        finally:
            # Also when cancelled: whether it runs is then found out by looking.
            c.starting = False
        if found is None:
            raise EngineDown("somebody removed container %s while it was started" % c.engine_name, True)
        c.learn(found)
        status = c.running()
        if c.dirty or found.state == "exited":
            yield from self._look(c)  # an event that came while it was starting was left for now
        return status

    def _prune(self, c: Container) -> "Generator[Wait, bool, None]":
        """Removes attempts before the previous one, whose log and end are kept. Raises EngineDown, EngineRefused."""
        attempts = self._attempts.get((c.uid, c.name), [])
        for old in attempts[:-1] + [o for o in attempts[-1:] if o.attempt == c.attempt]:
            yield from self._delete(old.id)
            attempts.remove(old)

    def _create(self, c: Container, body: "dict[str, Any]") -> "Generator[Wait, bool, Described | None]":
        """Makes the container. Returns its description when it was there already and has been started, else None."""
        query = [("name", c.engine_name)]
        try:
            made = yield from self._engine.call("POST", "/containers/create", query, body, START_S)
        except EngineRefused as error:
            # 409 by the book; Podman says 500. So it is looked for, whatever the error.
            found = yield from self._inspect(c.engine_name)
            if found is None:
                raise
            if self._is_same(found, body):
                c.learn(found)
                return found
            if found.labels.get(OWNER) != self._owner and found.state == "running":
                text = "a container called %s runs already and is another agent's" % c.engine_name
                raise RuntimeFailure("CreateContainerError", text) from error
            yield from self._delete(found.id)
            made = yield from self._engine.call("POST", "/containers/create", query, body, START_S)
        c.id = str((made or {}).get("Id") or c.engine_name)
        return None

    def _is_same(self, found: Described, body: "dict[str, Any]") -> bool:
        """It is this attempt, and was started by a try of which only the answer was lost."""
        same = all(found.labels.get(label) == body["Labels"][label] for label in (OWNER, UID, NAME, IMAGE))
        return same and found.state != "created"

    def _run(self, c: Container) -> "Generator[Wait, bool, None]":
        try:
            yield from self._engine.call("POST", "/containers/%s/start" % c.id, timeout_s=START_S)
        except EngineRefused as error:
            yield from self._delete(c.id)
            self._attempts[(c.uid, c.name)].remove(c)
            raise RuntimeFailure("RunContainerError", str(error)) from error
        except EngineDown:
            self._attempts[(c.uid, c.name)].remove(c)
            raise

    # Looking

    def _inspect(self, name: str) -> "Generator[Wait, bool, Described | None]":
        """None when there is no such container. Raises EngineDown, EngineRefused."""
        try:
            found = yield from self._engine.call("GET", "/containers/%s/json" % quote(name))
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise
        try:
            return Described(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineDown(
                "the engine's description of %s makes no sense: %s" % (name, error), True
            ) from error

    def _look(self, c: Container) -> "Generator[Wait, bool, None]":
        """Decides whether it has ended. Raises EngineDown, EngineRefused."""
        c.dirty = False
        try:
            found = yield from self._inspect(c.id)
        except BaseException:
            c.dirty = True
            raise
        if c.status is not None:
            return  # somebody else was quicker
        if found is None:
            self._conclude(c, c.lost("somebody removed it from the engine", time.time()))
        elif found.state == "created":
            # Its start was cut off before the engine began: `start` or `recover` deals with it.
            self._forget(c)
        else:
            c.learn(found)
            if found.state == "exited":
                self._conclude(c, c.exited(found))

    def _conclude(self, c: Container, status: "Status") -> None:
        c.status = status
        self._bell.ring()

    def _forget(self, c: Container) -> None:
        attempts = self._attempts.get((c.uid, c.name), [])
        if c in attempts:
            attempts.remove(c)
        self._bell.ring()

    def _list(self, **labels: str) -> "Generator[Wait, bool, list[dict[str, Any]]]":
        """What the engine holds of this agent's. Raises EngineDown, EngineRefused."""
        wanted = ["%s=%s" % (OWNER, self._owner)] + ["%s=%s" % pair for pair in labels.items()]
        query = [("all", "1"), ("filters", filters(label=wanted))]
        found: "list[dict[str, Any]] | None" = yield from self._engine.call("GET", "/containers/json", query)
        return found or []

    def _delete(self, name: str) -> "Generator[Wait, bool, None]":
        """Removes a container with its anonymous volumes, running or not, and returns once it is gone."""
        deadline = clock() + REMOVE_S
        while True:
            query = [("force", "1"), ("v", "1")]
            try:
                yield from self._engine.call("DELETE", "/containers/%s" % quote(name), query)
                return
            except EngineRefused as error:
                if error.status == 404:
                    return
                if clock() >= deadline:
                    raise
            yield Wait(-1, 0, clock() + POLL_S[-1])  # it is being removed already, or is busy

    # Listening

    def _listen(self) -> None:
        if self._watcher is None:
            self._watcher = self._loop.spawn(self._watch(), "engine")

    def _watch(self) -> "Generator[Wait, bool, None]":
        """The one task that listens to the engine, for ever."""
        failures = 0
        while True:
            try:
                yield from self._hear()
                failures = 0  # it listened, and the engine ended it
                pause = RECONNECT_S[0]
            except EngineRefused as error:
                self.trouble = "the engine gives no events: %s" % error
                pause = UNWATCHED_S
            except (EngineDown, BadAnswer) as error:
                self.trouble = str(error)
                self._engine.forget()
                pause = RECONNECT_S[min(failures, len(RECONNECT_S) - 1)]
                failures += 1
            yield Wait(-1, 0, clock() + pause)

    def _hear(self) -> "Generator[Wait, bool, None]":
        """Listens until the engine ends the connection. Raises EngineDown, EngineRefused, BadAnswer."""
        yield from self._resync()
        wanted = filters(type=["container"], label=["%s=%s" % (OWNER, self._owner)])
        query = [("since", str(int(time.time() - OVERLAP_S))), ("filters", wanted)]
        stream = yield from self._engine.open("GET", "/events", query)
        try:
            yield from self._resync()
            self.trouble = ""
            rest = bytearray()
            resync_at = clock() + RESYNC_S
            while True:
                data = yield from stream.read(self._next_look(resync_at))
                if data == b"":
                    return
                for line in lines_of(rest, data or b"", EVENT_BYTES_MAX):
                    self._note(line)
                if clock() >= resync_at:
                    yield from self._resync()
                    resync_at = clock() + RESYNC_S
                yield from self._look_at_dirty()
        finally:
            stream.close()

    def _next_look(self, resync_at: float) -> float:
        dirty = any(c.dirty and c.status is None and not c.starting for c in self._all())
        return min(resync_at, clock() + POLL_S[-1]) if dirty else resync_at

    def _all(self) -> "list[Container]":
        return [c for attempts in self._attempts.values() for c in attempts]

    def _note(self, line: bytes) -> None:
        """Marks the container that an event is about. Raises BadAnswer."""
        try:
            event = json.loads(line)
            action, name = str(event.get("Action") or event.get("status")), event["Actor"]["ID"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadAnswer("an event makes no sense: %r" % line[:100]) from error
        if action in ENDINGS:
            for c in self._all():
                if c.id == name:
                    c.dirty = True

    def _resync(self) -> "Generator[Wait, bool, None]":
        """Looks at everything that is not known to run. Raises EngineDown, EngineRefused."""
        listed = yield from self._list()
        running = {entry.get("Id") for entry in listed if entry.get("State") == "running"}
        for c in self._all():
            if c.status is None and c.id not in running:
                c.dirty = True
        yield from self._look_at_dirty()

    def _look_at_dirty(self) -> "Generator[Wait, bool, None]":
        for c in self._all():
            if c.dirty and c.status is None and not c.starting:
                yield from self._look(c)

    def changes(self, deadline: "float | None") -> "Generator[Wait, bool, list[Status]]":
        self._listen()
        while True:
            ended = []
            for c in [attempts[-1] for attempts in self._attempts.values() if attempts]:
                if c.status is not None and not c.reported and not c.stops:
                    c.reported = True
                    ended.append(c.status)
            if ended or (deadline is not None and clock() >= deadline):
                return ended
            yield from self._bell.wait(deadline)

    # Finding again

    def recover(self) -> "Generator[Wait, bool, list[Status]]":
        try:
            listed = yield from self._list()
            found: "list[tuple[Container, Described]]" = []
            for entry in listed:
                described = yield from self._inspect(str(entry.get("Id")))
                if described is not None:
                    found += yield from self._recognise(described)
            for c, described in found:
                yield from self._adopt(c, described)
            yield from self._tidy()
        except (EngineDown, EngineRefused) as error:
            self._attempts.clear()
            self.trouble = str(error)
            raise RuntimeFailure("RuntimeNotReady", str(error)) from error
        self._listen()
        newest = [attempts[-1] for attempts in self._attempts.values()]
        for c in newest:
            c.reported = c.status is not None
        return [c.status or c.running() for c in newest]

    def _recognise(self, found: Described) -> "Generator[Wait, bool, list[tuple[Container, Described]]]":
        """The container that a description is about; what was only intended is removed."""
        try:
            uid, name, attempt = found.key
        except (KeyError, ValueError):
            return []  # it bears our mark and is not ours: somebody's copy
        if not found.started_at and found.state == "created":
            yield from self._delete(found.id)
            return []
        boot = found.labels.get(BOOT, "")
        c = Container(uid, name, attempt, boot, self._engine.name)
        c.image_id = found.image
        c.learn(found)
        return [(c, found)]

    def _adopt(self, c: Container, found: Described) -> "Generator[Wait, bool, None]":
        if c.survived_badly(found, self._boot):
            if found.state == "running":
                yield from self._kill_now(c)
            text = "the machine was restarted while it ran, so nothing recorded how it ended"
            c.status = c.lost(text, time.time())
        elif found.state != "running":
            c.status = c.exited(found)
        self._attempts.setdefault((c.uid, c.name), []).append(c)

    def _kill_now(self, c: Container) -> "Generator[Wait, bool, None]":
        """Kills it and waits until nothing of it runs. Raises EngineDown, EngineRefused."""
        deadline = clock() + UNKILLABLE_S
        yield from self._signal(c, "SIGKILL")
        while True:
            found = yield from self._inspect(c.id)
            if found is None or found.state != "running":
                return
            if clock() >= deadline:
                raise EngineDown("container %s cannot be killed" % c.engine_name, True)
            yield Wait(-1, 0, clock() + POLL_S[1])

    def _tidy(self) -> "Generator[Wait, bool, None]":
        """Keeps the newest two attempts of each container, and lets only the newest run."""
        for attempts in self._attempts.values():
            attempts.sort(key=lambda c: c.attempt)
            for old in attempts[:-2]:
                yield from self._delete(old.id)
            del attempts[:-2]
            for old in attempts[:-1]:
                if old.status is None:
                    yield from self._kill_now(old)
                    old.status = old.lost("a newer attempt was found", time.time())

    # Stopping

    def stop(self, uid: str, container: str, grace_s: float) -> "Generator[Wait, bool, Status]":
        while (uid, container) in self._starting and self._in_engine(uid, container):
            yield from self._bell.wait(None)
        c = self._newest(uid, container)
        c.stops += 1
        try:
            if c.status is None:
                yield from self._end(c, clock() + grace_s)
            assert c.status is not None
            c.reported = True
            return c.status
        except (EngineDown, EngineRefused) as error:
            raise RuntimeFailure("StopFailed", str(error)) from error
        finally:
            c.stops -= 1
            self._bell.ring()

    def _in_engine(self, uid: str, container: str) -> bool:
        return any(c.starting for c in self._attempts.get((uid, container), []))

    def _end(self, c: Container, kill_at: float) -> "Generator[Wait, bool, None]":
        """Asks it to end, kills it when its time is up, and returns when it has ended. Raises EngineDown, EngineRefused."""
        killed = False
        yield from self._signal(c, c.stop_signal)
        looks = 0
        while True:
            yield from self._look(c)
            if c.status is not None:
                return
            now = clock()
            if not killed and now >= kill_at:
                killed = True
                yield from self._signal(c, "SIGKILL")
                continue
            if killed and now >= kill_at + UNKILLABLE_S:
                raise EngineDown("container %s cannot be killed" % c.engine_name, True)
            pause = now + POLL_S[min(looks, len(POLL_S) - 1)]
            looks += 1
            yield from self._bell.wait(pause if killed else min(pause, kill_at))

    def _signal(self, c: Container, signal: str) -> "Generator[Wait, bool, None]":
        """That it does not run any more is no error. Raises EngineDown, EngineRefused."""
        try:
            yield from self._engine.call("POST", "/containers/%s/kill" % c.id, [("signal", signal)])
        except EngineRefused as error:
            if error.status == 404:
                return
            found = yield from self._inspect(c.id)
            if found is not None and found.state == "running":
                raise EngineRefused(
                    error.status, "cannot signal container %s: %s" % (c.name, error)
                ) from error

    def _newest(self, uid: str, container: str) -> Container:
        attempts = self._attempts.get((uid, container))
        if not attempts:
            text = "container %s of pod %s has not been started here" % (container, uid)
            raise RuntimeFailure("NotFound", text)
        return attempts[-1]

    def remove(self, uid: str) -> "Generator[Wait, bool, None]":
        try:
            listed = yield from self._list(**{UID: uid})
            for entry in listed:
                yield from self._delete(str(entry.get("Id")))
        except (EngineDown, EngineRefused) as error:
            raise RuntimeFailure("RemoveFailed", str(error)) from error
        for key in [k for k in self._attempts if k[0] == uid]:
            del self._attempts[key]
        self._bell.ring()

    # Looking inside

    def exec(
        self, uid: str, container: str, argv: "list[str]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[int, bytes]]":
        c = self._newest(uid, container)
        if c.status is not None or c.starting:
            raise RuntimeFailure("ExecFailed", "container %s is not running" % container)
        if not argv:
            raise RuntimeFailure("ExecFailed", "exec needs a command")
        deadline = clock() + timeout_s
        try:
            code, output = yield from self._exec(c, argv, deadline)
        except (EngineDown, EngineRefused, BadAnswer) as error:
            if clock() >= deadline:
                raise RuntimeFailure("Timeout", "%s: %s" % (argv[0], error)) from error
            text = "cannot run %s in container %s: %s" % (argv[0], container, error)
            raise RuntimeFailure("ExecFailed", text) from error
        if code is None:
            raise RuntimeFailure("Timeout", "%s did not end within %g s" % (argv[0], timeout_s))
        if code in (126, 127) and b"OCI runtime" in output:
            text = "cannot run %s in container %s: %s" % (
                argv[0],
                container,
                output.decode("utf-8", "replace"),
            )
            raise RuntimeFailure("ExecFailed", text[:1024])
        return code, output

    def _exec(
        self, c: Container, argv: "list[str]", deadline: float
    ) -> "Generator[Wait, bool, tuple[int | None, bytes]]":
        """(exit code, output); None for the code when it did not end in time, and was killed."""
        body = {"AttachStdout": True, "AttachStderr": True, "Cmd": argv}
        made = yield from self._engine.call("POST", "/containers/%s/exec" % c.id, None, body)
        path = "/exec/%s" % quote(str((made or {}).get("Id")))
        output = bytearray()
        stream = yield from self._engine.open(
            "POST", path + "/start", None, {"Detach": False, "Tty": False}, deadline
        )
        try:
            frames = Frames()
            while True:
                data = yield from stream.read(deadline)
                if not data:
                    break
                output += frames.feed(data)[: max(0, OUTPUT_BYTES - len(output))]
        finally:
            stream.close()
        looks = 0
        while True:
            found = yield from self._engine.call("GET", path + "/json")
            if not found.get("Running"):
                return int(found.get("ExitCode") or 0), bytes(output)
            if data is None or clock() >= deadline:
                yield from self._kill_exec(c, int(found.get("Pid") or 0))
                return None, bytes(output)
            # Its output has ended: most often its end is on the way.
            yield Wait(-1, 0, min(deadline, clock() + POLL_S[min(looks, len(POLL_S) - 1)]))
            looks += 1

    def _kill_exec(self, c: Container, pid: int) -> "Generator[Wait, bool, None]":
        """The API cannot end an exec, so it is killed from outside: its pid is the host's. It is ours to kill when it shares the
        container's pid namespace."""
        try:
            found = yield from self._engine.call("GET", "/containers/%s/json" % c.id)
            main = int(found["State"]["Pid"])
            if pid > 1 and os.readlink("/proc/%d/ns/pid" % pid) == os.readlink("/proc/%d/ns/pid" % main):
                os.kill(pid, 9)
        except (OSError, KeyError, TypeError, EngineRefused):
            pass  # it has ended, or the engine is on another machine or user: then it runs on until its container ends

    def logs(
        self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink"
    ) -> "Generator[Wait, bool, None]":
        c = self._newest(uid, container)
        if options.get("previous"):
            attempts = self._attempts[(uid, container)]
            if len(attempts) < 2:
                raise RuntimeFailure("NotFound", "container %s has no previous attempt" % container)
            c = attempts[-2]
        query = [("stdout", "1"), ("stderr", "1")]
        for name in ("follow", "timestamps"):
            if options.get(name):
                query.append((name, "1"))
        if options.get("tail") is not None:
            query.append(("tail", str(options["tail"])))
        if options.get("since_s") is not None:
            query.append(("since", str(int(time.time() - options["since_s"]))))
        limit = options.get("limit")
        try:
            stream = yield from self._engine.open("GET", "/containers/%s/logs" % c.id, query)
            try:
                frames = Frames(raw=c.tty)
                left = 1 << 62 if limit is None else int(limit)
                while left > 0:
                    data = yield from stream.read(None)
                    if not data:
                        return
                    text = frames.feed(data)[:left]
                    left -= len(text)
                    if text:
                        yield from out.write(text)
            finally:
                stream.close()
        except EngineRefused as error:
            reason = "NotFound" if error.status == 404 else "LogsFailed"
            raise RuntimeFailure(reason, "log of container %s: %s" % (container, error)) from error
        except (EngineDown, BadAnswer) as error:
            raise RuntimeFailure("LogsFailed", "log of container %s: %s" % (container, error)) from error


def _owner(path: str) -> str:
    """The id by which this agent's containers are known to the engine. It lies in the data directory and moves with it."""
    try:
        with open(path) as f:
            found = f.read().strip()
        if len(found) == 32 and all(c in "0123456789abcdef" for c in found):
            return found
    except FileNotFoundError:
        pass  # the first start
    made = os.urandom(16).hex()
    with open(path + ".new", "w") as f:
        f.write(made + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".new", path)
    return made


def _ulimits() -> "list[tuple[str, int]]":
    """What an engine may set here: not above the agent's own, for engines' defaults can be more than the machine allows them."""
    import resource

    found = []
    for name, kind, ceiling in (
        ("nofile", resource.RLIMIT_NOFILE, "/proc/sys/fs/nr_open"),
        ("nproc", resource.RLIMIT_NPROC, "/proc/sys/kernel/pid_max"),
    ):
        try:
            with open(ceiling) as f:
                most = int(f.read())
        except (OSError, ValueError):
            most = 32768
        hard = resource.getrlimit(kind)[1]
        found.append((name, most if hard == resource.RLIM_INFINITY else min(hard, most)))
    return found


def _image_id(image: "dict[str, Any]") -> str:
    digests = image.get("RepoDigests") or []
    return str(digests[0] if digests else image.get("Id") or "")


def _give_group(launch: "Launch") -> None:
    """fsGroup: emptyDir volumes belong to the group, and what is made in them inherits it."""
    group = (launch.pod["spec"].get("securityContext") or {}).get("fsGroup")
    if group is None:
        return
    empty = [v["name"] for v in launch.pod["spec"].get("volumes") or [] if v.get("emptyDir") is not None]
    try:
        for m in launch.mounts:
            if m.name in empty and os.path.isdir(m.source):
                os.chown(m.source, -1, int(group))
                os.chmod(m.source, (os.stat(m.source).st_mode & 0o7777) | 0o2070)  # noqa: S103
    except OSError as error:
        text = "fsGroup %s: the agent cannot give a volume to this group: %s" % (group, error)
        raise RuntimeFailure("CreateContainerConfigError", text) from error
