"""Operations on an engine's containers: what the runtime and its helpers ask for, in one request or a few.

All are generators for `edgelite.loop`, and raise EngineDown and EngineRefused (see engine).
"""

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.container_record import OWNER, Described
from edgelite.runtimes.engine import EngineDown, EngineRefused
from edgelite.runtimes.engine_http import filters, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.runtimes.container_record import Container
    from edgelite.runtimes.engine import Engine

REMOVE_S = 60.0
UNKILLABLE_S = 20.0
SIGNAL_S = 5.0
POLL_S = (0.02, 0.05, 0.1, 0.2, 0.5)


class Containers:
    """owner: marks this agent's containers."""

    def __init__(self, engine: "Engine", owner: str) -> None:
        self._engine = engine
        self.owner = owner

    def inspect(self, name: str) -> "Generator[Wait, bool, Described | None]":
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

    def address(self, name: str) -> "Generator[Wait, bool, str]":
        """The container's own IP address, "" where it has none: in the host's network. Raises RuntimeFailure."""
        try:
            found = yield from self._engine.call("GET", "/containers/%s/json" % quote(name))
            networks = (found["NetworkSettings"].get("Networks") or {}).values()
            return next((str(n["IPAddress"]) for n in networks if n and n.get("IPAddress")), "")
        except (EngineDown, EngineRefused, KeyError, TypeError, AttributeError) as error:
            text = "the engine does not tell the address of the container: %s" % error
            raise RuntimeFailure("ConnectFailed", text) from error

    def usage(self, name: str) -> "Generator[Wait, bool, tuple[int, int] | None]":
        """(cpu ns since its start, memory bytes without what the cache would give back); None when there is no such container
        any more. Raises RuntimeFailure."""
        query = [("stream", "false"), ("one-shot", "true")]
        try:
            found = yield from self._engine.call("GET", "/containers/%s/stats" % quote(name), query)
            memory = found.get("memory_stats") or {}
            parts = memory.get("stats") or {}
            cache = parts.get("inactive_file") or parts.get("total_inactive_file") or 0
            cpu = found["cpu_stats"]["cpu_usage"]["total_usage"]
            return int(cpu), max(0, int(memory.get("usage") or 0) - int(cache))
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise RuntimeFailure(
                "Failed", "the engine does not tell what %s uses: %s" % (name, error)
            ) from error
        except (EngineDown, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RuntimeFailure(
                "Failed", "the engine does not tell what %s uses: %s" % (name, error)
            ) from error

    def all(self, **labels: str) -> "Generator[Wait, bool, list[dict[str, Any]]]":
        """What the engine holds of this agent's. Raises EngineDown, EngineRefused."""
        wanted = ["%s=%s" % (OWNER, self.owner)] + ["%s=%s" % pair for pair in labels.items()]
        query = [("all", "1"), ("filters", filters(label=wanted))]
        found: "list[dict[str, Any]]" = yield from self._engine.call("GET", "/containers/json", query)
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise EngineDown("the engine's list of containers makes no sense", True)
        return found

    def delete(self, name: str) -> "Generator[Wait, bool, None]":
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

    def signal(self, c: "Container", signal: str) -> "Generator[Wait, bool, None]":
        """That it does not run any more is no error. Raises EngineDown, EngineRefused."""
        deadline = clock() + SIGNAL_S
        while True:
            try:
                yield from self._engine.call("POST", "/containers/%s/kill" % c.id, [("signal", signal)])
                return
            except EngineRefused as error:
                if error.status == 404:
                    return
                found = yield from self.inspect(c.id)
                if found is None or found.state != "running":
                    return
                if clock() >= deadline:
                    text = "cannot signal container %s: %s" % (c.name, error)
                    raise EngineRefused(error.status, text) from error
            # While it ends, Podman says for a moment that it runs and that it cannot be signalled.
            yield Wait(-1, 0, clock() + POLL_S[1])

    def kill(self, c: "Container") -> "Generator[Wait, bool, None]":
        """Kills it and waits until nothing of it runs. Raises EngineDown, EngineRefused."""
        deadline = clock() + UNKILLABLE_S
        yield from self.signal(c, "SIGKILL")
        while True:
            found = yield from self.inspect(c.id)
            if found is None or found.state != "running":
                return
            if clock() >= deadline:
                raise EngineDown("container %s cannot be killed" % c.engine_name, True)
            yield Wait(-1, 0, clock() + POLL_S[1])
