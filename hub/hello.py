"""The beginning of a connection: what HELLO may say, and what the hub answers. [pure]

Invariant I9 is decided here: `answer` lets documents flow only when this store knows at least what the edge knows, or
an operator has confirmed the very claim that the edge holds.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from edgelite import wire
from security.frames import Hello
from shards.claims import Claim, EdgeClaim, SlotRecord, judge

FEATURES: Final = ("log", "renew", "trust")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the hub knows when a node says HELLO.

    claim: the one under which this hub owns the node's slot. edge_record: the claims of the slot that the edge's claim
    names. head: the revision that this hub has reached. unconfirmed: nobody enrolled the node here. parted, confirmed:
    the node's annotations: the claim id that waits for an operator, and the one that he confirmed."""

    store: str
    generation: int
    slot: int
    claim: Claim
    edge_record: SlotRecord
    head: int
    unconfirmed: bool = False
    parted: str | None = None
    confirmed: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`sync`: match, diff or hold. `condition`: why it holds, as the Node's condition: HistoryParted, Unconfirmed or "".
    `taken_over`: it goes on because an operator confirmed it; `confirmed`: the claim passed over then."""

    sync: str
    reason: str = ""
    condition: str = ""
    taken_over: bool = False
    confirmed: str | None = None


def protocol_of(hello: Hello) -> int | None:
    """The highest protocol that both ends speak."""
    low, high = max(hello.proto[0], wire.PROTOCOL_MIN), min(hello.proto[1], wire.PROTOCOL_MAX)
    return high if low <= high else None


def answer(hello: Hello, standing: Standing, digest: str) -> Answer:
    """How to go on. `digest`: of the documents that the hub wants the node to hold."""
    parted = _judge(hello, standing)
    sync = "match" if digest == hello.digest else "diff"
    if not parted and not standing.unconfirmed:
        return Answer(sync)
    said_yes = standing.confirmed is not None and standing.confirmed == hello.held
    if not parted and hello.claim is not None:
        # It holds a claim of this store already: the answer to the confirmed HELLO was lost on the way here.
        said_yes = said_yes or (standing.confirmed is not None and standing.confirmed == standing.parted)
    if not said_yes:
        reason = parted or "a valid certificate, but no Node was enrolled here under this name"
        remedy = "`cloudhub confirm --node` lets this hub take over"
        return Answer("hold", f"{reason}; {remedy}", "HistoryParted" if parted else "Unconfirmed")
    return Answer(sync, taken_over=True, confirmed=hello.claim.id if hello.claim is not None else None)


def _judge(hello: Hello, standing: Standing) -> str:
    edge = None
    if hello.claim is not None:
        c = hello.claim
        edge = EdgeClaim(c.store, c.gen, c.slot, c.epoch, c.id)
    parted = judge(
        edge,
        hello.rev,
        store=standing.store,
        generation=standing.generation,
        record=standing.edge_record,
        head=standing.head,
    )
    return parted.reason if parted is not None else ""


def welcome(
    hello: Hello, standing: Standing, answer: Answer, *, heartbeat_s: float, window: int, now_unix: float
) -> bytes:
    """The body of WELCOME."""
    body: dict[str, Any] = {
        "proto": protocol_of(hello),
        "features": [f for f in FEATURES if f in hello.features],
        "store": standing.store,
        "gen": standing.generation,
        "slot": standing.slot,
        "epoch": standing.claim.epoch,
        "claim": standing.claim.id,
        "rev": standing.head,
        "heartbeat": heartbeat_s,
        "window": window,
        "time": now_unix,
        "sync": answer.sync,
    }
    if answer.confirmed is not None:
        body["confirmed"] = answer.confirmed
    if answer.reason:
        body["reason"] = answer.reason
    return orjson.dumps(body)
