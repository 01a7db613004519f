"""Which connections are past their deadline: one timer wheel for all of a port. [pure]

A connection lies in the bucket of the deadline that it had when it was filed. What it says moves its deadline on and costs
nothing here: a bucket whose time has come is looked at, and who has time left by then is filed anew. So a connection is
looked at about once in its idle time and not in every sweep, and a heartbeat touches nothing.

Invariant: whoever is filed lies in a bucket that is looked at no later than its deadline, as long as `file` is called
whenever that has come nearer. Buckets are WIDTH_S wide and gone when they were looked at.
"""

from typing import Any, Final, Generic, Protocol, TypeVar

WIDTH_S: Final = 0.25


class Bucket:
    """Those that were due in one stretch of time when they were filed."""

    __slots__ = ("at", "members")

    def __init__(self, at: int) -> None:
        self.at = at
        self.members: dict[Any, None] = {}


class Filed(Protocol):
    """Whoever has a deadline."""

    bucket: Bucket | None
    """Belongs to the wheel; None at first."""

    @property
    def due_at(self) -> float:
        """Seconds of the wheel's clock."""
        ...


T = TypeVar("T", bound=Filed)


class Deadlines(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}

    def file(self, one: T) -> None:
        """Takes note of a deadline that is new or may have come nearer."""
        at = int(one.due_at / WIDTH_S)
        held = one.bucket
        if held is not None:
            if held.at <= at:
                return
            del held.members[one]
        bucket = self._buckets.get(at)
        if bucket is None:
            bucket = self._buckets[at] = Bucket(at)
        bucket.members[one] = None
        one.bucket = bucket

    def forget(self, one: T) -> None:
        """It has no deadline any more."""
        if one.bucket is not None:
            del one.bucket.members[one]
            one.bucket = None

    def overdue(self, now: float) -> list[T]:
        """All whose deadline lies before `now`, in no order. They stay filed: who is not forgotten is told again."""
        last = int(now / WIDTH_S)
        found: list[T] = []
        for at in [at for at in self._buckets if at <= last]:
            members = self._buckets.pop(at).members
            for one in members:
                one.bucket = None
                if one.due_at < now:
                    found.append(one)
                self.file(one)
        return found
