"""The bodies of what edges send, as typed structs. [pure]

Bodies are bounded while they are decoded; unknown fields are ignored. Formats: ARCHITECTURE.md, "messages" and "Upstream
entries". Which of them who may send says `security.policy`, whose table names the struct of each type.
"""

from typing import Annotated, Any, Final

import msgspec

from edgelite import wire
from edgelite.devices import KEEP_MAX, NAME_CHARS_MAX, PROPERTIES_MAX, TEXT_CHARS_MAX

NO_CLAIM: Final = "-"
"""In annotations: the claim of a node that holds none."""
FRAME_BYTES_MIN: Final = 256
ECHOES_MAX: Final = 1024
DOCUMENT_BYTES_MIN: Final = 64

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Word = Annotated[str, msgspec.Meta(max_length=64)]
Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class HelloClaim(msgspec.Struct, frozen=True):
    """The claim that an edge holds, bounded."""

    store: Word
    gen: Count
    slot: Count
    epoch: Count
    id: Word


class HelloLimits(msgspec.Struct, frozen=True):
    """What the agent can take, bytes."""

    document: Annotated[int, msgspec.Meta(ge=DOCUMENT_BYTES_MIN, le=1 << 31)] = wire.DOCUMENT_BYTES_MAX
    frame: Annotated[int, msgspec.Meta(ge=FRAME_BYTES_MIN, le=1 << 31)] = wire.FRAME_BYTES_MAX


class Hello(msgspec.Struct, frozen=True):
    """HELLO (ARCHITECTURE.md, "messages"). Unknown fields are ignored."""

    proto: tuple[Count, Count]
    inc: Hex32
    boot: Count
    conn: Count
    digest: Hex64
    features: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    agent: Word = ""
    docs: Count = 0
    claim: HelloClaim | None = None
    rev: Count = 0
    limits: HelloLimits = HelloLimits()
    redirects: Count = 0
    """How often the agent was redirected on its way here."""
    unreached: Annotated[str, msgspec.Meta(max_length=300)] = ""
    """Where it was redirected to and nobody answered."""
    trust: Word = ""
    """The short name of the trust bundle that the agent holds (`security.authorities.bundle_id`)."""

    @property
    def held(self) -> str:
        """The id of the claim that the agent holds, or NO_CLAIM."""
        return self.claim.id if self.claim is not None else NO_CLAIM


class Entry(msgspec.Struct, frozen=True):
    """An upstream entry (ARCHITECTURE.md). `b` is decoded by whoever stores it."""

    n: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    k: Annotated[str, msgspec.Meta(max_length=512)]
    t: Annotated[str, msgspec.Meta(max_length=32)]
    b: msgspec.Raw = msgspec.Raw(b"{}")


class BundleBody(msgspec.Struct, frozen=True):
    """The body of a node's BUNDLE. Empty: it asks for the bundle. Else it says what it has installed: `have`, the short name
    of its trust bundle, and `cert`, the first 16 hex digits of the SHA-256 of its newest certificate's DER."""

    have: Annotated[str, msgspec.Meta(max_length=16)] = ""
    cert: Annotated[str, msgspec.Meta(max_length=16)] = ""


class ReportBody(msgspec.Struct):
    e: Annotated[list[Entry], msgspec.Meta(max_length=1024)]


class AckBody(msgspec.Struct):
    """`t`: contexts of traces, as the SETs carried them that are acknowledged."""

    a: list[tuple[str, str]]
    t: Annotated[list[Word], msgspec.Meta(max_length=ECHOES_MAX)] = []


class NackBody(msgspec.Struct):
    k: str
    v: str
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""
    message: Annotated[str, msgspec.Meta(max_length=8192)] = ""


class PairsBody(msgspec.Struct):
    pairs: list[tuple[str, str]]


class RenewBody(msgspec.Struct):
    csr: Annotated[str, msgspec.Meta(max_length=8192)]


class GoawayBody(msgspec.Struct):
    code: str = ""
    message: str = ""


class CloseBody(msgspec.Struct):
    error: dict[str, Any] | None = None


class CreditBody(msgspec.Struct):
    c: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


# Bodies of upstream entries

CONDITIONS_MAX: Final = 32
LABELS_MAX: Final = 64

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Quantities = Annotated[dict[Annotated[str, msgspec.Meta(max_length=317)], Text], msgspec.Meta(max_length=64)]


UnixTime = Annotated[float, msgspec.Meta(ge=0.0, le=253402300799.0)]


class NodeReport(msgspec.Struct, frozen=True):
    """The body of a `node` entry."""

    capacity: Quantities | None = None
    allocatable: Quantities | None = None
    nodeInfo: Annotated[dict[str, Text], msgspec.Meta(max_length=32)] | None = None
    addresses: Annotated[list[dict[str, Text]], msgspec.Meta(max_length=64)] | None = None
    labels: Annotated[dict[str, str], msgspec.Meta(max_length=LABELS_MAX)] | None = None
    conditions: Annotated[list[dict[str, Text | None]], msgspec.Meta(max_length=CONDITIONS_MAX)] | None = None


Reading = tuple[
    Annotated[int, msgspec.Meta(ge=0, le=253402300799999)],
    bool | int | float | Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)],
]
"""A device's value at a time, Unix milliseconds."""


class TwinReport(msgspec.Struct, frozen=True):
    """The body of a `twin` entry: the generation that the node follows, and what it reports, oldest first, by property."""

    gen: Count = 0
    r: Annotated[
        dict[
            Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)],
            Annotated[list[Reading], msgspec.Meta(min_length=1, max_length=KEEP_MAX)],
        ],
        msgspec.Meta(max_length=PROPERTIES_MAX),
    ] = {}


class EventReport(msgspec.Struct, frozen=True):
    """The body of an `event` entry."""

    reason: Annotated[str, msgspec.Meta(max_length=128)] = ""
    message: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    type: Annotated[str, msgspec.Meta(pattern="^(Normal|Warning)$")] = "Normal"
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 1
    first: UnixTime = 0.0
    last: UnixTime = 0.0
    field: Annotated[str, msgspec.Meta(max_length=1024)] = ""


decode_hello = msgspec.json.Decoder(Hello).decode
decode_acks = msgspec.json.Decoder(AckBody).decode
decode_nack = msgspec.json.Decoder(NackBody).decode
decode_pairs = msgspec.json.Decoder(PairsBody).decode
decode_report = msgspec.json.Decoder(ReportBody).decode
decode_bundle = msgspec.json.Decoder(BundleBody).decode
decode_csr = msgspec.json.Decoder(RenewBody).decode
decode_goaway = msgspec.json.Decoder(GoawayBody).decode
decode_credit = msgspec.json.Decoder(CreditBody).decode
decode_close = msgspec.json.Decoder(CloseBody).decode
decode_node = msgspec.json.Decoder(NodeReport).decode
decode_twin = msgspec.json.Decoder(TwinReport).decode
decode_event = msgspec.json.Decoder(EventReport).decode
