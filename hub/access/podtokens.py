"""Tokens of pods, from the hub's own issuer: what a kubelet asks an API server for, where the objects are the hub's own.

Each is bound to its pod, so it ends with it, whatever its time says (`hub.access.tokens`).
"""

from collections.abc import Callable

from hub.access.tokens import Tokens
from hub.tokens import Token, Wanted


class PodTokens:
    """`hub.tokens.Issue` over `tokens`. `wall`: unix seconds."""

    def __init__(self, tokens: Tokens, wall: Callable[[], float]) -> None:
        self._tokens = tokens
        self._wall = wall

    async def __call__(self, wanted: Wanted) -> Token:
        """Raises ApiError: NotFound without the account or the pod, Conflict for another pod of that name, Invalid."""
        spec = {
            "audiences": [wanted.audience] if wanted.audience else [],
            "expirationSeconds": wanted.seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": wanted.pod, "uid": wanted.uid},
        }
        text, granted = await self._tokens.issue(wanted.namespace, wanted.service_account, spec, self._wall())
        return Token(text, float(granted["expires"]))
