"""The `container` runtime: containers in an engine that speaks the Docker Engine API (Podman, Docker). [Linux]

How a container is made is told in container_plan, what of a Pod is honoured in container_fields, how the engine is spoken to in
engine. Here: starting, watching, stopping and finding again.

The engine is the memory: labels say whose a container is, and its name is made from (uid, container, attempt), so whatever
kills the agent when, a second try to start the same attempt finds the first and doubles nothing. Invariants: an attempt is started
only when the one before has ended; its end is decided once, from what the engine says of the container and not from an event
(events only tell when to look); every end is handed out once, by the `stop` that waited for it, else by `changes`, or by `recover`
when it came while no agent ran.
"""

import os
import time

from edgelite.loop import now as clock
from edgelite.runtimes import container_inside, container_plan, container_review
from edgelite.runtimes.base import Runtime, RuntimeFailure
from edgelite.runtimes.container_listener import Listener
from edgelite.runtimes.container_record import BOOT, IMAGE, NAME, OWNER, UID, Container, Described
from edgelite.runtimes.container_site import Config, find_socket, owner_of, ulimits
from edgelite.runtimes.engine import Engine, EngineDown, EngineRefused, at_once
from edgelite.runtimes.engine_bell import Bell, Gate
from edgelite.runtimes.engine_containers import POLL_S, UNKILLABLE_S, Containers
from edgelite.runtimes.engine_images import Images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Loop, Wait
    from edgelite.runtimes.base import Ends, Launch, LogSink, State, Status

CONTACT_S = 2.0
START_S = 120.0
STARTS_AT_ONCE = 4  # engines take turns inside anyway, and slow down when many wait


def create(
    config: "Any", socket: str, data_dir: str, boot_id: str, loop: "Loop", state: "State"
) -> "ContainerRuntime":
    """What the agent calls. config: the agent's own Config; socket: where an engine answered, "" when none did: then the configured
    one, or the first of the usual places that exists, is waited for."""
    socket = socket or config.engine_socket or find_socket()
    return ContainerRuntime(loop, state, data_dir, boot_id, Config(socket, config.allow_privileged))


