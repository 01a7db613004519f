"""What takes time in a pod's life: starts, stops, hooks, probes and removal, as generators for the loop.

Each of them tells the pod's machine how it ended, and never fails: what goes wrong becomes news for the machine.
"""

from edgelite.containers import STOPPING
from edgelite.loop import Cancelled, Wait
from edgelite.podenv import BadReference, MissingReference, environment, pull_secrets
from edgelite.reconcile import GRACE_MIN_S, RETRY_S
from edgelite.runtimes.base import Launch, RuntimeFailure
from edgelite.tokens import needs
from edgelite.volumes import VolumeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop
    from edgelite.operations import Steps
    from edgelite.podactions import Check, Hook, Stop
    from edgelite.podenv import Environment, Library, NodeFacts
    from edgelite.reconcile import Pod
    from edgelite.runtimes.base import LogSink, Runtime
    from edgelite.volumes import Volumes
    from edgelite.workloads import Clock

HOOK_TIMEOUT_S = 300.0
READERS_S = (
    2.0  # what readers of a log get to reach its end before it is removed; one without credit never would
)
READERS_TURN_S = 0.05
TOKENS_S = 5.0
TOKENS_TURN_S = 0.1


class PodTasks:
    """See the module. `touch(uid)` says that something happened to a pod, `trouble(text)` what an operator should know."""

    def __init__(
        self,
        loop: "Loop",
        runtime: "Runtime",
        node: "NodeFacts",
        library: "Library",
        volumes: "Volumes",
        clock: "Clock",
        touch: "Callable[[str], None]",
        trouble: "Callable[[str], None]",
    ) -> None:
        self._loop = loop
        self._runtime = runtime
        self._node = node
        self._library = library
        self._volumes = volumes
        self._clock = clock
        self._touch = touch
        self._trouble = trouble
        self._readers: "dict[str, int]" = {}  # of logs, by the pod's UID

    def _times(self) -> "tuple[float, float]":
        return self._clock.now(), self._clock.wall()

    def start(self, pod: "Pod", name: str, attempt: int) -> "Steps":
        """Starts a container, from its volumes on."""
        yield from self._await_tokens(pod)
        try:
            launch, env = self._prepare(pod, name, attempt)
        except (MissingReference, BadReference) as error:
            if isinstance(error, MissingReference) and error.volume:
                text = 'MountVolume.SetUp failed for volume "%s" : %s' % (error.volume, error.message)
                pod.warn("FailedMount", text, *self._times())
            pod.start_blocked(name, attempt, error.message, *self._times())
        except (VolumeError, OSError) as error:
            pod.start_failed(name, attempt, "CreateContainerError", str(error), *self._times())
        else:
            yield from self._launch(pod, launch, env)
        self._touch(pod.uid)

    def _await_tokens(self, pod: "Pod") -> "Steps":
        """Tokens are asked for when the pod comes: a moment later they are here, and nothing has to be said of it."""
        until = self._loop.now() + TOKENS_S
        missing = [need.key for need in needs(pod.doc)]
        while self._loop.now() < until:
            missing = [key for key in missing if self._library.tokens.get(key) is None]
            if not missing:
                return
            yield Wait(-1, 0, self._loop.now() + TOKENS_TURN_S)

    def _prepare(self, pod: "Pod", name: str, attempt: int) -> "tuple[Launch, Environment]":
        """Everything that a start needs, and its environment once more. Raises MissingReference, BadReference, VolumeError or OSError."""
        container = pod.container(name)
        assert container is not None
        doc, spec = pod.doc, container.spec
        pod_dir = self._volumes.pod_dir(pod.uid)
        self._volumes.prepare(doc, self._clock.wall())
        pod.prepared()
        env = environment(doc, spec, self._library, self._node)
        if env.skipped:
            text = "Keys %s cannot be names of environment variables, and were skipped" % ", ".join(
                env.skipped
            )
            pod.warn("InvalidEnvironmentVariableNames", text, *self._times())
        try:
            mounts = self._volumes.mounts(doc, spec, env)
        except (BadReference, VolumeError) as error:
            raise type(error)(env.hide(error.message))
        logins, unusable = pull_secrets(doc, self._library)
        if unusable:
            text = "Unable to use image pull secrets (%s): the image may not be pulled" % ", ".join(unusable)
            pod.warn("FailedToRetrieveImagePullSecret", text, *self._times())
        command, args = env.expand(spec.get("command") or []), env.expand(spec.get("args") or [])
        return Launch(doc, spec, attempt, command, args, env.pairs(), mounts, pod_dir, logins), env

    def _launch(self, pod: "Pod", launch: Launch, env: "Environment") -> "Steps":
        name = launch.container["name"]
        try:
            status = yield from self._runtime.start(launch)
        except RuntimeFailure as error:
            pod.start_failed(name, launch.attempt, error.reason, env.hide(error.message), *self._times())
            return
        except Cancelled:
            raise
        except Exception as error:
            # It is not known how far it came (the journal may have failed behind a fork): nothing may be left running.
            yield from self._make_sure_it_ended(pod, name)
            text = env.hide("%s: %s" % (type(error).__name__, error))
            pod.start_failed(name, launch.attempt, "CreateContainerError", text, *self._times())
            return
        pod.running(status, *self._times())

    def _make_sure_it_ended(self, pod: "Pod", name: str) -> "Steps":
        while True:
            try:
                yield from self._runtime.stop(pod.uid, name, GRACE_MIN_S)
                return
            except RuntimeFailure:
                return  # the runtime knows of no such container
            except Cancelled:
                raise
            except Exception as error:
                self._trouble("container %s of %s: %s" % (name, pod.title, error))
                yield Wait(-1, 0, self._loop.now() + RETRY_S)

    def stop(self, pod: "Pod", act: "Stop") -> "Steps":
        """Stops a container: preStop first, then the signals, all within the grace."""
        began = self._loop.now()
        container = pod.container(act.name)
        assert container is not None
        if act.hook:
            ok, text = yield from self._handle(pod, container.spec, "preStop", act.grace_s)
            if not ok:
                pod.hook_failed(act.name, text, *self._times())
        if container.state != STOPPING or container.attempt != act.attempt:
            return  # it ended meanwhile; there may be another attempt already, which is not to be stopped
        left = max(GRACE_MIN_S, act.grace_s - (self._loop.now() - began))
        try:
            status = yield from self._runtime.stop(pod.uid, act.name, left)
        except Cancelled:
            raise
        except Exception as error:
            pod.stop_failed(act.name, act.attempt, str(error), *self._times())
        else:
            pod.exited(status, *self._times())
            if container.state == STOPPING and container.attempt == act.attempt:
                text = "the runtime speaks of attempt %d instead of %d" % (status.attempt, act.attempt)
                pod.stop_failed(act.name, act.attempt, text, *self._times())
        self._touch(pod.uid)

    def _handle(
        self, pod: "Pod", spec: "dict[str, Any]", field: str, timeout_s: float
    ) -> "Generator[Wait, bool, tuple[bool, str]]":
        """Runs a lifecycle hook."""
        handler = (spec.get("lifecycle") or {}).get(field) or {}
        return (yield from self._ask(pod, spec, handler, timeout_s))

    def _ask(
        self, pod: "Pod", spec: "dict[str, Any]", handler: "dict[str, Any]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[bool, str]]":
        ips = self._node.ips()
        pod_ip = ips[0] if ips else "127.0.0.1"
        from edgelite import proberunner  # most nodes have no probes

        return (yield from proberunner.run(self._runtime, pod.uid, spec, handler, pod_ip, timeout_s))

    def post_start(self, pod: "Pod", act: "Hook") -> "Steps":
        """Runs the postStart hook."""
        container = pod.container(act.name)
        assert container is not None
        ok, text = yield from self._handle(pod, container.spec, "postStart", HOOK_TIMEOUT_S)
        pod.hook_done(act.name, act.attempt, "" if ok else text, *self._times())
        self._touch(pod.uid)

    def check(self, pod: "Pod", act: "Check") -> "Steps":
        """Runs one probe."""
        container = pod.container(act.name)
        assert container is not None
        ok, text = yield from self._ask(pod, container.spec, act.spec, act.timeout_s)
        pod.checked(act.name, act.attempt, act.kind, ok, text, *self._times())
        self._touch(pod.uid)

    def logs(self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink") -> "Steps":
        """Writes a container's log to `out`. Unlike the others it fails, with RuntimeFailure and what `out` raises."""
        self._readers[uid] = self._readers.get(uid, 0) + 1
        try:
            yield from self._runtime.logs(uid, container, options, out)
        finally:
            self._readers[uid] -= 1
            if not self._readers[uid]:
                del self._readers[uid]

    def remove(self, pod: "Pod") -> "Steps":
        """Removes everything of a pod of which nothing runs, when those who follow its logs have had the last lines."""
        until = self._loop.now() + READERS_S
        while self._readers.get(pod.uid) and self._loop.now() < until:
            yield Wait(-1, 0, self._loop.now() + READERS_TURN_S)
        try:
            yield from self._runtime.remove(pod.uid)
            yield from self._volumes.remove(pod.uid)
        except Cancelled:
            raise
        except Exception as error:
            pod.remove_failed(str(error), *self._times())
        else:
            pod.remove_done()
        self._touch(pod.uid)
