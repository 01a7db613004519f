"""What the hub wants this node to run, as the agent holds it: versions, refusals, the claim behind them. [pure]

A document lies in the journal under `doc/<key>` as a JSON header, a newline and its bytes. The header is
{"v": version} or, for a refused document, {"v": refused version, "x": [reason, message], "by": mark}; the bytes
behind a refusal are those that were accepted before it and go on running (none: nothing was).

Invariant: `versions` holds only what is durable, so that a digest never claims more. Runs on MicroPython.
"""

import binascii
import hashlib
import json

DOCUMENT = "doc/"
TOKEN = "token/"  # noqa: S105  (a prefix of keys)
"""Keys of what travels as a document and is none: see `edgelite.tokens`."""
PIECE = "piece/"
"""The same for pieces of a release: see `edgelite.updater`."""
CLAIM = "meta/claim"
REVISION = "meta/rev"
KEY_BYTES_MAX = 512


def hexhash(data: bytes) -> str:
    """SHA-256 as 64 hex digits (MicroPython has no hexdigest)."""
    return binascii.hexlify(hashlib.sha256(data).digest()).decode()


def version_of(document: bytes) -> str:
    """A document's version: the first 32 hex digits of the SHA-256 of its bytes."""
    return hexhash(document)[:32]


def digest_of(versions: "dict[str, str]") -> str:
    """The digest of a node's documents (ARCHITECTURE.md, "messages")."""
    hasher = hashlib.sha256()
    for key in sorted(versions):
        hasher.update(f"{key}\0{versions[key]}\n".encode())
    return binascii.hexlify(hasher.digest()).decode()


if hasattr(json, "JSONEncoder"):
    # `json.dumps` with separators makes an encoder for every call.
    _dumps = json.JSONEncoder(separators=(",", ":")).encode
else:  # MicroPython

    def _dumps(o: object) -> str:
        return json.dumps(o, separators=(",", ":"))


def compact(value: object) -> bytes:
    """`value` as JSON without blanks."""
    return _dumps(value).encode()


def encode_document(
    version: str, body: bytes, refusal: "tuple[str, str] | None" = None, mark: str = ""
) -> bytes:
    """The journal's value for a document."""
    if refusal is None:
        return b'{"v":"' + version.encode() + b'"}\n' + body  # as `compact` would: a version is hex
    return compact({"v": version, "x": [refusal[0], refusal[1]], "by": mark}) + b"\n" + body


def decode_document(value: bytes) -> "tuple[dict[str, object], bytes]":
    """(header, bytes to run) of a journal's value."""
    header: "dict[str, object]" = json.loads(value[: value.find(b"\n")])
    return header, body_of(value)


def body_of(value: bytes) -> bytes:
    """The bytes to run of a journal's value."""
    return value[value.find(b"\n") + 1 :]


class Claim:
    """On whose word the documents are held: (store, generation, slot, epoch, id)."""

    __slots__ = ("epoch", "gen", "id", "slot", "store")

    def __init__(self, store: str, gen: int, slot: int, epoch: int, id: str) -> None:
        self.store = store
        self.gen = gen
        self.slot = slot
        self.epoch = epoch
        self.id = id

    def as_json(self) -> "dict[str, object]":
        return {"store": self.store, "gen": self.gen, "slot": self.slot, "epoch": self.epoch, "id": self.id}

    def same(self, other: "Claim | None") -> bool:
        return other is not None and self.as_json() == other.as_json()

    def parted_from(self, held: "Claim") -> str:
        """Why a hub with this claim may not speak to a node that holds `held`, or "". A higher generation of the same
        store is a confirmed one; epochs compare within one slot only."""
        if self.store != held.store:
            return "the hub speaks for store %s, this node holds %s" % (self.store, held.store)
        if self.gen != held.gen:
            if self.gen > held.gen:
                return ""
            return "the hub's store has generation %d, this node has seen %d" % (self.gen, held.gen)
        if self.slot != held.slot or self.epoch > held.epoch or self.same(held):
            return ""
        if self.epoch < held.epoch:
            return "the hub owns slot %d in epoch %d, this node has seen %d" % (
                self.slot,
                self.epoch,
                held.epoch,
            )
        return "two hubs own slot %d in epoch %d" % (self.slot, self.epoch)


class Desired:
    """The documents held, by key. `mark` names the agent's version and settings: a refusal by another mark is
    forgotten at start, so that the document is sent again to an agent that may now accept it."""

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        self.versions: "dict[str, str]" = {}
        self.refusals: "dict[str, tuple[str, str]]" = {}
        self.claim: "Claim | None" = None
        self.revision = 0

    def load(self, items: "list[tuple[str, bytes]]") -> "list[tuple[str, bytes]]":
        """Takes the journal's `doc/` and `meta/` items; returns (key, bytes) of the documents to run."""
        run: "list[tuple[str, bytes]]" = []
        for name, value in items:
            if name == CLAIM:
                fields = json.loads(value)
                self.claim = Claim(
                    fields["store"], fields["gen"], fields["slot"], fields["epoch"], fields["id"]
                )
            elif name == REVISION:
                self.revision = int(value)
            elif name.startswith(DOCUMENT):
                key = name[len(DOCUMENT) :]
                header, body = decode_document(value)
                refusal = header.get("x")
                if refusal is None:
                    self.versions[key] = str(header["v"])
                elif header.get("by") == self.mark:
                    self.versions[key] = str(header["v"])
                    self.refusals[key] = (refusal[0], refusal[1])  # type: ignore[index]
                elif body:
                    self.versions[key] = version_of(body)
                if body:
                    run.append((key, body))
        return run

    def digest(self) -> str:
        return digest_of(self.versions)

    def pairs(self) -> "list[list[str]]":
        return [[key, self.versions[key]] for key in sorted(self.versions)]


def valid_key(key: object) -> bool:
    """True for a document key that may be journalled and sorted: printable ASCII without blanks, bounded."""
    if not isinstance(key, str) or not 0 < len(key) <= KEY_BYTES_MAX:
        return False
    return " " < min(key) and max(key) < "\x7f"
