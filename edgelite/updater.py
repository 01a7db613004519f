"""Carries out `agent/update`: checks, fetches in pieces over the channel, and has what was fetched started on trial; once on trial, shows
that it works. Knows no clock, no socket and no process: for the agent `edgelite.updatekeeper` drives it, for a board
`edgelite.boardupdates`.

Nobody but who holds one of `keys` decides what runs here: the hub only carries it. One piece is on its way at a time, with a pause of
PACE_S behind it; after a lost connection fetching goes on where it was. What becomes of an update is the Node's condition AgentUpdate.
Runs on MicroPython.
"""

import binascii

from edgelite import updateplan
from edgelite.desired import PIECE
from edgelite.signatures import verify
from edgelite.updateplan import UpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.updatestore import UpdateStore

DOCUMENT = "agent/update"
CONDITION = "AgentUpdate"
PIECE_BYTES = 32 << 10
PACE_S = 0.1
ASK_AGAIN_S = 20.0
RETRY_S = 30.0  # after a disk that failed
FETCHES_MAX = 3
"""How often a release is fetched from its beginning, since what came was not what was signed."""


class Site:
    """What an updater is given of the agent that it is part of. `version`, `platform`: what runs, and what may replace it; `keys`: public
    keys of P-256 in hex; `minimum`: the oldest release that may run, "" for any; `unable`: why no other release can be started here, "" if
    one can; `piece_bytes`: what may come at once."""

    version = ""
    platform = "pyz"
    keys: "list[str]" = []
    minimum = ""
    unable = ""
    piece_bytes = PIECE_BYTES

    def now(self) -> float:
        """Seconds that count on."""
        raise NotImplementedError

    def live(self) -> bool:
        """Is the agent connected, and not held?"""
        raise NotImplementedError

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        """Queues an upstream entry."""
        raise NotImplementedError

    def condition(self, status: str, reason: str, message: str) -> None:
        """Sets the Node's condition AgentUpdate."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """A line of the agent's log."""
        raise NotImplementedError

    def restart(self) -> None:
        """Ends the agent, so that what is wanted now is started."""
        raise NotImplementedError


