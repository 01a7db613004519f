"""A hub of the next release, as far as replicas, stores and agents can tell: it signs its transactions, as `traced_hub`.

    python -m tests.e2e.next_release serve ...

It computes ring versions 1 and 2, and version 2 gives slots to other members; it speaks agent protocols 1 and 2 with a feature
that nobody has; its member and slot records have fields that nobody knows; it renders documents to other bytes.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

import hub.app
import hub.hello
import shards.membership
from edgelite import wire
from shards import claims, ring
from shards.ownership import MemberRecord
from tests.e2e import other_rendering, traced_hub

VERSION = "0.2.0"
_assign, _dump = ring.assign, claims.dump


class NextRecord(MemberRecord, frozen=True, omit_defaults=True):
    """A member record with more in it."""

    capabilities: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Otherwise:
    """A member as ring version 2 draws for it."""

    id: str
    weight: float
    ring: tuple[int, int]
    draining: bool


def assign(members: Iterable[ring.Candidate], slots: int, roles: Sequence[str] = ()) -> ring.Ring:
    """`shards.ring.assign` of a release with two ring versions."""
    present = list(members)
    return (_assign if ring.ring_version(present) == 1 else assign_2)(present, slots, roles)


def assign_2(members: Iterable[ring.Candidate], slots: int, roles: Sequence[str] = ()) -> ring.Ring:
    """Ring version 2: as version 1 for members of other names."""
    drawn = _assign([_Otherwise(f"2 {m.id}", m.weight, m.ring, m.draining) for m in members], slots, roles)
    return ring.Ring(
        tuple(id.removeprefix("2 ") for id in drawn.slots),
        {role: id.removeprefix("2 ") for role, id in drawn.roles.items()},
    )


def _record(*arguments: Any, **fields: Any) -> NextRecord:
    return NextRecord(*arguments, **fields, ring=(1, 2), capabilities=("teleport",))


def _dump_more(record: claims.SlotRecord) -> bytes:
    return orjson.dumps({**orjson.loads(_dump(record)), "release": VERSION})


def install() -> None:
    """Makes the hub of this process one of the next release."""
    ring.VERSION_MAX = 2
    shards.membership.assign = assign  # type: ignore[attr-defined]
    hub.app.MemberRecord = _record  # type: ignore[attr-defined]
    hub.app.__version__ = VERSION  # type: ignore[attr-defined]
    hub.hello.FEATURES = (*hub.hello.FEATURES, "teleport")  # type: ignore[misc]
    wire.PROTOCOL_MAX = 2
    claims.dump = _dump_more
    other_rendering.install()


if __name__ == "__main__":
    install()
    sys.exit(traced_hub.main())
