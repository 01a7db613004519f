"""Generators that run beside the pump, so many of each kind at a time; more of them wait in line.

Invariant: at most `limits[kind]` of a kind run at once, and each leaves its place however it ends.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from edgelite.loop import Loop, Task, Wait

    Steps = Generator[Wait, bool, None]


class Operation:
    """Something under way, or waiting in line."""

    __slots__ = ("cancelled", "done", "gen", "kind", "name", "task")

    def __init__(self, kind: str, name: str, gen: "Steps") -> None:
        self.kind = kind
        self.name = name
        self.gen = gen
        self.task: "Task | None" = None
        self.cancelled = False
        self.done = False


class Operations:
    """See the module."""

    def __init__(self, loop: "Loop", limits: "dict[str, int]") -> None:
        self._loop = loop
        self._limits = limits
        self._running: "dict[str, int]" = {kind: 0 for kind in limits}
        self._lines: "dict[str, list[Operation]]" = {kind: [] for kind in limits}

    def run(self, kind: str, name: str, gen: "Steps") -> Operation:
        """Starts it, or puts it in line behind others of its kind."""
        operation = Operation(kind, "%s %s" % (kind, name), gen)
        self._lines[kind].append(operation)
        self._advance(kind)
        return operation

    def _advance(self, kind: str) -> None:
        while self._lines[kind] and self._running[kind] < self._limits[kind]:
            operation = self._lines[kind].pop(0)
            if not operation.cancelled:
                self._running[kind] += 1
                operation.task = self._loop.spawn(self._attend(operation), operation.name)

    def _attend(self, operation: Operation) -> "Steps":
        try:
            yield from operation.gen
        finally:
            self._over(operation)

    def _over(self, operation: Operation) -> None:
        if not operation.done:
            operation.done = True
            self._running[operation.kind] -= 1
            self._advance(operation.kind)

    def cancel(self, operation: "Operation | None") -> None:
        """Ends it wherever it is; what is done already is left alone. Not to be called from the operation itself."""
        if operation is None or operation.done:
            return
        operation.cancelled = True
        if operation.task is not None:
            self._loop.cancel(operation.task)
            self._over(operation)  # a task that had not begun has no `finally` to run
