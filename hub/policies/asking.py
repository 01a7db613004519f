"""Who asks, for policies, and what they note about it: set where a request is authenticated, read where it is judged, far
below."""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Asker(NamedTuple):
    name: str
    groups: tuple[str, ...] = ()


HUB: Final = Asker("system:apiserver", ("system:masters",))
ASKER: ContextVar[Asker] = ContextVar("asker", default=HUB)
"""Of the request that is being served."""
NOTES: ContextVar[dict[str, str] | None] = ContextVar("notes", default=None)
"""Where policies note for the audit log what they find about the request that is being served; None: it is no request."""
