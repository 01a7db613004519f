"""What every runtime offers. The seam between `workloads` (which decides nothing either: `reconcile` does) and the
host.

All methods that may take time are generators for `edgelite.loop` (`yield from runtime.start(...)`); the others
return at once. A runtime keeps what it must find again after kill -9 of the agent (the intent before a fork, the
identity of a process, an engine's container id) in `state`, a durable map that the journal provides.

Identity of a container: (pod UID, container name, attempt). `attempt` counts up from 0 with every restart.
"""

from edgelite.loop import Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, Protocol

    Steps = Generator[Wait, bool, None]
    Send = Callable[[int, bytes], Steps]

    class LogSink(Protocol):
        """Where log bytes go. `write` waits for credit and raises when the reader is gone."""

        def write(self, data: bytes) -> Generator[Wait, bool, None]: ...


class RuntimeFailure(Exception):
    """A container could not be started, stopped or reached.

    `reason` is Kubernetes' word for it (ErrImagePull, ImagePullBackOff, CreateContainerError, RunContainerError,
    InvalidImageName, ErrImageNeverPull), `message` says what happened and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class State:
    """A durable map that a runtime owns: survives kill -9. Writes are durable when `put` returns.
    The journal implements it under a prefix; a dict-backed one serves tests."""

    def put(self, key: str, value: bytes) -> None:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def items(self) -> "list[tuple[str, bytes]]":
        raise NotImplementedError


class Mount:
    """One volume mount, already materialised on the host. `source` is a host path (file or directory)."""

    __slots__ = ("name", "read_only", "source", "target")

    def __init__(self, name: str, source: str, target: str, read_only: bool) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.read_only = read_only


class Launch:
    """Everything that is needed to start one container.

    pod: the Pod document (ARCHITECTURE.md, "Documents"); container: its entry of spec.containers or
    spec.initContainers; env: ordered (name, value) pairs, resolved and expanded; command: argv already expanded
    ($(VAR)), [] when the image's own entry point is to be used; args likewise; pod_dir: the pod's directory on the
    host, 0700-owned by the agent; secrets: {"registry": {"username", "password"}} from imagePullSecrets.
    """

    __slots__ = ("args", "attempt", "command", "container", "env", "mounts", "pod", "pod_dir", "pull_secrets")

    def __init__(
        self,
        pod: "dict[str, Any]",
        container: "dict[str, Any]",
        attempt: int,
        command: "list[str]",
        args: "list[str]",
        env: "list[tuple[str, str]]",
        mounts: "list[Mount]",
        pod_dir: str,
        pull_secrets: "dict[str, dict[str, str]]",
    ) -> None:
        self.pod = pod
        self.container = container
        self.attempt = attempt
        self.command = command
        self.args = args
        self.env = env
        self.mounts = mounts
        self.pod_dir = pod_dir
        self.pull_secrets = pull_secrets


class Status:
    """What is known of one container: `phase` is "running" or "exited"."""

    __slots__ = (
        "attempt",
        "container",
        "exit_code",
        "finished_at",
        "handle",
        "image_id",
        "message",
        "phase",
        "reason",
        "started_at",
        "uid",
    )

    def __init__(
        self, uid: str, container: str, attempt: int, phase: str, started_at: float, handle: str = ""
    ) -> None:
        self.uid = uid
        self.container = container
        self.attempt = attempt
        self.phase = phase  # "running" | "exited"
        self.started_at = started_at  # wall clock, seconds
        self.handle = handle  # becomes status.containerID, e.g. "process://..." or "docker://..."
        self.finished_at = 0.0  # wall clock, seconds
        self.exit_code = 0  # 128 + signal when a signal ended it
        self.reason = ""  # "Completed" | "Error" | "OOMKilled" | "ContainerStatusUnknown"
        self.message = ""
        self.image_id = ""


class Ends:
    """The node's end of a stream that goes both ways: a command, a container's own streams, a connection. Made by
    `Runtime.open_exec` and `open_attach`, and `edgelite.forwarding`.

    All but `abandon` are generators. They may be woken for nothing, and then look again. What they raise
    (RuntimeFailure, OSError) ends the stream."""

    half_closes = False  # one side may end while the other goes on: a connection

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        """(channel, generator that copies one output until it ends) for each; called once. `send(channel, data)` waits
        for the reader."""
        raise NotImplementedError

    def write(self, data: bytes) -> "Steps":
        """Takes input, all of it, waiting where it has to; what nobody reads any more is dropped."""
        raise NotImplementedError

    def end_input(self) -> "Steps":
        """There is no more input."""
        raise NotImplementedError

    def resize(self, width: int, height: int) -> "Steps":
        """Columns and rows of the terminal; nothing where there is none."""
        return
        yield

    def result(self, quiet: "Callable[[], bool]") -> "Generator[Wait, bool, int]":
        """Waits for the end, that of the outputs unless there is more; the exit code. quiet() tells whether all outputs have
        ended, and `result` is woken then."""
        while not quiet():
            yield Wait(-1, 0, None)
        return 0

    def abandon(self) -> "Steps | None":
        """Ends whatever still runs and lets go of everything, at once where it can; else the rest of it as a generator."""
        raise NotImplementedError


class Runtime:
    """The interface. See the module's docstring for generators, identity and durability."""

    name = ""

    def facts(self) -> "dict[str, str]":
        """{"version": containerRuntimeVersion as Kubernetes shows it, e.g. "process://0.1.0"}."""
        raise NotImplementedError

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        """(refusals, warnings) for a Pod document: each "spec.path: what cannot be honoured here and what to do".
        A pod with a refusal is never started; a field at its Kubernetes default is never refused."""
        raise NotImplementedError

    def recover(self) -> "Generator[Wait, bool, list[Status]]":
        """Generator. At agent start: finds what runs from before (adopts it) and what ended meanwhile, and returns
        list[Status], the newest attempt of each (uid, container). Leftovers of a start that was only intended are
        killed or adopted, never doubled. After a reboot nothing runs: everything is "exited" with reason
        ContainerStatusUnknown unless its exit code was recorded."""
        raise NotImplementedError

    def start(self, launch: Launch) -> "Generator[Wait, bool, Status]":
        """Generator. Pulls where needed, creates and starts; returns Status (phase "running"). Raises RuntimeFailure."""
        raise NotImplementedError

    def changes(self, deadline: "float | None") -> "Generator[Wait, bool, list[Status]]":
        """Generator. Waits until at least one container ended (or `deadline`) and returns list[Status] of those,
        each reported once."""
        raise NotImplementedError

    def stop(self, uid: str, container: str, grace_s: float) -> "Generator[Wait, bool, Status]":
        """Generator. SIGTERM (or the engine's stop signal) to all of the container's processes, SIGKILL after
        `grace_s`; returns Status (phase "exited") once nothing of it runs. Stopping what has ended returns its Status."""
        raise NotImplementedError

    def remove(self, uid: str) -> "Generator[Wait, bool, None]":
        """Generator. Removes everything the runtime keeps of the pod (state, cgroups, engine containers, logs).
        Nothing of the pod runs any more when it is called. Idempotent."""
        raise NotImplementedError

    def exec(
        self, uid: str, container: str, argv: "list[str]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[int, bytes]]":
        """Generator. Runs argv inside the container's surroundings (mounts, env, user, working directory); returns
        (exit code, output bytes, at most 10 KiB). Raises RuntimeFailure when it cannot be run; a timeout kills it and
        raises RuntimeFailure("Timeout", ...)."""
        raise NotImplementedError

    def logs(
        self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink"
    ) -> "Generator[Wait, bool, None]":
        """Generator. Writes log bytes with `yield from out.write(chunk)` (which waits for credit and raises when the
        reader is gone). options as in the OPEN message: previous, follow, tail, since_s, timestamps, limit. Ends at the
        end of the log, or with follow when the container has ended. Raises RuntimeFailure when there is no such log."""
        raise NotImplementedError

    def open_exec(
        self,
        uid: str,
        container: str,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        tty: bool,
    ) -> "Generator[Wait, bool, Ends]":
        """Generator. Starts argv as `exec` does, with its standard streams at the Ends: stdin, outputs (out, err) where
        asked for, or all three on a terminal. Raises RuntimeFailure when it cannot be started."""
        raise NotImplementedError

    def open_attach(self, uid: str, container: str, stdin: bool) -> "Generator[Wait, bool, Ends]":
        """Generator. The standard streams of the container itself, from now on. Raises RuntimeFailure."""
        raise NotImplementedError

    def usage(self) -> "Generator[Wait, bool, list[tuple[str, str, int, int]]]":
        """Generator. (pod UID, container, cpu in ns since its start, memory in bytes) of every container that runs; what
        ends meanwhile may be missing. Raises RuntimeFailure."""
        raise NotImplementedError

    def address(self, uid: str) -> "Generator[Wait, bool, str]":
        """Generator. Where the agent reaches the pod's ports. Raises RuntimeFailure."""
        raise NotImplementedError
