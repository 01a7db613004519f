"""Who owns which unit, as etcd says it, and when that changed: for measuring how long slots are nobody's."""

import base64
import http.client
import json
import threading
import time
from collections import Counter
from typing import Any

from tests.e2e.ha import ROOT, HaCluster
from tests.e2e.history import b64, call

UNITS = (f"{ROOT}slot/", f"{ROOT}role/")


def owners(endpoint: str) -> dict[str, str]:
    """By unit ("0007", "scheduler"): the member that owns it. `endpoint`: host:port of an etcd member."""
    found: dict[str, str] = {}
    for prefix in UNITS:
        answer = call(endpoint, "/v3/kv/range", {"key": b64(prefix), "range_end": b64(prefix[:-1] + "0")})
        for kv in answer.get("kvs", ()):
            unit, member = _owner(kv["key"], kv.get("value"))
            if unit and member:
                found[unit] = member
    return found


def shares(endpoint: str) -> Counter[str]:
    """How many slots each member owns."""
    return Counter(member for unit, member in owners(endpoint).items() if unit.isdigit())


def _owner(key: str, value: str | None) -> tuple[str, str]:
    """(unit, member) of an owner key, ("", "") of another; the member is "" where the key was deleted."""
    path = base64.b64decode(key).decode().removeprefix(ROOT).split("/")
    if len(path) != 3 or path[2] != "owner":
        return "", ""
    return path[1], json.loads(base64.b64decode(value))["member"] if value else ""


class OwnerWatch:
    """Notes every change of an owner, with the time at which it was seen, while the block runs.

    with OwnerWatch(ha, 0) as watch: ...; watch.gaps()
    """

    def __init__(self, ha: HaCluster, etcd: int = 0) -> None:
        """`etcd`: the member to ask, which has to stay up."""
        self._endpoint = ha.etcd.endpoints[etcd]
        self.owner: dict[str, str] = {}
        self.events: list[tuple[float, str, str]] = []
        """(monotonic s, unit, member or "" for nobody)"""
        self._connection: http.client.HTTPConnection | None = None
        self._threads: list[threading.Thread] = []
        self._closing = False

    def __enter__(self) -> "OwnerWatch":
        self.owner = owners(self._endpoint)
        head = int(call(self._endpoint, "/v3/kv/range", {"key": b64(ROOT)})["header"]["revision"])
        self._connection = http.client.HTTPConnection(self._endpoint, timeout=600)
        request: dict[str, Any] = {
            "key": b64(ROOT),
            "range_end": b64(ROOT[:-1] + "0"),
            "start_revision": head,
        }
        self._connection.request("POST", "/v3/watch", json.dumps({"create_request": request}))
        self._response = self._connection.getresponse()
        self._response.readline()
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        assert self._connection is not None
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        for thread in self._threads:
            thread.join(10)
        self._connection.close()

    def _run(self) -> None:
        try:
            while line := self._response.readline():
                now = time.monotonic()
                for event in json.loads(line)["result"].get("events", ()):
                    deleted = event.get("type") == "DELETE"
                    unit, member = _owner(event["kv"]["key"], None if deleted else event["kv"].get("value"))
                    if unit:
                        self.owner[unit] = member
                        self.events.append((now, unit, member))
        except (OSError, http.client.HTTPException, ValueError):
            if not self._closing:
                raise

    def nobodys(self) -> list[str]:
        return [unit for unit, member in list(self.owner.items()) if not member]

    def of(self, member: str) -> set[str]:
        return {unit for unit, owner in list(self.owner.items()) if owner == member}

    def gaps(self) -> dict[str, float]:
        """By unit: the longest time that it was nobody's, seconds."""
        since: dict[str, float] = {}
        found: dict[str, float] = {}
        for at, unit, member in self.events:
            if not member:
                since[unit] = at
            elif unit in since:
                found[unit] = max(found.get(unit, 0.0), at - since.pop(unit))
        return found
