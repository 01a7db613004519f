"""Many clients at once against a hub that is being killed: requests are repeated until they are acknowledged.

What the API answered with success is acknowledged. What was cut off may or may not have happened: it is sent again,
and "already exists" or "not found" then tells that it had.
"""

import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from hub import kubeconfig
from security import tls
from tests.e2e.cluster import Hub

THREADS = 4
RETRY_S = 0.05
REQUEST_S = 30.0
DEADLINE_S = 240.0


class Client:
    """One connection to a hub that comes and goes."""

    def __init__(self, hub: Hub) -> None:
        found = kubeconfig.read(hub.kubeconfig)
        self._context: ssl.SSLContext = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)
        self._port = hub.api_port
        self._connection: http.client.HTTPSConnection | None = None

    def send(self, method: str, path: str, body: Any, deadline: float) -> tuple[int, Any, bool]:
        """(code, answer, whether an earlier try was cut off). 5xx and 429 are no acknowledgement: tried again."""
        repeated = False
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{method} {path} was not answered in time")
            try:
                code, answer = self._once(method, path, body)
            except (OSError, http.client.HTTPException, ValueError):
                self.close()
                repeated = True
            else:
                if code < 500 and code != 429:
                    return code, answer, repeated
                repeated = True
            time.sleep(RETRY_S)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                "127.0.0.1", self._port, context=self._context, timeout=REQUEST_S
            )
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Load:
    """`jobs` carried out by several threads; `acknowledged` maps the job's name to what the API answered."""

    def __init__(self, hub: Hub, jobs: Iterable[tuple[str, str, str, Any]]) -> None:
        """jobs: (name, method, path, body)."""
        self._hub = hub
        self._jobs = list(jobs)
        self._total = len(self._jobs)
        self._jobs.reverse()
        self._lock = threading.Lock()
        self._deadline = time.monotonic() + DEADLINE_S
        self._failure: BaseException | None = None
        self.acknowledged: dict[str, Any] = {}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]

    def run(self, disturb: Callable[[], None], times: int, rng: random.Random) -> dict[str, Any]:
        """Runs all jobs, calling `disturb` after `times` randomly chosen numbers of acknowledgements; what was
        acknowledged."""
        moments = sorted(rng.sample(range(1, self._total - 1), times))
        print(f"disturbed after {moments} of {self._total} acknowledgements")
        for thread in self._threads:
            thread.start()
        for moment in moments:
            while len(self.acknowledged) < moment and any(t.is_alive() for t in self._threads):
                time.sleep(0.002)
            disturb()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            pytest.fail(f"a client gave up: {self._failure!r}; {self._hub.log()[-3000:]}")
        assert len(self.acknowledged) == self._total
        return self.acknowledged

    def _work(self) -> None:
        client = Client(self._hub)
        try:
            while self._failure is None:
                with self._lock:
                    if not self._jobs:
                        return
                    name, method, path, body = self._jobs.pop()
                answer = self._carry_out(client, name, method, path, body)
                with self._lock:
                    self.acknowledged[name] = answer
        except BaseException as failure:
            self._failure = failure
        finally:
            client.close()

    def _carry_out(self, client: Client, name: str, method: str, path: str, body: Any) -> Any:
        code, answer, repeated = client.send(method, path, body, self._deadline)
        if code < 300:
            return answer
        if method == "POST" and code == 409 and repeated:
            code, answer, _ = client.send("GET", f"{path}/{name}", None, self._deadline)
            assert code == 200, f"{name}: created, and then {code} {answer}"
            return answer
        if method == "DELETE" and code == 404 and repeated:
            return answer
        raise AssertionError(f"{method} {path}: {code} {answer}")