class Updater:
    """`turn` is to be called when something came, and at `due`, in the time of `site.now`; None: not by itself."""

    def __init__(self, site: Site, store: "UpdateStore") -> None:
        self._site = site
        self._store = store
        self._doc: "dict[str, Any] | None" = None
        self._id = ""
        self._tries = 0
        self._asked = (-1, 0.0)
        self._began = site.now()
        self._synced_at: "float | None" = None
        self._piece: "bytes | None" = None
        self._told = False
        self.on_trial: bool = store.record["trial"] is not None
        self.due: "float | None" = site.now()

    def facts(self) -> "dict[str, Any]":
        """For `edgelite status`: which slot runs, and the last result."""
        record = self._store.record
        running = record["trial"] if self.on_trial else record["good"]
        return {
            "slot": running["slot"] if running else "base",
            "trial": self.on_trial,
            "last": record["last"],
        }

    def admit(self, body: bytes) -> "tuple[str, str] | None":
        """Why the document cannot be taken. What it asks for is judged when it is carried out."""
        try:
            updateplan.parse(body)
        except UpdateError as error:
            return error.reason, error.message
        return None

    def set(self, body: bytes) -> None:
        """The document is wanted now."""
        self._doc, self._id, self._tries = updateplan.parse(body), updateplan.identity(body), 0

    def delete(self) -> None:
        """There is no document any more: nothing more is fetched, what runs stays."""
        self._doc, self._id = None, ""

    def synced(self) -> None:
        """The agent is connected and in step."""
        if self._synced_at is None:
            self._synced_at = self._site.now()

    def refused(self, reason: str) -> None:
        """The hub has no such piece; it is asked again."""
        self._site.condition("Unknown", "Fetching", "the hub does not send the release: %s" % reason)

    def piece(self, key: str, data: bytes) -> None:
        """A piece has come: piece/<16 hex digits of the release's hash>/<offset>. Another one than is waited for is passed over."""
        wanted = self._store.record["next"]
        if wanted is not None and self._piece is None:
            if key == "%s%s/%d" % (PIECE, wanted["sha256"][:16], self._store.fetched_bytes()):
                self._piece = data

    def turn(self) -> None:
        """Does what can be done now."""
        try:
            pause = self._step()
        except OSError as error:
            self._site.say("the update waits for the disk: %s" % error)
            pause = RETRY_S
        self.due = None if pause is None else self._site.now() + pause

    def _step(self) -> "float | None":
        """Seconds until there is more to do, None: not by itself."""
        if not self._told:
            self._told = True
            self._show()
        if self.on_trial:
            return self._prove()
        doc, record = self._doc, self._store.record
        if doc is None:
            self._store.save(updateplan.withdrawn(record))
            return None
        if updateplan.settled(record, self._id):
            return None
        if doc["version"] == self._site.version:
            self._end(updateplan.already(record, self._id, self._site.version))
            return None
        if record["next"] is None or record["next"]["id"] != self._id:
            try:
                self._check(doc)
            except UpdateError as error:
                self._end(updateplan.refused(record, doc, self._id, error))
                return None
            self._store.begin()
            self._store.save(updateplan.begun(record, doc, self._id))
            text = "release %s is being fetched, %d bytes" % (doc["version"], doc["size"])
            self._site.say(text)
            self._site.condition("Unknown", "Fetching", text)
        return self._fetch(doc)

    def _check(self, doc: "dict[str, Any]") -> None:
        """Raises UpdateError for a release that may not run here."""
        site = self._site
        if site.unable:
            raise UpdateError("Unsupported", site.unable)
        if doc["platform"] != site.platform:
            text = "the release is for %s, this agent runs as %s" % (doc["platform"], site.platform)
            raise UpdateError("WrongPlatform", text)
        if not site.keys:
            text = "this node trusts no key for releases: `edgelite join --update-key`, or update_keys in config.json"
            raise UpdateError("NoUpdateKey", text)
        statement, signature = updateplan.statement(doc), binascii.unhexlify(doc["sig"])
        if not any([verify(binascii.unhexlify(key), statement, signature) for key in site.keys]):
            text = (
                "the release is signed by none of the keys that this node trusts (update_keys in config.json)"
            )
            raise UpdateError("BadSignature", text)
        refusal = updateplan.refusal(doc, site.version, site.minimum)
        if refusal is not None:
            raise refusal

    def _fetch(self, doc: "dict[str, Any]") -> "float | None":
        store, piece = self._store, self._piece
        wanted = store.record["next"]
        self._piece = None
        at = store.fetched_bytes()
        if piece is not None and at < doc["size"]:
            if not 0 < len(piece) <= doc["size"] - at:
                text = "the hub sends other bytes than were signed"
                self._end(updateplan.failed(store.record, "BadHash", text))
                return None
            store.append(piece)
            return PACE_S
        if at < doc["size"]:
            self._ask(wanted["sha256"], at, doc["size"])
            return ASK_AGAIN_S
        if at > doc["size"] or not store.whole(doc["sha256"]):
            self._tries += 1
            if self._tries < FETCHES_MAX:
                store.begin()
                return RETRY_S * (self._tries - 1)
            text = "what came is not what was signed, %d times: its SHA-256 is another one" % FETCHES_MAX
            self._end(updateplan.failed(store.record, "BadHash", text))
            return None
        try:
            store.fill(wanted["slot"])
        except UpdateError as error:
            self._end(updateplan.failed(store.record, error.reason, error.message))
            return None
        store.save(updateplan.fetched(store.record))
        text = "release %s is started on trial" % wanted["version"]
        self._site.say(text)
        self._site.condition("Unknown", "Trial", text)
        self._site.restart()
        return None

    def _ask(self, sha256: str, at: int, size: int) -> None:
        """For the next piece, unless that is on its way."""
        now = self._site.now()
        if not self._site.live():
            self._asked = (-1, 0.0)
        elif self._asked[0] != at or now >= self._asked[1] + ASK_AGAIN_S:
            self._asked = (at, now)
            length = min(self._site.piece_bytes, size - at)
            self._site.report("piece", DOCUMENT, {"sha": sha256, "at": at, "len": length})

    def _prove(self) -> "float | None":
        """On trial: kept, once it was connected and in step for as long as it has to be; given up when its time is over."""
        site, record = self._site, self._store.record
        trial, now = record["trial"], site.now()
        if trial is None:
            return None
        if not site.live():
            self._synced_at = None
        if trial["version"] != site.version:
            text = "what was released as %s calls itself %s" % (trial["version"], site.version)
            self._store.save(updateplan.failed(record, "WrongVersion", text))
        elif now >= self._began + trial["deadline"]:
            self._store.save(updateplan.late(record))
        elif self._synced_at is None:
            return 1.0
        elif now < self._synced_at + trial["hold"]:
            return min(1.0, self._synced_at + float(trial["hold"]) - now)
        else:
            self._store.save(updateplan.confirmed(record))
            site.say("release %s works: it is kept" % site.version)
        site.restart()
        return None

    def _end(self, record: "dict[str, Any]") -> None:
        """Nothing more is to be done about this document."""
        self._store.save(record)
        self._show()

    def _show(self) -> None:
        """Tells what has become of the last update."""
        last, trial = self._store.record["last"], self._store.record["trial"]
        if trial is not None:
            self._site.condition("Unknown", "Trial", "release %s is on trial" % trial["version"])
        elif last is not None:
            text = "%s (%s)" % (last["message"], last["id"])
            if not last["ok"]:
                text = "release %s: %s; %s runs on" % (last["version"], text, self._site.version)
                self._site.say("update: %s: %s" % (last["reason"], text))
            self._site.condition("True" if last["ok"] else "False", last["reason"], text)
