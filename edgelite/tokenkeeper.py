"""Asks the hub for the tokens that pods need, keeps them sealed in the store, and asks anew in time. `edgelite.tokens` decides.

Keys in the store: `token/<pod uid>/<id>`, sealed under that name. What cannot be unsealed (the node has another identity)
is forgotten and asked for.
"""

from edgelite.loop import Wait
from edgelite.runtimes.base import RuntimeFailure
from edgelite.tokens import fault, needs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop, Task
    from edgelite.runtimes.base import State
    from edgelite.tokens import Need, Tokens
    from edgelite.vault import Vault

LOOK_S = 600.0  # at the latest, for the wall clock may be set


class TokenKeeper:
    """pods() gives (document key, document) of the pods that run here; report(type, key, body) queues an upstream entry; vault()
    makes the vault when it is needed first; wall() is Unix seconds."""

    def __init__(
        self,
        loop: "Loop",
        tokens: "Tokens",
        pods: "Callable[[], list[tuple[str, dict[str, Any]]]]",
        report: "Callable[[str, str, dict[str, Any]], None]",
        store: "State",
        vault: "Callable[[], Vault]",
        wall: "Callable[[], float]",
    ) -> None:
        self._loop = loop
        self._tokens = tokens
        self._pods = pods
        self._report = report
        self._store = store
        self._vault = vault
        self._wall = wall
        self._task: "Task | None" = None

    def restore(self, name: str, sealed: bytes) -> None:
        """A value of the store, at start."""
        from edgelite.vault import Unreadable

        try:
            body = self._vault().unseal(name, sealed)
            good = fault(name, body) is None
        except Unreadable:
            good = False
        except RuntimeFailure:
            return  # the key cannot be read at present: it stays, and is asked for anew meanwhile
        if good:
            self._tokens.put(name, body)
        else:
            self._store.delete(name)

    def take(self, key: str, body: bytes) -> None:
        """A token has come; `body` was found good. Raises RuntimeFailure when it cannot be kept: it is in use all the same."""
        self._tokens.put(key, body)
        self.look()
        self._store.put(key, self._vault().seal(key, body))

    def forget(self, uid: str) -> None:
        """Nothing is left of the pod."""
        for key in self._tokens.drop(uid):
            self._store.delete(key)

    def look(self) -> None:
        """Pods or tokens are others than before."""
        if self._task is None:
            if any(needs(doc) for _, doc in self._pods()):
                self._task = self._loop.spawn(self._run(), "tokens")
        else:
            self._loop.wake(self._task)

    def _run(self) -> "Generator[Wait, bool, None]":
        while True:
            wall = self._wall()
            soonest = LOOK_S
            for key, doc in self._pods():
                every = needs(doc)
                due = self._tokens.ask(every, wall)
                if due:
                    # One entry of a pod replaces the one before, so it names all that is missing.
                    self._report("token", key, {"want": [_said(need) for need in due]})
                for need in every:
                    soonest = min(soonest, max(1.0, self._tokens.due_at(need) - wall))
            yield Wait(-1, 0, self._loop.now() + soonest)


def _said(need: "Need") -> "list[object]":
    """Where the pod's own specification asks for it: what the hub goes by."""
    return [need.volume, need.source]
