"""What the API answers about the keys of service account tokens: `cloudhub serviceaccount keys` and `rotate-keys`.

Nothing of a key but its id is told. Who may ask and rotate is said by rules on these paths; no default role gives any.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hub import errors
from hub.access.keys import Keys
from hub.api.documents import Document
from hub.certpaths import SIGNERS_PATH, SIGNERS_ROTATION_PATH
from security.errors import SecurityError
from security.jwt import SigningKeyError
from shards.kv import StoreError


class KeyDocuments:
    """`wall`: unix seconds."""

    def __init__(self, keys: Keys, wall: Callable[[], float]) -> None:
        self._keys = keys
        self._wall = wall

    def documents(self) -> dict[tuple[str, str], Document]:
        """By method and path."""
        return {("GET", SIGNERS_PATH): self._shown, ("POST", SIGNERS_ROTATION_PATH): self._rotate}

    async def _rotate(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            await self._keys.rotate(self._wall(), query.get("void") == "true")
        except SigningKeyError as full:
            raise errors.BadRequest(str(full)) from full
        except (StoreError, SecurityError, OSError) as failure:
            raise errors.ServiceUnavailable(f"the keys cannot be changed now: {failure}") from failure
        return await self._shown(query)

    async def _shown(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        now = self._wall()
        held = self._keys.current
        signs = held.signing(now)
        return {
            "kind": "ServiceAccountKeys",
            "keys": [
                {
                    "id": key.kid,
                    "phase": "signs" if key is signs else "next" if key.begins > now else "verifies",
                    "begins": key.begins,
                    "ends": key.ends,
                }
                for key in held.keys
                if key.verifies_at(now)
            ],
        }
