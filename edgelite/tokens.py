"""Tokens of service accounts that pods of this node mount: which are needed, which are here, when the next is asked for. [pure]

The agent asks the hub (report `token`), and the hub sends a document `token/<pod uid>/<id>`. A token is part of no digest
and needs no acknowledgement: who lacks one asks again. It is asked for anew when 80% of its life, or a day, has passed, and
again every ASK_AGAIN_S while nothing comes. An expired one stays where it is until there is a better one: a node that is cut
off changes nothing.

Kept in memory, and sealed (`edgelite.vault`) in the journal, so that pods restart without the hub.
"""

import json

from edgelite.desired import TOKEN, hexhash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ASK_AGAIN_S = 60.0
RENEW_AT = 0.8
LIFE_USED_MAX_S = 86400.0
TOKEN_BYTES_MAX = 16 << 10
SECONDS_DEFAULT = 3600


class Need:
    """A token that a volume of a pod projects. `key`: its document's."""

    __slots__ = ("audience", "key", "seconds", "source", "volume")

    def __init__(self, uid: str, volume: str, source: int, wanted: "dict[str, Any]") -> None:
        self.volume = volume
        self.source = source
        self.audience = str(wanted.get("audience") or "")
        self.seconds = int(wanted.get("expirationSeconds") or SECONDS_DEFAULT)
        self.key = token_key(uid, self.audience, self.seconds)


def token_key(uid: str, audience: str, seconds: int) -> str:
    """Two volumes that ask for the same share a token."""
    return "%s%s/%s" % (TOKEN, uid, hexhash(("%s\0%d" % (audience, seconds)).encode())[:16])


def needs(pod: "dict[str, Any]") -> "list[Need]":
    """What the pod's volumes ask for, each token once."""
    found: "dict[str, Need]" = {}
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        for n, source in enumerate((volume.get("projected") or {}).get("sources") or []):
            wanted = source.get("serviceAccountToken")
            if wanted is not None:
                need = Need(pod["uid"], volume["name"], n, wanted)
                found.setdefault(need.key, need)
    return [found[key] for key in sorted(found)]


def fault(key: str, body: bytes) -> "str | None":
    """What is wrong with a token document, or None. Never repeats the token."""
    if len(body) > TOKEN_BYTES_MAX:
        return "%d bytes, at most %d" % (len(body), TOKEN_BYTES_MAX)
    try:
        doc = json.loads(body)
        right = doc["kind"] == "Token" and isinstance(doc["token"], str) and doc["token"]
        right = right and token_key(doc["uid"], doc["audience"], doc["seconds"]) == key
        right = right and float(doc["from"]) < float(doc["until"])
    except (ValueError, KeyError, TypeError):
        return "it is not a token document"
    return None if right else "it is not the token that its key names"


class Tokens:
    """See the module. Times are Unix seconds."""

    def __init__(self) -> None:
        self._docs: "dict[str, dict[str, Any]]" = {}
        self._asked: "dict[str, float]" = {}
        self._former: "dict[str, str]" = {}

    def put(self, key: str, body: bytes) -> None:
        """`body`: the document, found good by `fault`."""
        if key in self._docs:
            self._former[key] = str(self._docs[key]["token"])
        self._docs[key] = json.loads(body)
        self._asked.pop(key, None)

    def drop(self, uid: str) -> "list[str]":
        """Forgets the tokens of a pod; their keys."""
        gone = [key for key in self._docs if key.split("/")[1] == uid]
        for key in gone:
            del self._docs[key]
            self._former.pop(key, None)
        for key in [k for k in self._asked if k.split("/")[1] == uid]:
            del self._asked[key]
        return gone

    def get(self, key: str) -> "str | None":
        doc = self._docs.get(key)
        return None if doc is None else str(doc["token"])

    def owner(self, token: str) -> "str | None":
        """The UID of the pod that a token for the API server is of, whatever its age: a node that is cut off has no other. The
        one before counts too, for programs read the file now and then."""
        asked = hexhash(token.encode())
        for key, doc in self._docs.items():
            # Hashes: how long their comparison takes says nothing of a token.
            known = [hexhash(t.encode()) for t in (str(doc["token"]), self._former.get(key)) if t]
            if asked in known and not doc["audience"]:
                return key.split("/")[1]
        return None

    def due_at(self, need: Need) -> float:
        """When it has to be asked for; 0.0 for what is not here."""
        doc = self._docs.get(need.key)
        due = 0.0
        if doc is not None:
            life = float(doc["until"]) - float(doc["from"])
            due = float(doc["from"]) + min(life * RENEW_AT, LIFE_USED_MAX_S)
        asked = self._asked.get(need.key)
        return due if asked is None else max(due, asked + ASK_AGAIN_S)

    def ask(self, every: "list[Need]", wall: float) -> "list[Need]":
        """Those to ask for now; they count as asked for."""
        due = [need for need in every if self.due_at(need) <= wall]
        for need in due:
            self._asked[need.key] = wall
        return due
