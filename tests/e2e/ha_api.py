"""A client of several replicas, as a careful user of the API writes it.

Each try goes to a random replica; what is not answered is tried at another one until a deadline. Writes carry
preconditions (resourceVersion, UID), so that a late copy of an earlier try, kept by a replica that was frozen, cannot
undo a later write.
"""

import dataclasses
import http.client
import json
import random
import select
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

TRY_S = 5.0
PAUSE_S = 0.05


class NotAnswered(Exception):
    """No replica answered in time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """`repeated`: an earlier try was cut off, or failed in a way that does not tell whether it was carried out."""

    code: int
    body: Any
    repeated: bool
    port: int


class AnyReplica:
    """One thread's client. `ports` are the API ports of all replicas on this machine, up or down. `try_s`: after which
    one try counts as not answered."""

    def __init__(
        self,
        ports: Callable[[], Sequence[int]],
        context: ssl.SSLContext,
        rng: random.Random,
        try_s: float = TRY_S,
    ) -> None:
        self._try_s = try_s
        self._ports = ports
        self._context = context
        self._rng = rng
        self._connections: dict[int, http.client.HTTPSConnection] = {}
        self.troubles: Counter[str] = Counter()
        """Tries that were not answered, or with 429 or 5xx, by what came instead."""
        self.slowest_s = 0.0

    def send(
        self, method: str, path: str, body: Any = None, *, seconds: float = 60.0, fresh: bool = False,
        content_type: str = "application/json",
    ) -> Answer:  # fmt: skip
        """An answer below 500 that is not 429. `fresh`: not one that the replica marks as stale. Raises NotAnswered."""
        started = time.monotonic()
        repeated = False
        last = ""
        while time.monotonic() < started + seconds:
            port = self._rng.choice(list(self._ports()))
            try:
                code, answer, stale = self._once(port, method, path, body, content_type)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._close(port)
                # Refused: it was not even sent.
                repeated = repeated or not isinstance(error, ConnectionRefusedError)
                last = type(error).__name__
            else:
                if code < 500 and code != 429 and not (fresh and stale):
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                    return Answer(code, answer, repeated, port)
                repeated = repeated or code != 429
                last = f"{code} {answer.get('reason') if isinstance(answer, dict) else ''}"
            self.troubles[last] += 1
            time.sleep(PAUSE_S)
        raise NotAnswered(f"{method} {path}: no replica answered within {seconds:g} s, the last said {last}")

    def once(self, method: str, path: str) -> Answer:
        """Whatever a random replica answers. Raises OSError, HTTPException."""
        port = self._rng.choice(list(self._ports()))
        try:
            code, answer, _ = self._once(port, method, path, None, "")
        except (OSError, http.client.HTTPException):
            self._close(port)
            raise
        return Answer(code, answer, False, port)

    def get(self, path: str, seconds: float = 60.0) -> Any:
        """The object as the store has it now; None when it is not there. Raises NotAnswered, AssertionError."""
        answer = self.send("GET", path, seconds=seconds, fresh=True)
        if answer.code == 404:
            return None
        assert answer.code == 200, f"GET {path}: {answer.code} {answer.body}"
        return answer.body

    def close(self) -> None:
        for port in list(self._connections):
            self._close(port)

    def _once(self, port: int, method: str, path: str, body: Any, content_type: str) -> tuple[int, Any, bool]:
        connection = self._connections.get(port)
        if connection is None:
            connection = self._connections[port] = http.client.HTTPSConnection(
                "127.0.0.1", port, context=self._context, timeout=self._try_s
            )
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # ended by the replica while it was idle, which client libraries notice as well
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": content_type} if data else {})
        response = connection.getresponse()
        raw = response.read()
        json_type = response.headers.get_content_type() == "application/json"
        stale = "stale" in (response.headers.get("Warning") or "").lower()
        return response.status, json.loads(raw) if json_type else raw.decode(errors="replace"), stale

    def _close(self, port: int) -> None:
        connection = self._connections.pop(port, None)
        if connection is not None:
            connection.close()