class ContainerRuntime(Runtime):
    """See the module's docstring, and Runtime for the interface.

    loop: runs the task that listens to the engine; state: not used, the engine remembers; data_dir: the agent's, holds the id by which
    its containers are known; boot_id: differs after a reboot. `trouble` tells why the engine cannot be reached, "" when it can."""

    name = "container"

    def __init__(self, loop: "Loop", state: "State", data_dir: str, boot_id: str, config: Config) -> None:
        self._boot = boot_id
        self._config = config
        self._engine = Engine(config.socket)
        self._images = Images(self._engine, config.pull_s)
        owner = owner_of(os.path.join(os.path.realpath(data_dir), "container.id"))
        self._containers = Containers(self._engine, owner)
        self._site = container_plan.Site(
            owner,
            boot_id,
            config.network,
            config.log_bytes,
            config.log_files,
            config.pids_max,
            ulimits(),
        )
        self._attempts: "dict[tuple[str, str], list[Container]]" = {}  # newest last, at most two
        self._starting: "set[tuple[str, str]]" = set()
        self._bell = Bell()  # something ended, or was started
        self._gate = Gate(STARTS_AT_ONCE)
        self._listener = Listener(loop, self._engine, self._containers, self._every, self._look)
        try:
            at_once(self._engine.contact(CONTACT_S))
        except (EngineDown, EngineRefused) as error:
            self._listener.trouble = str(error)

    @property
    def trouble(self) -> str:
        return self._listener.trouble

    def close(self) -> None:
        """Stops listening. What runs goes on running; a runtime made anew with the same data directory adopts it."""
        self._listener.close()

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
            self._listener.start()
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
        attempts = self._attempts.setdefault((c.uid, c.name), [])
        attempts.append(c)
        c.starting = True
        c.dirty = True  # until the engine has said how it is
        try:
            if found is None:
                yield from self._run(c)
        except (EngineDown, RuntimeFailure):
            attempts.remove(c)
            raise
        finally:
            # Also when cancelled: whether it runs is then found out by looking.
            c.starting = False
        c.started_at = c.started_at or time.time()
        try:
            yield from self._look(c)
        except (EngineDown, EngineRefused):
            pass  # it was started; the listener looks at it when the engine is back
        return c.running()

    def _prune(self, c: Container) -> "Generator[Wait, bool, None]":
        """Removes attempts before the previous one, whose log and end are kept. Raises EngineDown, EngineRefused."""
        attempts = self._attempts.get((c.uid, c.name), [])
        for old in attempts[:-1] + [o for o in attempts[-1:] if o.attempt == c.attempt]:
            yield from self._containers.delete(old.id)
            attempts.remove(old)

    def _create(self, c: Container, body: "dict[str, Any]") -> "Generator[Wait, bool, Described | None]":
        """Makes the container. Returns its description when it was there already and has been started, else None."""
        query = [("name", c.engine_name)]
        try:
            made = yield from self._engine.call("POST", "/containers/create", query, body, START_S)
        except EngineRefused as error:
            # 409 by the book; Podman says 500. So it is looked for, whatever the error.
            found = yield from self._containers.inspect(c.engine_name)
            if found is None:
                raise
            if self._is_same(found, body):
                c.learn(found)
                return found
            if found.labels.get(OWNER) != self._containers.owner and found.state == "running":
                text = "a container called %s runs already and is another agent's" % c.engine_name
                raise RuntimeFailure("CreateContainerError", text) from error
            yield from self._containers.delete(found.id)
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
            # Nothing runs. Should the engine go away now, the next try removes it.
            yield from self._containers.delete(c.id)
            raise RuntimeFailure("RunContainerError", str(error)) from error

    # Looking

    def _look(self, c: Container) -> "Generator[Wait, bool, None]":
        """Decides whether it has ended. Raises EngineDown, EngineRefused."""
        c.dirty = False
        try:
            found = yield from self._containers.inspect(c.id)
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

    def _every(self) -> "list[Container]":
        return [c for attempts in self._attempts.values() for c in attempts]

    def changes(self, deadline: "float | None") -> "Generator[Wait, bool, list[Status]]":
        self._listener.start()
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
            listed = yield from self._containers.all()
            found: "list[tuple[Container, Described]]" = []
            for entry in listed:
                described = yield from self._containers.inspect(str(entry.get("Id")))
                if described is not None:
                    found += yield from self._recognise(described)
            for c, described in found:
                yield from self._adopt(c, described)
            yield from self._tidy()
        except (EngineDown, EngineRefused) as error:
            self._attempts.clear()
            self._listener.trouble = str(error)
            raise RuntimeFailure("RuntimeNotReady", str(error)) from error
        self._listener.start()
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
            yield from self._containers.delete(found.id)
            return []
        boot = found.labels.get(BOOT, "")
        c = Container(uid, name, attempt, boot, self._engine.name)
        c.image_id = found.image
        c.learn(found)
        return [(c, found)]

    def _adopt(self, c: Container, found: Described) -> "Generator[Wait, bool, None]":
        if c.survived_badly(found, self._boot):
            if found.state == "running":
                yield from self._containers.kill(c)
            text = "the machine was restarted while it ran, so nothing recorded how it ended"
            c.status = c.lost(text, time.time())
        elif found.state != "running":
            c.status = c.exited(found)
        self._attempts.setdefault((c.uid, c.name), []).append(c)

    def _tidy(self) -> "Generator[Wait, bool, None]":
        """Keeps the newest two attempts of each container, and lets only the newest run."""
        for attempts in self._attempts.values():
            attempts.sort(key=lambda c: c.attempt)
            for old in attempts[:-2]:
                yield from self._containers.delete(old.id)
            del attempts[:-2]
            for old in attempts[:-1]:
                if old.status is None:
                    yield from self._containers.kill(old)
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
        yield from self._containers.signal(c, c.stop_signal)
        looks = 0
        while True:
            yield from self._look(c)
            if c.status is not None:
                return
            now = clock()
            if not c.killed and now >= kill_at:
                c.killed = True
                yield from self._containers.signal(c, "SIGKILL")
                continue
            if c.killed and now >= kill_at + UNKILLABLE_S:
                raise EngineDown("container %s cannot be killed" % c.engine_name, True)
            pause = now + POLL_S[min(looks, len(POLL_S) - 1)]
            looks += 1
            yield from self._bell.wait(pause if c.killed else min(pause, kill_at))

    def _newest(self, uid: str, container: str) -> Container:
        attempts = self._attempts.get((uid, container))
        if not attempts:
            text = "container %s of pod %s has not been started here" % (container, uid)
            raise RuntimeFailure("NotFound", text)
        return attempts[-1]

    def remove(self, uid: str) -> "Generator[Wait, bool, None]":
        try:
            listed = yield from self._containers.all(**{UID: uid})
            for entry in listed:
                yield from self._containers.delete(str(entry.get("Id")))
        except (EngineDown, EngineRefused) as error:
            raise RuntimeFailure("RemoveFailed", str(error)) from error
        for key in [k for k in self._attempts if k[0] == uid]:
            del self._attempts[key]
        self._bell.ring()

    # Looking inside

    def exec(
        self, uid: str, container: str, argv: "list[str]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[int, bytes]]":
        c = self._running(uid, container)
        if not argv:
            raise RuntimeFailure("ExecFailed", "exec needs a command")
        return (yield from container_inside.run(self._engine, c, argv, timeout_s))

    def _running(self, uid: str, container: str) -> Container:
        """Raises RuntimeFailure."""
        c = self._newest(uid, container)
        if c.status is not None or c.starting:
            raise RuntimeFailure("ExecFailed", "container %s is not running" % container)
        return c

    def open_exec(
        self,
        uid: str,
        container: str,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        tty: bool,
    ) -> "Generator[Wait, bool, Ends]":
        from edgelite.runtimes import container_streams  # most agents never need it

        c = self._running(uid, container)
        return (yield from container_streams.open_exec(self._engine, c, argv, stdin, outputs, tty))

    def open_attach(self, uid: str, container: str, stdin: bool) -> "Generator[Wait, bool, Ends]":
        from edgelite.runtimes import container_streams

        return (yield from container_streams.open_attach(self._engine, self._running(uid, container), stdin))

    def usage(self) -> "Generator[Wait, bool, list[tuple[str, str, int, int]]]":
        found = []
        for (uid, name), attempts in list(self._attempts.items()):
            c = attempts[-1] if attempts else None
            if c is None or c.status is not None or c.starting:
                continue
            used = yield from self._containers.usage(c.id)
            if used is not None:
                found.append((uid, name, *used))
        return found

    def address(self, uid: str) -> "Generator[Wait, bool, str]":
        """Containers of one pod share no address where the network is not the host's: the first that has one."""
        for c in [attempts[-1] for key, attempts in self._attempts.items() if key[0] == uid and attempts]:
            if c.status is None:
                address = yield from self._containers.address(c.id)
                if address:
                    return address
        return "127.0.0.1"

    def logs(
        self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink"
    ) -> "Generator[Wait, bool, None]":
        c = self._newest(uid, container)
        if options.get("previous"):
            attempts = self._attempts[(uid, container)]
            if len(attempts) < 2:
                raise RuntimeFailure("NotFound", "container %s has no previous attempt" % container)
            c = attempts[-2]
        yield from container_inside.logs(self._engine, c, options, out)


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
