"""A SET that many nodes get, worked out for one of them and taken by the others as that one has. [pure]

A process of simulated nodes has the same ConfigMap arrive thousands of times, byte for byte: the agent's session core would
decode it, hash it and write the same acknowledgement each time, which takes most of what the simulator has for a core. So the
first node's session does that, and the others, where nothing else is on their minds, come to the same state without.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from edgelite import wire
from edgelite.actions import Apply, Send
from edgelite.session import Session

STAMP: Final = b"simulate.cloudhub.dev.at"
"""Annotation of pods and key of ConfigMaps: when whoever changed them asked the API, unix nanoseconds."""
STAMP_NAME: Final = STAMP.decode()
_STAMPED: Final = STAMP + b'":"'


class LastSet:
    """A SET that a node has taken and acknowledged, and nothing else followed from it. `data`: as it came, `ack`: what was
    answered, both whole frames; `at_ns`: when the API was asked for it. `data` is empty before the first one."""

    __slots__ = ("ack", "at_ns", "data", "key", "kind", "revision", "version")

    def __init__(
        self,
        data: bytes = b"",
        ack: bytes = b"",
        key: str = "",
        version: str = "",
        revision: int = 0,
        at_ns: int = 0,
    ) -> None:
        self.data = data
        self.ack = ack
        self.key = key
        self.kind = key.partition("/")[0]
        self.version = version
        self.revision = revision
        self.at_ns = at_ns

    @classmethod
    def of(cls, data: bytes, body: bytes, actions: Sequence[Any]) -> "LastSet | None":
        """`data` was the frame of a SET with this `body`, and `actions` what a session did about it in the end. None where that
        is not an acknowledgement and the document alone."""
        if len(actions) != 2 or len(data) != wire.HEADER_BYTES + len(body):
            return None
        applied, sent = actions
        if not (isinstance(applied, Apply) and isinstance(sent, Send) and sent.data[0] == wire.ACK):
            return None
        if applied.key.startswith("pod/"):
            return None  # a node's own, with reports that follow
        header = json.loads(wire.split_set_body(body)[0])
        return cls(data, sent.data, applied.key, header["v"], int(header["r"]), stamp_of(body))


class SimSession(Session):
    """A simulated agent's session."""

    def take_again(self, last: LastSet, now: float) -> bool:
        """`last.data` has arrived. True: the state is what `receive`, `writes` and `commit` would have made of it, and `last.ack`
        is what they would have sent. False: nothing was done, for there is more to it here."""
        desired = self._desired
        if (
            self.state != "live"
            or self._staged
            or self._staged_claim is not None
            or self._staged_synced
            or self._traces
            or self._writes
            or len(self._upstream)
            or desired.refusals
            or desired.versions.get(last.key) == last.version
        ):
            return False
        self._heard = now
        if last.revision > self._revision:
            self._revision = last.revision
        self._revision_written = desired.revision = self._revision
        desired.versions[last.key] = last.version
        self.synced = self._in_step
        return True


def stamp_of(body: bytes) -> int:
    """When the API was asked for what is in a document, unix nanoseconds; 0 where it does not say."""
    at = body.find(_STAMPED)
    if at < 0:
        return 0
    begin = at + len(_STAMPED)
    stamp = body[begin : body.index(b'"', begin)]
    return int(stamp) if stamp.isdigit() else 0
